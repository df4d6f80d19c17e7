//! One guest as a plan sees it: what it is, what holds for it, and what is remembered of it.

use std::borrow::Cow;

use super::action::ChunkRange;
use super::because::Because;
use super::sheet::{Draft, Skipped};
use crate::ledger::{GuestLedger, Ledger};
use crate::policy::{Actuator, Goal, GuestLimits, Policy};
use crate::situation::{Guest, Situation, Survey, Vmm};

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
    /// The guests by name, and of them those that something may be done to. The others are left with their reason.
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
        let survey = self.survey(guest, record).map(Cow::Borrowed);
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

    /// What is known of the guest's pages, when that is new enough: also than what was done to them last.
    fn survey(&self, guest: &'a Guest, record: Option<&GuestLedger>) -> Option<&'a Survey> {
        let survey = guest.survey.as_ref()?;
        let changed = record.and_then(|record| record.changed);
        let is_true = changed.is_none_or(|changed| self.ledger.uptime > changed + survey.age);
        (is_true && survey.age <= self.policy.merge.survey_age).then_some(survey)
    }
}

impl View<'_> {
    pub(super) fn name(&self) -> &str {
        &self.guest.name
    }

    /// What is known of its pages, as they will be after the steps that are drafted.
    pub(super) fn survey(&self) -> Result<&Survey, Because> {
        self.survey.as_deref().ok_or(Because::NotSurveyed)
    }

    /// It will have given the zeros of `ranges` back, which are in order.
    pub(super) fn drop_zeros(&mut self, ranges: &[ChunkRange]) {
        let Some(survey) = &mut self.survey else { return };
        for chunk in &mut survey.to_mut().chunks {
            if ChunkRange::any_has(ranges, chunk.index) {
                *chunk = chunk.without_zeros();
            }
        }
    }

    /// Whether its VMM takes calls that concern single chunks.
    pub(super) fn is_ours(&self) -> bool {
        self.guest.vmm == Vmm::Lighter
    }
}
