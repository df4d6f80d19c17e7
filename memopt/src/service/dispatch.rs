//! Starts runs: those that clients request, and those that are due, one at a time.

use std::time::Duration;

use tokio::task;

use super::core::{Core, Reply, Running, refuse};
use super::error::ServiceError;
use super::events::Event;
use super::runner::{self, Order};
use crate::history::{RunEnd, RunId};
use crate::plan::Plan;
use crate::policy::{Goal, Policy};
use crate::schedule::{self, Due, Notice, Schedule, Trigger};

impl Core<'_> {
    /// Starts a run that a client requested. `asker` receives its number.
    pub(super) fn begin_now(
        &mut self,
        goal: Option<Goal>,
        only: Option<Plan>,
        asker: Reply<RunId>,
    ) {
        let policy = match self.policy_of_runs() {
            Ok(policy) => policy,
            Err(error) => return refuse(asker, error),
        };
        let notices = self.handle_event(schedule::Event::ManualWanted);
        let busy = notices.iter().find_map(|notice| match notice {
            Notice::Busy { running } => Some(ServiceError::Busy { running: running.clone() }),
            _ => None,
        });
        let is_due = notices.iter().any(is_manual);
        // A schedule may have come due at the same time.
        self.dispatch(notices.into_iter().filter(|notice| !is_manual(notice)).collect());
        match busy {
            Some(busy) => refuse(asker, busy),
            None if !is_due => refuse(asker, ServiceError::NotNow),
            None => {
                let goal = only.as_ref().map(|plan| plan.goal).or(goal).unwrap_or(policy.goal);
                let trigger = Trigger::Manual;
                self.begin(Order { trigger, goal, policy, only, deadline: None }, Some(asker));
            }
        }
    }

    /// Starts a run as a task.
    fn begin(&mut self, order: Order, asker: Option<Reply<RunId>>) {
        let trigger = order.trigger.clone();
        let task = self.tasks.spawn(runner::run(self.handle.clone(), order, asker)).id();
        self.run = Some(Running { task, trigger, begun: None });
    }

    fn begin_due(&mut self, due: Due) {
        let name = due.trigger.to_string();
        let Some(schedule) = self.schedule(&name).cloned() else {
            // lighter.toml has changed since the scheduler reported the run.
            tracing::warn!(schedule = name, "there is no such schedule any more");
            return self.run_ended();
        };
        tracing::info!(schedule = name, lag_seconds = due.lag.as_secs(), "a run is due");
        let deadline = due.window.map(|window| self.now().uptime + window);
        let goal = schedule.goal.as_str().parse::<Goal>();
        let goal = goal.map_err(|error| ServiceError::Settings(error.to_string()));
        match self.policy_of_runs().and_then(|policy| Ok((policy, goal?))) {
            Ok((policy, goal)) => {
                let policy = within(policy, &schedule);
                let trigger = due.trigger;
                self.begin(Order { trigger, goal, policy, only: None, deadline }, None);
            }
            Err(error) => {
                tracing::error!(schedule = name, "a run cannot begin: {error}");
                self.handle.notice(&Event::RunNotBegun(&due.trigger));
                if let Trigger::Schedule { name, tick } = &due.trigger {
                    // It was due and failed: it is not missed as well after a restart.
                    self.records.record_decided(name, *tick);
                }
                self.run_ended();
            }
        }
    }

    /// Notes that a task has ended; if it was a run, starts those that waited for its end.
    pub(super) fn task_ended(&mut self, ended: &Result<(task::Id, ()), task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        self.relieved.remove(&id);
        let was_run = self.run.as_ref().is_some_and(|run| run.task == id);
        if let Err(error) = ended {
            tracing::error!("a task of memory optimization panicked: {error}");
            if was_run {
                self.run_panicked();
            }
        }
        if was_run {
            self.run_ended();
        }
    }

    fn run_panicked(&mut self) {
        self.host.end_window();
        match self.running().map(|run| run.id) {
            Some(id) => {
                self.records.record_error(id, "it panicked: the node's log says where");
                self.run_over(RunEnd::Failed);
            }
            None => {
                let trigger = self.run.as_ref().map(|run| &run.trigger);
                trigger.into_iter().for_each(|it| self.handle.notice(&Event::RunNotBegun(it)));
            }
        }
    }

    /// Clears the ended run, and starts runs that waited for its end.
    fn run_ended(&mut self) {
        self.run = None;
        let notices = self.handle_event(schedule::Event::Ended);
        self.dispatch(notices);
    }

    /// Starts what is due by now.
    pub(super) fn elapse(&mut self) {
        let notices = self.handle_event(schedule::Event::Elapsed);
        self.dispatch(notices);
    }

    /// Returns the scheduler's response to `event`. During shutdown there is none.
    fn handle_event(&mut self, event: schedule::Event) -> Vec<Notice> {
        let now = self.now();
        if self.is_winding_up { Vec::new() } else { self.scheduler.handle(now, event) }
    }

    /// Starts the runs that the scheduler reports as due, and logs the other notices.
    fn dispatch(&mut self, notices: Vec<Notice>) {
        if notices.is_empty() {
            return;
        }
        for notice in notices {
            match notice {
                Notice::Due(due) => self.begin_due(due),
                Notice::End(trigger) => {
                    tracing::info!(%trigger, "the window of a run is over");
                }
                Notice::Missed(missed) => {
                    self.handle.notice(&Event::Missed(&missed));
                    self.records.record_decided(&missed.schedule, missed.last);
                    tracing::warn!("{missed}");
                }
                Notice::Queued { schedule, running, .. } => {
                    tracing::info!(schedule, "waits for the end of the run under way ({running})");
                }
                Notice::Busy { running } => tracing::debug!(%running, "a run is under way"),
                Notice::ClockSet { by_seconds, again } => {
                    tracing::warn!(by_seconds, ?again, "the host's clock was set");
                }
                Notice::Asleep(time) => tracing::warn!(seconds = time.as_secs(), "the host slept"),
            }
        }
        self.publish();
    }
}

fn is_manual(notice: &Notice) -> bool {
    matches!(notice, Notice::Due(Due { trigger: Trigger::Manual, .. }))
}

/// Returns the policy for a run of `schedule`: limited to its guests and its budget, which can only
/// restrict what the policy allows.
fn within(mut policy: Policy, schedule: &Schedule) -> Policy {
    policy.scope = schedule.guests.clone();
    let merge = &mut policy.merge;
    if let Some(percent) = schedule.budget.cpu_percent {
        merge.cpu = merge.cpu.min(f64::from(percent) / 100.0);
    }
    if let Some(pages) = schedule.budget.pages_per_second {
        merge.pages_per_s = merge.pages_per_s.min(u64::from(pages));
    }
    if let Some(seconds) = schedule.budget.cpu_seconds {
        merge.cpu_time = merge.cpu_time.min(Duration::from_secs(u64::from(seconds)));
    }
    policy
}
