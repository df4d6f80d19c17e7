//! The state of the loop: the service's data, and the run and tasks in progress.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{self, JoinSet};

use super::Setup;
use super::client::Published;
use super::error::ServiceError;
use super::events::Event;
use super::handle::{Handle, Inbox, Inspect, Message, Reply, refuse};
use super::records::Records;
use super::runner::{self, Order};
use super::settings::{Change, SettingsFile};
use super::surveys::Surveys;
use super::types::{Agenda, NextRun, Remembered};
use super::view::{Costs, Filter, Host, View, guests};
use crate::history::{RunEnd, RunId};
use crate::json;
use crate::ledger::Ledger;
use crate::plan::{Plan, plan};
use crate::policy::{Goal, Policy};
use crate::schedule::{self, Due, Moment, Notice, Schedule, Scheduler, Trigger};
use crate::situation::Situation;

/// Maximum size of a ledger file that is read, in bytes.
const LEDGER_BYTES_MAX: u64 = 16 << 20;

/// The state of the loop: the service's data, and the run and tasks in progress.
pub(super) struct Core<'a> {
    pub(super) host: &'a mut dyn Host,
    setup: &'a Setup,
    pub(super) handle: Handle,
    pub(super) settings: SettingsFile,
    pub(super) ledger: Ledger,
    pub(super) surveys: Surveys,
    pub(super) records: Records,
    scheduler: Scheduler,
    pub(super) run: Option<Running>,
    pub(super) tasks: JoinSet<()>,
    /// Guests that are being given memory back, by the task that does it.
    pub(super) relieved: BTreeMap<task::Id, String>,
    publish: watch::Sender<Published>,
    /// Whether the service is being shut down.
    is_winding_up: bool,
    pub(super) is_over: bool,
}

/// The run in progress.
#[derive(Debug)]
pub(super) struct Running {
    task: task::Id,
    trigger: Trigger,
    /// Absent before the first plan of the run and after its end.
    begun: Option<Begun>,
}

/// A run that has a number.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) id: RunId,
    /// Host uptime when it began.
    at: Duration,
    cancel: watch::Sender<bool>,
}

impl<'a> Core<'a> {
    /// Loads the state that the previous process left, and `lighter.toml`.
    pub(super) fn open(
        host: &'a mut dyn Host,
        setup: &'a Setup,
        handle: Handle,
        publish: watch::Sender<Published>,
    ) -> Self {
        let settings = SettingsFile::open(&setup.files.settings);
        if let Err(error) = settings.policy() {
            tracing::error!("{error}");
        }
        let mut records = Records::open(setup.files.history.clone(), handle.shared.clock.clone());
        if let Some(at) = records.last_success() {
            handle.notice(&Event::LastSuccess(at));
        }
        let schedules = settings.settings.schedules.clone();
        let last_ticks = records.last_ticks(&schedules);
        let scheduler = Scheduler::new(schedules, &last_ticks, handle.shared.clock.now());
        Self {
            host,
            setup,
            handle,
            settings,
            ledger: read_ledger(setup),
            surveys: Surveys::default(),
            records,
            scheduler,
            run: None,
            tasks: JoinSet::new(),
            relieved: BTreeMap::new(),
            publish,
            is_winding_up: false,
            is_over: false,
        }
    }

