//! The automatic work of the loop: it gives guests under pressure their memory back at once, and
//! starts the runs that `lighter.toml` schedules.

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

/// Pause between two inspections of all guests, for the ledger.
const INSPECT_PAUSE: Duration = Duration::from_secs(10);

/// Pause between two inspections of guests whose balloons hold memory. Statistics arrive with the
/// inspection after the one that requested them, and a guest under pressure must get its memory
/// back within a second.
const ALERT_PAUSE: Duration = Duration::from_millis(400);

/// Pause between two checks of the clock and of `lighter.toml`.
const TICK: Duration = Duration::from_secs(1);

/// When the last inspections were, and the guests to watch closely.
#[derive(Debug, Default)]
pub(super) struct Watch {
    ticked: Option<Instant>,
    /// Host uptime at the last inspection of all guests.
    inspected: Duration,
    /// Guests whose balloons hold memory, by name, and whether they answered the last inspection.
    inflated: BTreeMap<String, bool>,
}

impl Watch {
    /// Returns the time of the next tick, if nothing is due for the duration `idle`.
    pub(super) fn pause(&self, idle: Duration) -> Instant {
        let pause = if self.inflated.is_empty() { TICK } else { ALERT_PAUSE };
        let pause = pause.min(idle.max(ALERT_PAUSE));
        self.ticked.map_or_else(Instant::now, |ticked| ticked + pause)
    }

    /// Starts what is due, and relieves guests under pressure.
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
                // The guests whose balloons held memory are inspected again.
                Err(error) => tracing::warn!("cannot inspect the guests: {error}"),
            }
        }
        self.ticked = Some(Instant::now());
    }

    /// Inspects all guests, or only the watched ones. Guests that need more than their balloons
    /// leave them get the memory that a plan grants them. Returns the guests whose balloons hold
    /// memory. A guest that does not answer is kept for one more inspection only: a hung process
    /// would delay the others.
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
        // The policy's goal is ignored: only runs return memory that the host merely has to spare.
        // Otherwise the watch would undo what runs for other goals have taken.
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

/// Whether `step` gives a guest back what runs have taken. A balloon set by an operator is left to
/// the operator.
fn is_relief(step: &Step, ledger: &Ledger, situation: &Situation) -> bool {
    let Action::SetBalloon { guest, from_bytes, to_bytes } = &step.action else { return false };
    let of_it = situation.guests.iter().find(|it| it.name == *guest);
    to_bytes > from_bytes && of_it.is_some_and(|it| ledger.has_asked(it))
}

impl Core<'_> {
    /// Spawns a step that gives a guest memory back, unless one is in progress for it. `plan` is
    /// what is recorded.
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
                    tracing::warn!(step = %step.action, "cannot give memory back to a guest: {error}");
                }
            }
        });
        self.relieved.insert(task.id(), guest);
    }
}
