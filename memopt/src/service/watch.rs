//! What the loop does unasked: it gives guests in pain their memory back at once, and begins the
//! runs that `lighter.toml` schedules.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

use super::core::Core;
use super::error::ServiceError;
use super::events::Event;
use super::view::none;
use crate::ledger::Ledger;
use crate::plan::{Plan, plan};
use crate::policy::Goal;
use crate::situation::{Guest, Situation};
use crate::step::{Action, Step};

/// Between two inspections of all guests, for the ledger.
const INSPECT_PAUSE: Duration = Duration::from_secs(10);

/// Between two of guests whose balloons hold memory: statistics come with the inspection after the
/// one that asked for them, and a guest in pain shall have its memory back within a second.
const ALERT_PAUSE: Duration = Duration::from_millis(400);

/// Between two readings of the clock and of `lighter.toml`.
const TICK: Duration = Duration::from_secs(1);

/// When what was last done, and who has to be watched closely.
#[derive(Debug, Default)]
pub(super) struct Watch {
    ticked: Option<Instant>,
    /// When all guests were last inspected, as the host's uptime.
    inspected: Duration,
    /// Guests whose balloons hold memory, by name, and whether they answered the last inspection.
    inflated: BTreeMap<String, bool>,
}

impl Watch {
    /// When the next tick is, if nothing is due for as long as `idle`.
    pub(super) fn pause(&self, idle: Duration) -> Instant {
        let pause = if self.inflated.is_empty() { TICK } else { ALERT_PAUSE };
        let pause = pause.min(idle.max(ALERT_PAUSE));
        self.ticked.map_or_else(Instant::now, |ticked| ticked + pause)
    }

    /// Begins what is due, and looks after the guests.
    pub(super) async fn tick(&mut self, core: &mut Core<'_>) {
        core.refresh_settings();
        core.elapse();
        let uptime = core.now().uptime;
        let is_time_for_all = uptime.saturating_sub(self.inspected) >= INSPECT_PAUSE;
        if is_time_for_all {
            self.inspected = uptime;
        }
        if is_time_for_all || !self.inflated.is_empty() {
            match self.relieve(core, is_time_for_all).await {
                Ok(now) => self.inflated = now,
                // Those whose balloons held memory are inspected again.
                Err(error) => tracing::warn!("cannot inspect the guests: {error}"),
            }
        }
        self.ticked = Some(Instant::now());
    }

    /// Inspects all guests, or those that are watched, and gives those that need more than their
    /// balloons leave them all they may have. Returns those whose balloons hold memory. One that
    /// does not answer stays among them once: a process that hangs would hold up the others.
    async fn relieve(
        &self,
        core: &mut Core<'_>,
        all: bool,
    ) -> Result<BTreeMap<String, bool>, ServiceError> {
        let policy = core.settings.settings.policy.clone();
        let view = match all {
            true => core.inspect(&policy, &none()).await?,
            false => core.inspect_some(&policy, &self.inflated.keys().cloned().collect()).await?,
        };
        // Whatever the policy's goal: what the host merely has to spare is a run's to give, or the
        // watch would undo what runs for other goals have taken.
        let plan = plan(&view.situation, &policy, &core.ledger, &Goal::MaxDensity);
        for step in &plan.steps {
            if is_relief(step, &core.ledger, &view.situation) {
                core.relieve(plan.only(step), step);
            }
        }
        let watched = |guest: Guest| {
            let (is_watched, answers) = match &guest.balloon {
                Some(balloon) => (balloon.target_bytes < guest.memory_bytes, true),
                None => (self.inflated.get(&guest.name) == Some(&true), false),
            };
            is_watched.then_some((guest.name, answers))
        };
        Ok(view.situation.guests.into_iter().filter_map(watched).collect())
    }
}

/// Whether `step` gives a guest back what runs have taken: a balloon that an operator has set is
/// the operator's.
fn is_relief(step: &Step, ledger: &Ledger, situation: &Situation) -> bool {
    let Action::SetBalloon { guest, from_bytes, to_bytes } = &step.action else { return false };
    let of_it = situation.guests.iter().find(|it| it.name == *guest);
    to_bytes > from_bytes && of_it.is_some_and(|it| ledger.has_asked(it))
}

impl Core<'_> {
    /// Has a step done that gives a guest memory back, unless that is under way. `plan` is what is
    /// recorded of it.
    fn relieve(&mut self, plan: Plan, step: &Step) {
        let guest = step.action.guest().unwrap_or_default().to_owned();
        if self.relieved.values().any(|other| *other == guest) {
            return;
        }
        let (handle, step) = (self.handle.clone(), step.clone());
        let task = self.tasks.spawn(async move {
            match handle.perform(&step).await {
                Ok(()) => {
                    handle.notice(&Event::Relieved);
                    tracing::info!(step = %step.action, "{}", step.reason);
                    handle.call(move |core| core.records.record_relief(&plan)).await;
                }
                Err(error) => {
                    handle.notice(&Event::ReliefFailed);
                    tracing::warn!(step = %step.action, "it could not be done: {error}");
                }
            }
        });
        self.relieved.insert(task.id(), guest);
    }
}