    /// Handles messages, starts what is due, and relieves guests under pressure, until the service
    /// is shut down. Messages from tasks take precedence over those of clients.
    pub(super) async fn serve(
        &mut self,
        inbox: &mut Inbox,
        message_receiver: &mut mpsc::Receiver<Message>,
    ) {
        let mut watch = super::watch::Watch::default();
        self.publish();
        while !self.is_over {
            let pause = watch.pause(self.scheduler.wait(self.now()));
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(pause) => watch.tick(self).await,
                Some(ended) = self.tasks.join_next_with_id() => self.task_ended(&ended),
                Some(message) = message_receiver.recv() => self.take(message).await,
                message = inbox.messages.recv() => match message {
                    Some(message) => self.take(message).await,
                    None => self.is_over = true,
                },
            }
        }
    }

    async fn take(&mut self, message: Message) {
        match message {
            Message::Call(call) => call(self),
            Message::Inspect(inspect) => {
                let Inspect { policy, measured, reply } = *inspect;
                if !reply.is_closed() {
                    let view = self.inspect(&policy, &measured).await;
                    // The caller may no longer wait.
                    let _unwanted = reply.send(view);
                }
            }
        }
    }

    /// Inspects the host and all guests, and records the result in the ledger.
    pub(super) async fn inspect(
        &mut self,
        policy: &Policy,
        measured: &Filter,
    ) -> Result<View, ServiceError> {
        let viewed = self.view(None, &Costs::Measured(&**measured)).await;
        let mut view = viewed.inspect_err(|_| self.handle.notice(&Event::InspectionFailed))?;
        let situation = &mut view.situation;
        self.surveys.retain(&situation.guests);
        self.surveys.fill(&mut situation.guests, situation.uptime);
        self.ledger.observe(situation, policy);
        self.handle.notice(&Event::Inspected { situation, ledger: &self.ledger, policy });
        Ok(view)
    }

    /// Inspects only the guests with these names, without walking page tables.
    pub(super) async fn inspect_some(
        &mut self,
        policy: &Policy,
        names: &BTreeSet<String>,
    ) -> Result<View, ServiceError> {
        let view = self.view(Some(names), &Costs::Estimated).await?;
        self.ledger.observe(&view.situation, policy);
        Ok(view)
    }

    async fn view(
        &mut self,
        names: Option<&BTreeSet<String>>,
        costs: &Costs<'_>,
    ) -> Result<View, ServiceError> {
        let found = guests(&self.setup.hypervisors, names).await;
        let (mut guests, complaints) =
            found.map_err(|error| ServiceError::Inspect(format!("{error:#}")))?;
        let now = self.now();
        let observed = self.host.observe(&mut guests, costs, now.uptime);
        let observed = observed.map_err(|error| ServiceError::Inspect(error.to_string()))?;
        Ok(View::new(observed, guests, complaints, now))
    }

    /// Returns the plan for `situation`.
    pub(super) fn plan(&mut self, situation: &Situation, policy: &Policy, goal: &Goal) -> Plan {
        self.handle.notice(&Event::Planned);
        plan(situation, policy, &self.ledger, goal)
    }

    /// Changes the ledger and saves it for the process that follows this one.
    ///
    /// # Errors
    /// If it cannot be saved; the change remains in memory.
    pub(super) fn save(&mut self, change: impl FnOnce(&mut Ledger)) -> Result<(), String> {
        change(&mut self.ledger);
        let path = &self.setup.files.ledger;
        json::replace(path, &self.ledger)
            .map_err(|error| format!("cannot write {}: {error}", path.display()))
    }

    /// Like [`Self::save`], but only logs a failure, for changes that take effect even if they are
    /// not saved.
    pub(super) fn remember(&mut self, change: impl FnOnce(&mut Ledger)) {
        if let Err(error) = self.save(change) {
            tracing::warn!("cannot write what the node remembers of balloons and merging: {error}");
        }
    }

    /// Returns the ledger's state of the guests in `situation`.
    pub(super) fn remembered(&self, situation: &Situation) -> BTreeMap<String, Remembered> {
        let known = situation
            .guests
            .iter()
            .filter_map(|guest| self.ledger.guests.get_key_value(&guest.name));
        known
            .map(|(name, known)| (name.clone(), Remembered::of(known, self.ledger.uptime)))
            .collect()
    }

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

    /// Assigns the number `id` to the run in progress. The returned receiver is notified when the
    /// run is cancelled.
    pub(super) fn run_begun(&mut self, id: RunId) -> watch::Receiver<bool> {
        let (cancel, cancelled) = watch::channel(self.is_winding_up);
        let at = self.now().uptime;
        if let Some(run) = &mut self.run {
            run.begun = Some(Begun { id, at, cancel });
            self.handle.notice(&Event::RunBegan(&run.trigger));
        }
        self.publish();
        cancelled
    }

    /// Records how the run in progress ended. Another one can begin only when its task has ended,
    /// too.
    pub(super) fn run_over(&mut self, end: RunEnd) {
        let uptime = self.now().uptime;
        if let Some(Running { trigger, begun, .. }) = &mut self.run
            && let Some(Begun { id, at, .. }) = begun.take()
        {
            let took = uptime.saturating_sub(at);
            self.handle.notice(&Event::RunEnded { trigger, end, took });
            self.records.record_end(id, end);
        }
        self.publish();
    }

    /// Cancels a run, which ends after its current step.
    ///
    /// # Errors
    /// If the run is not in progress.
    pub(super) fn cancel(&self, id: RunId) -> Result<(), ServiceError> {
        match self.running() {
            Some(run) if run.id == id => {
                run.cancel.send_replace(true);
                Ok(())
            }
            _ => Err(ServiceError::NotUnderWay(id)),
        }
    }

    /// Cancels the run in progress, and restores ksmd's settings. Balloons keep their size. Returns
    /// whether no run is left.
    pub(super) fn wind_up(&mut self) -> bool {
        self.is_winding_up = true;
        if let Some(run) = self.running() {
            run.cancel.send_replace(true);
        }
        self.host.end_window();
        self.run.is_none()
    }

    fn task_ended(&mut self, ended: &Result<(task::Id, ()), task::JoinError>) {
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

    /// Reloads `lighter.toml` if it has changed.
    pub(super) fn refresh_settings(&mut self) {
        match self.settings.refresh() {
            Change::None => return,
            Change::New => {
                match self.settings.path() {
                    Some(_) => tracing::info!("lighter.toml has changed and holds from now on"),
                    None => tracing::info!(
                        "lighter.toml is gone: the preset `balanced` holds, and nothing is scheduled"
                    ),
                }
                self.replace_schedules();
            }
            Change::Wrong => match self.settings.policy() {
                Ok(_) => {
                    let error = self.settings.error.as_deref().unwrap_or_default();
                    tracing::error!("{error}; what the file said before holds on");
                }
                Err(error) => tracing::error!("{error}"),
            },
        }
        self.publish();
    }

    fn replace_schedules(&mut self) {
        let schedules = self.settings.settings.schedules.clone();
        let last_ticks = self.records.last_ticks(&schedules);
        let now = self.now();
        self.scheduler.replace(schedules, &last_ticks, now);
        self.handle.notice(&Event::SchedulesReplaced);
    }

    /// Returns the run in progress, and the next `count` scheduled runs.
    pub(super) fn agenda(&self, count: usize) -> Agenda {
        let goal = |name: &str| {
            self.schedule(name).map(|schedule| schedule.goal.to_string()).unwrap_or_default()
        };
        let next = self.scheduler.next(count).into_iter().map(|next| NextRun {
            at_unix_seconds: next.tick,
            goal: goal(&next.schedule),
            schedule: next.schedule,
        });
        Agenda {
            next: next.collect(),
            running: self.running().map(|run| run.id),
            file_error: self.settings.error.clone(),
        }
    }

    /// Returns the policy that runs must follow.
    ///
    /// # Errors
    /// [`ServiceError::Settings`].
    pub(super) fn policy_of_runs(&self) -> Result<Policy, ServiceError> {
        self.settings.policy().map_err(ServiceError::Settings)
    }

    /// Returns the run in progress, if it has a number.
    pub(super) fn running(&self) -> Option<&Begun> {
        self.run.as_ref().and_then(|run| run.begun.as_ref())
    }

    pub(super) fn now(&self) -> Moment {
        self.handle.shared.clock.now()
    }

    fn schedule(&self, name: &str) -> Option<&Schedule> {
        self.settings.settings.schedules.iter().find(|schedule| schedule.name == name)
    }

    fn publish(&self) {
        let schedules = self.scheduler.schedules();
        let published = Published {
            schedules: schedules.map(|(schedule, tally)| (schedule.clone(), tally)).collect(),
            is_running: self.running().is_some(),
            are_settings_invalid: self.settings.error.is_some(),
        };
        self.publish.send_replace(published);
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

/// Loads the ledger of the previous process. Starts with an empty one if it cannot be read.
fn read_ledger(setup: &Setup) -> Ledger {
    let path = &setup.files.ledger;
    let read = || match regular_file::read_text(path, LEDGER_BYTES_MAX) {
        Ok(text) => serde_json::from_str(&text).map_err(|error| format!("it is damaged: {error}")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Ledger::default()),
        Err(error) => Err(error.to_string()),
    };
    read().unwrap_or_else(|error| {
        tracing::warn!(
            "begins with an empty ledger, since {} cannot be read: {error}",
            path.display()
        );
        Ledger::default()
    })
}
