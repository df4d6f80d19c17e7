//! Chooses the merge domain that uses the kernel's merging.
//!
//! The kernel has no notion of domains: it merges everything mergeable with each other, and finds
//! again whatever it has once merged. So the guests of at most one domain may be mergeable at a
//! time. The others only share pages with their templates.

use std::collections::BTreeMap;
use std::time::Duration;

use super::chunks;
use super::sheet::DomainChoice;
use super::view::{Context, View};
use crate::policy::{Actuator, Policy};
use crate::situation::{Backing, Hindrance, Situation};
use crate::units::{Size, signed};

/// Another domain replaces the present one when it returns this many times as much: unmerging the
/// present one first costs CPU time and memory.
const SWITCH_GAIN: f64 = 1.5;
/// In addition, the present domain must have been merged for this long, or have no mergeable guest
/// left.
const STAY: Duration = Duration::from_secs(3600);

/// The domain that is merged, and what prevents its merging.
pub(super) struct Domain {
    pub(super) choice: DomainChoice,
    /// Guests and processes whose pages the kernel could merge with the domain, for display: guests
    /// of other domains or of none, and processes that belong to no guest here.
    pub(super) exposed: Vec<String>,
}

/// Lists the guests and processes whose pages the kernel could merge with those of `domain`
/// although it must not, for display. The domain is not merged while there are any.
#[must_use]
pub fn exposed(situation: &Situation, policy: &Policy, domain: &str) -> Vec<String> {
    let mergeable = situation.guests.iter().filter(|guest| guest.is_mergeable);
    let guests = mergeable.filter_map(|guest| {
        let is_of_it = policy.limits(guest).merge_domain.as_deref() == Some(domain);
        let what = match guest.hindrance {
            _ if !is_of_it => "of another domain",
            Some(Hindrance::Watched) => "that is watched only",
            Some(Hindrance::Unreachable) if !guest.vmm.takes_chunks() => "with a silent monitor",
            _ => return None,
        };
        Some(format!("guest {} {what}", guest.name))
    });
    let mut guests: Vec<String> = guests.collect();
    guests.sort();
    guests.extend(situation.host.other_processes.iter().cloned());
    guests
}

/// Whether any guest is to be merged, if it pays.
#[must_use]
pub fn wants_merging(situation: &Situation, policy: &Policy) -> bool {
    policy.actuators.contains(&Actuator::Merge)
        && situation.host.ksm.is_some()
        && situation.guests.iter().any(|guest| policy.limits(guest).merge_domain.is_some())
}

impl Context<'_> {
    /// Returns what each domain saves or could save. Guests that cannot be acted on now count with
    /// what they have merged.
    fn potentials<'v>(&self, all: &'v [View<'_>], free: &[View<'_>]) -> BTreeMap<&'v str, i64> {
        let mut found: BTreeMap<&str, i64> = BTreeMap::new();
        for view in all {
            let Some(domain) = view.limits.merge_domain.as_deref() else { continue };
            let is_free = free.iter().any(|other| std::ptr::eq(other.guest, view.guest));
            let merges = view.guest.is_mergeable || (is_free && self.can_merge(view));
            if !merges {
                continue;
            }
            let merged = signed(view.guest.cost.merged_bytes.unwrap_or(0));
            let potential = match view.survey() {
                Ok(survey) if is_free => {
                    let sorted = chunks::sort(survey, self.policy);
                    // The part that was not sampled is assumed to be like the part that was.
                    let seen = survey.sampled.clamp(0.01, 1.0);
                    let bytes = sorted.merge.bytes.saturating_add(sorted.stay.bytes) as f64 / seen;
                    (bytes as i64).min(signed(view.guest.memory_bytes))
                }
                _ => merged,
            };
            let sum = found.entry(domain).or_default();
            *sum = sum.saturating_add(potential.max(0));
        }
        found
    }

    /// Whether the kernel is able and allowed to merge pages of this guest.
    pub(super) fn can_merge(&self, view: &View<'_>) -> bool {
        matches!(view.guest.backing, Backing::Anonymous | Backing::Template)
            && (view.takes_chunks() || view.guest.is_mergeable)
            && view.guest.merged_instead.is_none()
            && self.may_take(view, Actuator::Merge).is_ok()
    }

    /// Chooses the domain to be merged: the one with the most to gain, or the present one unless it
    /// is far behind.
    pub(super) fn choose_domain(&self, all: &[View<'_>], free: &[View<'_>]) -> Option<Domain> {
        self.situation.host.ksm?;
        let potentials = self.potentials(all, free);
        let present = self.present_domain(&potentials);
        // Of equal domains, the first by name.
        let best = potentials.iter().rev().max_by_key(|(_, bytes)| **bytes)?;
        let (best, most) = (*best.0, *best.1);
        let enough = signed(self.policy.merge.gain_min_bytes);
        let (name, reason) = match present {
            Some((name, bytes)) if name == best => {
                (name, format!("it is merged already, and has the most to gain: {}", Size(bytes)))
            }
            Some((name, bytes)) if self.stays(name, bytes, most, all) => {
                let (bytes, most) = (Size(bytes), Size(most));
                (
                    name,
                    format!(
                        "it is merged already ({bytes}), and {best} has not enough more ({most})"
                    ),
                )
            }
            // If guests are already mergeable, a domain is chosen even without a gain. Otherwise
            // other guests that share pages with them would go unreported.
            _ if most < enough && !all.iter().any(|view| view.guest.is_mergeable) => return None,
            _ => (best, format!("it has the most to gain: {}", Size(most))),
        };
        let others = potentials.iter().filter(|(other, _)| **other != name);
        let choice = DomainChoice {
            domain: name.to_owned(),
            potential_bytes: potentials.get(name).copied().unwrap_or(0),
            reason,
            others: others.map(|(other, bytes)| ((*other).to_owned(), *bytes)).collect(),
        };
        let exposed = exposed(self.situation, self.policy, name);
        Some(Domain { choice, exposed })
    }

    /// Returns the domain that is merged now, if it still has guests.
    fn present_domain<'v>(&self, potentials: &BTreeMap<&'v str, i64>) -> Option<(&'v str, i64)> {
        let remembered = self.ledger.ksm.domain.as_ref().map(|(name, _)| name);
        let present = self.situation.host.merged_domain.as_ref().or(remembered)?;
        potentials.get_key_value(present.as_str()).map(|(name, bytes)| (*name, *bytes))
    }

    /// Whether the domain `name`, with `bytes` to gain, stays although another has `most`.
    fn stays(&self, name: &str, bytes: i64, most: i64, all: &[View<'_>]) -> bool {
        let is_close = bytes as f64 * SWITCH_GAIN >= most as f64;
        let is_fresh = self.ledger.ksm.domain.as_ref().is_some_and(|(domain, since)| {
            domain == name && self.ledger.uptime.saturating_sub(*since) < STAY
        });
        let is_of_it = |view: &&View<'_>| view.limits.merge_domain.as_deref() == Some(name);
        let is_marked = all.iter().filter(is_of_it).any(|view| view.guest.is_mergeable);
        is_close || (is_fresh && is_marked)
    }
}
