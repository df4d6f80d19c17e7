//! What a survey of guests' pages would read, where merging cannot be estimated without one.

use super::view::Context;
use crate::policy::{Actuator, GuestLimits};
use crate::situation::{Backing, Guest, Survey};

/// Whether the content of the guest's pages matters for a plan.
pub(crate) fn pages_matter(guest: &Guest, limits: &GuestLimits) -> bool {
    guest.hindrance.is_none()
        && matches!(guest.backing, Backing::Anonymous | Backing::Template)
        && limits.optimize
        && match guest.vmm.takes_chunks() {
            true => {
                use Actuator::{Huge, Merge, Template, Zeros};
                may_be_any(limits, &[Merge, Huge, Template, Zeros])
            }
            // Only the guest's own program can mark its memory.
            false => {
                guest.is_mergeable
                    && limits.merge_domain.is_some()
                    && may_be_any(limits, &[Actuator::Merge, Actuator::Huge])
            }
        }
}

fn may_be_any(limits: &GuestLimits, actuators: &[Actuator]) -> bool {
    actuators.iter().any(|actuator| limits.actuators.contains(actuator))
}

impl Context<'_> {
    /// Returns the guest memory that a survey would read; 0 if every guest that may be merged was
    /// surveyed recently, or none may be.
    pub(super) fn unsurveyed_bytes(&self) -> u64 {
        if self.situation.host.ksm.is_none() {
            return 0;
        }
        let guests = self.situation.guests.iter().map(|guest| (guest, self.policy.limits(guest)));
        let surveyed: Vec<_> =
            guests.filter(|(guest, limits)| pages_matter(guest, limits)).collect();
        let lacks_survey = |(guest, limits): &(&Guest, GuestLimits)| {
            let may_be_merged = limits.take
                && limits.merge_domain.is_some()
                && guest.merged_instead.is_none()
                && limits.actuators.contains(&Actuator::Merge);
            may_be_merged && !guest.survey.as_ref().is_some_and(Survey::is_recent)
        };
        if !surveyed.iter().any(lacks_survey) {
            return 0;
        }
        let held = surveyed.iter().map(|(guest, _)| guest.cost.resident_bytes);
        held.fold(0, u64::saturating_add)
    }
}
