//! One guest as a plan sees it: what it is, what holds for it, and what is remembered of it.

use std::borrow::Cow;

use super::because::Because;
use super::sheet::{Draft, Skipped};
use crate::ledger::{GuestLedger, Ledger};
use crate::policy::{Actuator, Goal, GuestLimits, Policy};
use crate::situation::{Guest, Situation, Survey};
use crate::step::Action;

/// One guest that something may be done to.
#[derive(Clone)]
pub(super) struct View<'a> {
    pub(super) guest: &'a Guest,
    pub(super) limits: GuestLimits,
    pub(super) record: Option<&'a GuestLedger>,
    survey: Option<Cow<'a, Survey>>,
}

/// All that a plan is made from.
pub(super) struct Context<'a> {
    pub(super) situation: &'a Situation,
    pub(super) policy: &'a Policy,
    pub(super) ledger: &'a Ledger,
    pub(super) goal: Goal,
}

impl<'a> Context<'a> {
    /// The guests by name, and of them those that something may be done to. The others are left
    /// with their reason.
    pub(super) fn views(&self, draft: &mut Draft) -> (Vec<View<'a>>, Vec<View<'a>>) {
        let mut guests: Vec<&Guest> = self.situation.guests.iter().collect();
        guests.sort_by(|a, b| (&a.name, a.pid).cmp(&(&b.name, b.pid)));
        let (mut all, mut free): (Vec<View<'a>>, Vec<View<'a>>) = (Vec::new(), Vec::new());
        let mut last: Option<&str> = None;
        for guest in guests {
            let is_taken = last.replace(&guest.name) == Some(&guest.name);
            let view = self.view(guest);
            let because = match guest.hindrance {
                _ if is_taken => Some(Because::NameTaken),
                Some(by) => Some(Because::Hindered { by }),
                None if !view.limits.optimize => Some(Because::OptedOut),
                None => None,
            };
            match because {
                None => free.push(view.clone()),
                Some(because) => draft.skipped.push(Skipped {
                    guest: guest.name.clone(),
                    actuator: None,
                    because,
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

    /// Why `actuator` may not be used on a guest.
    pub(super) fn forbidden(&self, view: &View<'_>, actuator: Actuator) -> Option<Because> {
        if !view.limits.actuators.contains(&actuator) {
            return Some(Because::NotAllowed);
        }
        let standing = view.record?.standings.get(&actuator)?;
        let bench = standing.bench.as_ref()?;
        let left = bench.until.checked_sub(self.ledger.uptime).filter(|left| !left.is_zero())?;
        Some(Because::Benched { reason: bench.reason.clone(), left })
    }

    /// Whether `actuator` may be used on a guest for the sake of others, or of what it does not
    /// need.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn may_take(&self, view: &View<'_>, actuator: Actuator) -> Result<(), Because> {
        match self.forbidden(view, actuator) {
            Some(because) => Err(because),
            None if !view.limits.take => Err(Because::NotTaken),
            None => Ok(()),
        }
    }
}

impl View<'_> {
    pub(super) fn name(&self) -> &str {
        &self.guest.name
    }

    /// What it has and never sees, as far as that is known.
    pub(super) fn unseen_bytes(&self) -> u64 {
        self.record.map_or(0, |record| record.unseen_bytes)
    }

    /// What is known of its pages, when that is new enough, as they will be after the steps that
    /// are drafted.
    pub(super) fn survey(&self) -> Result<&Survey, Because> {
        self.survey.as_deref().ok_or(Because::NotSurveyed)
    }

    /// `action` is drafted: its pages will be as that leaves them.
    pub(super) fn note(&mut self, action: &Action) {
        if let Some(survey) = &mut self.survey {
            action.note(survey.to_mut());
        }
    }

    /// As [`Vmm::takes_chunks`](crate::situation::Vmm::takes_chunks).
    pub(super) fn takes_chunks(&self) -> bool {
        self.guest.vmm.takes_chunks()
    }
}
