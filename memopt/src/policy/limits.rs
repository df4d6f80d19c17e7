//! What holds for one guest, after all rules that match it.

use super::actuator::Actuators;
use super::rule::{DomainRule, GuestRule, PRIORITY};
use super::sections::Policy;
use crate::situation::Guest;
use crate::units::part;

/// What holds for one guest.
#[derive(Debug, Clone, PartialEq)]
pub struct GuestLimits {
    /// What it never gets less than: `min`, or the policy's floor.
    pub floor_bytes: u64,
    /// What it never gets more than: `max`, or all its RAM.
    pub max_bytes: u64,
    /// Its weight.
    pub priority: u32,
    /// Whether a rule would give it a merge domain, and does not for want of `user`: anybody could
    /// start a guest of that name.
    pub lacks_user: bool,
    /// Whether a rule would give it anything else, and does not for want of `user`.
    pub is_denied: bool,
    /// The guests that it may share pages with.
    pub merge_domain: Option<String>,
    /// Whether anything may be taken from it.
    pub take: bool,
    /// Whether anything may be done to it.
    pub optimize: bool,
    /// By what.
    pub actuators: Actuators,
}

impl Policy {
    /// What holds for `guest`.
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
