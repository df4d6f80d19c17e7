//! One guest as a plan sees it: its current state, the limits that apply to it, and its ledger
//! record.

use std::borrow::Cow;

use super::sheet::{Draft, Skipped};
use super::skip_reason::SkipReason;
use crate::ledger::{GuestLedger, Ledger};
use crate::policy::{Actuator, Goal, GuestLimits, Policy};
use crate::situation::{Guest, Situation, Survey};
use crate::step::Action;

/// One guest, with everything that a plan needs to decide about it.
#[derive(Clone)]
pub(super) struct View<'a> {
    pub(super) guest: &'a Guest,
    pub(super) limits: GuestLimits,
    pub(super) record: Option<&'a GuestLedger>,
    survey: Option<Cow<'a, Survey>>,
}

/// Everything that a plan is made from.
pub(super) struct Context<'a> {
    pub(super) situation: &'a Situation,
    pub(super) policy: &'a Policy,
    pub(super) ledger: &'a Ledger,
    pub(super) goal: Goal,
}

impl<'a> Context<'a> {
    /// Returns all guests sorted by name, and those of them that steps may act on. The others are
    /// skipped in `draft`, with the reason.
    pub(super) fn views(&self, draft: &mut Draft) -> (Vec<View<'a>>, Vec<View<'a>>) {
        let mut guests: Vec<&Guest> = self.situation.guests.iter().collect();
        guests.sort_by(|a, b| (&a.name, a.pid).cmp(&(&b.name, b.pid)));
        let (mut all, mut free): (Vec<View<'a>>, Vec<View<'a>>) = (Vec::new(), Vec::new());
        let mut last: Option<&str> = None;
        for guest in guests {
            let is_taken = last.replace(&guest.name) == Some(&guest.name);
            let view = self.view(guest);
            let skip_reason = match guest.hindrance {
                _ if is_taken => Some(SkipReason::NameTaken),
                Some(by) => Some(SkipReason::Hindered { by }),
                None if !view.limits.optimize => Some(SkipReason::OptedOut),
                None => None,
            };
            match skip_reason {
                None => free.push(view.clone()),
                Some(skip_reason) => draft.skipped.push(Skipped {
                    guest: guest.name.clone(),
                    actuator: None,
                    skip_reason,
                }),
            }
            all.push(view);
        }
        (all, free)
    }

    fn view(&self, guest: &'a Guest) -> View<'a> {
        let limits = self.policy.limits(guest);
        let record = self.ledger.guests.get(&guest.name).filter(|it| it.pid == guest.pid);
        let survey = guest.survey.as_ref().filter(|survey| survey.is_recent()).map(Cow::Borrowed);
        View { guest, limits, record, survey }
    }

    /// Returns why `actuator` may not be used on a guest.
    pub(super) fn forbidden(&self, view: &View<'_>, actuator: Actuator) -> Option<SkipReason> {
        if !view.limits.actuators.contains(&actuator) {
            return Some(SkipReason::NotAllowed);
        }
        let standing = view.record?.standings.get(&actuator)?;
        let bench = standing.bench.as_ref()?;
        let left = bench.until.checked_sub(self.ledger.uptime).filter(|left| !left.is_zero())?;
        Some(SkipReason::Benched { reason: bench.reason.clone(), left })
    }

    /// Checks whether `actuator` may be used on a guest for the benefit of others, or on memory
    /// that it does not need: to take memory from it, or to change its pages. `take = false`
    /// forbids that.
    ///
    /// # Errors
    /// If it may not be used; the error is the reason.
    pub(super) fn may_take(&self, view: &View<'_>, actuator: Actuator) -> Result<(), SkipReason> {
        match self.forbidden(view, actuator) {
            Some(skip_reason) => Err(skip_reason),
            None if !view.limits.take => Err(SkipReason::NotTaken),
            None => Ok(()),
        }
    }
}

impl View<'_> {
    pub(super) fn name(&self) -> &str {
        &self.guest.name
    }

    /// Returns the memory that the guest has but never sees, as far as known.
    pub(super) fn unseen_bytes(&self) -> u64 {
        self.record.map_or(0, |record| record.unseen_bytes)
    }

    /// Returns the survey of its pages if it is recent enough, updated with the effect of the steps
    /// drafted so far.
    pub(super) fn survey(&self) -> Result<&Survey, SkipReason> {
        self.survey.as_deref().ok_or(SkipReason::NotSurveyed)
    }

    /// Updates the survey with the effect of `action`, which was drafted.
    pub(super) fn note(&mut self, action: &Action) {
        if let Some(survey) = &mut self.survey {
            action.note(survey.to_mut());
        }
    }

    /// Whether the guest's program changes single chunks of its memory on request; see
    /// [`Vmm::takes_chunks`](crate::situation::Vmm::takes_chunks).
    pub(super) fn takes_chunks(&self) -> bool {
        self.guest.vmm.takes_chunks()
    }
}
