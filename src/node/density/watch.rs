//! What the node does by itself: it gives guests in pain their memory back at once, and begins the runs that lighter.toml schedules.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use memopt::history::RunId;
use memopt::plan::Plan;
use memopt::policy::{Goal, Policy};
use memopt::schedule::{Due, Event, Notice, Schedule, Trigger};
use tokio::task::JoinHandle;

use super::run::{Runner, Task};
use super::service::Density;
use crate::api::{ApiError, Reason};
use crate::clock::uptime;

/// Between two looks at all guests, for what is remembered of them.
const LOOK_PAUSE: Duration = Duration::from_secs(10);

/// Between two looks at guests whose balloons hold memory: statistics come with the look after the one that asked for them, and a
/// guest in pain shall have its memory back within a second.
const ALERT_PAUSE: Duration = Duration::from_millis(400);

/// Between two looks at the clock and at lighter.toml.
const TICK: Duration = Duration::from_secs(1);

/// Watches over the guests, and over the clock, until it is aborted.
pub(crate) fn start(density: Arc<Density>) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut looked = Duration::ZERO;
        let mut inflated = BTreeSet::new();
        loop {
            density.refresh_settings();
            dispatch(&density, density.handle(Event::Elapsed));
            let is_time_for_all = uptime().saturating_sub(looked) >= LOOK_PAUSE;
            if is_time_for_all {
                looked = uptime();
            }
            if is_time_for_all || !inflated.is_empty() {
                match relieve(&density, (!is_time_for_all).then_some(&inflated)).await {
                    Ok(now) => inflated = now,
                    // Those whose balloons held memory are looked at again.
                    Err(error) => tracing::warn!("cannot look at the guests: {error:#}"),
                }
            }
            let pause = if inflated.is_empty() { TICK } else { ALERT_PAUSE };
            tokio::time::sleep(pause.min(density.wait().max(ALERT_PAUSE))).await;
        }
    })
}

/// Begins a run that somebody wants now.
///
/// # Errors
/// Another one is under way, or the host cannot be looked at.
pub(crate) async fn begin_now(
    density: &Arc<Density>,
    goal: Option<Goal>,
    only: Option<Plan>,
) -> Result<RunId, ApiError> {
    let policy = density.policy_of_runs().map_err(ApiError::failed)?;
    let notices = density.handle(Event::ManualWanted);
    let refusal = refusal(&notices);
    // A schedule may have come due at the same moment.
    let others = notices.into_iter().filter(|notice| !is_manual(notice));
    dispatch(density, others.collect());
    if let Some(text) = refusal {
        return Err(ApiError::new(Reason::WrongState, text));
    }
    let goal = only.as_ref().map(|plan| plan.goal).or(goal).unwrap_or(policy.goal);
    let task = Task { trigger: Trigger::Manual, goal, policy, only, deadline: None };
    begin(density, task).await.map_err(|error| {
        not_begun(density, &Trigger::Manual);
        ApiError::failed(error)
    })
}

/// Why no run can begin now, if the scheduler says so.
fn refusal(notices: &[Notice]) -> Option<String> {
    let busy = notices.iter().find_map(|notice| match notice {
        Notice::Busy { running } => Some(running),
        _ => None,
    });
    match busy {
        Some(running) => Some(format!(
            "a run is under way ({running}): wait for its end, or `lighter density cancel`"
        )),
        None if notices.iter().any(is_manual) => None,
        None => Some("no run can begin now: try again".to_owned()),
    }
}

fn is_manual(notice: &Notice) -> bool {
    matches!(notice, Notice::Due(Due { trigger: Trigger::Manual, .. }))
}

/// Begins a run and lets it go on in the background. What waited for its end is begun then.
async fn begin(density: &Arc<Density>, task: Task) -> Result<RunId> {
    let (runner, plan) = Runner::begin(Arc::clone(density), task).await?;
    let (id, density) = (runner.id(), Arc::clone(density));
    tokio::spawn(async move {
        runner.carry_out(plan).await;
        ended(&density);
    });
    Ok(id)
}

fn not_begun(density: &Arc<Density>, trigger: &Trigger) {
    density.tally.run_not_begun(trigger);
    ended(density);
}

fn ended(density: &Arc<Density>) {
    density.end_running();
    dispatch(density, density.handle(Event::Ended));
}

/// Does what the scheduler says, and tells of the rest.
fn dispatch(density: &Arc<Density>, notices: Vec<Notice>) {
    for notice in notices {
        match notice {
            Notice::Due(due) => begin_due(density, due),
            Notice::End(trigger) => {
                tracing::info!(%trigger, "the window of a run is over");
            }
            Notice::Missed(missed) => {
                density.tally.missed(&missed);
                density.records.put_down_decided(&missed.schedule, missed.last);
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
}

fn begin_due(density: &Arc<Density>, due: Due) {
    let name = due.trigger.to_string();
    let Some(schedule) = density.schedule(&name) else {
        // lighter.toml has changed between the scheduler's word and now.
        tracing::warn!(schedule = name, "there is no such schedule any more");
        return ended(density);
    };
    tracing::info!(schedule = name, lag_seconds = due.lag.as_secs(), "a run is due");
    let deadline = due.window.map(|window| uptime() + window);
    let density = Arc::clone(density);
    tokio::spawn(async move {
        let begun = async {
            let policy = within(density.policy_of_runs()?, &schedule);
            let goal = schedule.goal.as_str().parse()?;
            let trigger = due.trigger.clone();
            begin(&density, Task { trigger, goal, policy, only: None, deadline }).await
        };
        if let Err(error) = begun.await {
            tracing::error!(schedule = name, "a run cannot begin: {error:#}");
            not_begun(&density, &due.trigger);
        }
    });
}

/// The policy of a schedule's run: for its guests alone, and within its budget, which can only take away from what the policy allows.
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

/// Looks at the guests, those of these names or all, and gives those that need more than their balloons leave them all they may have.
/// Returns the names of those whose balloons hold memory.
async fn relieve(
    density: &Arc<Density>,
    names: Option<&BTreeSet<String>>,
) -> Result<BTreeSet<String>> {
    let policy = density.policy();
    let (situation, steps) = density.consider(&policy, names).await?;
    for step in &steps {
        match density.perform(step).await {
            Ok(()) => {
                density.tally.relieved();
                tracing::info!(step = %step.action, "{}", step.reason);
            }
            Err(error) => {
                density.tally.relief_failed();
                tracing::warn!(step = %step.action, "it could not be done: {error:#}");
            }
        }
    }
    let holds = |target_bytes: u64, memory_bytes: u64| target_bytes < memory_bytes;
    let inflated = situation.guests.into_iter().filter(|guest| {
        let balloon = guest.balloon.as_ref();
        balloon.is_some_and(|balloon| holds(balloon.target_bytes, guest.memory_bytes))
    });
    Ok(inflated.map(|guest| guest.name).collect())
}
