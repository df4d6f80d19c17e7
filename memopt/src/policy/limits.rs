//! The limits of one guest, combined from all rules that match it.

use super::actuator::Actuators;
use super::rule::{DomainRule, GuestRule, PRIORITY};
use super::sections::Policy;
use crate::situation::Guest;
use crate::units::part;

/// The limits of one guest.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestLimits {
    /// The guest never gets less than this: `min`, or the policy's floor.
    pub floor_bytes: u64,
    /// The guest never gets more than this: `max`, or all its RAM.
    pub max_bytes: u64,
    /// The guest's weight when the host is short of memory.
    pub priority: u32,
    /// Whether a rule names a merge domain that the guest does not get because the rule lacks
    /// `user`: any user could start a guest of that name.
    pub lacks_user: bool,
    /// Whether a rule would grant anything else that the guest does not get because the rule lacks
    /// `user`.
    pub is_denied: bool,
    /// The merge domain, whose guests may share pages with this one.
    pub merge_domain: Option<String>,
    /// Whether memory may be taken from the guest.
    pub take: bool,
    /// Whether lighter may optimize the guest's memory at all.
    pub optimize: bool,
    /// The actuators that may be used on the guest.
    pub actuators: Actuators,
}

impl Policy {
    /// Returns the limits of `guest`.
    #[must_use]
    pub fn limits(&self, guest: &Guest) -> GuestLimits {
        let mut said = GuestRule::default();
        let (mut lacks_user, mut is_denied) = (false, false);
        for rule in self.guests.iter().filter(|rule| rule.matches(guest)) {
            let may_give = guest.vmm.is_named_by_operator() || rule.user.is_some();
            if rule.merge_domain.is_some() {
                lacks_user = !may_give && matches!(rule.merge_domain, Some(DomainRule::Named(_)));
            }
            if may_give {
                said.overrule(rule);
            } else {
                is_denied |= said.restrict(rule);
            }
        }
        let max_bytes = said.max_bytes.unwrap_or(u64::MAX).min(guest.memory_bytes);
        let floor_bytes = part(max_bytes, self.balloon.floor).max(said.min_bytes.unwrap_or(0));
        let actuators = match said.actuators {
            Some(own) => own.intersection(&self.actuators).copied().collect(),
            None => self.actuators.clone(),
        };
        GuestLimits {
            floor_bytes: floor_bytes.min(max_bytes),
            max_bytes,
            priority: said.priority.unwrap_or(PRIORITY).max(1),
            lacks_user,
            is_denied,
            merge_domain: match said.merge_domain {
                None => guest.merge_domain.clone(),
                Some(DomainRule::Own) => None,
                Some(DomainRule::Named(name)) => Some(name),
            },
            take: said.take.unwrap_or(true) && self.scope.matches(&guest.labels),
            optimize: said.optimize.unwrap_or(true),
            actuators,
        }
    }
}
