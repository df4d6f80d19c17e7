//! Which merge domain uses the kernel's merging.
//!
//! The kernel knows no domains: all that it may merge, it merges with each other, and what it has
//! merged once it finds again. So the guests of one domain at most may be mergeable at a time. The
//! others share with their templates.

use std::collections::BTreeMap;
use std::time::Duration;

use super::chunks;
use super::sheet::DomainChoice;
use super::view::{Context, View};
use crate::policy::{Actuator, Policy};
use crate::situation::{Backing, Hindrance, Situation};
use crate::units::{Size, signed};

/// Another domain gets the kernel's merging when it brings so many times what the present one does:
/// taking the present one apart costs CPU time and memory first.
const SWITCH_GAIN: f64 = 1.5;
/// And when the present one has had it for so long, or no guest of it is mergeable any more.
const STAY: Duration = Duration::from_secs(3600);

/// The domain that is merged, and who stands against it.
pub(super) struct Domain {
    pub(super) choice: DomainChoice,
    /// Whose pages the kernel could merge with it, for people: guests of other domains, or of none,
    /// and processes of nobody here.
    pub(super) exposed: Vec<String>,
}

/// Whose pages the kernel could merge with those of `domain`, though they are not to be, for
/// people. As long as there is somebody, it is not merged.
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
    guests.extend(situation.host.strangers.iter().cloned());
    guests
}

/// Whether anybody is to be merged, if it pays.
#[must_use]
pub fn wants_merging(situation: &Situation, policy: &Policy) -> bool {
    policy.actuators.contains(&Actuator::Merge)
        && situation.host.ksm.is_some()
        && situation.guests.iter().any(|guest| policy.limits(guest).merge_domain.is_some())
}

impl Context<'_> {
    /// What each domain has, and could have. Guests that cannot be touched now count with what they
    /// have merged.
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
                    // What was not looked at is taken to be like what was.
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

    /// Whether the kernel can merge pages of this guest, and may.
    pub(super) fn can_merge(&self, view: &View<'_>) -> bool {
        matches!(view.guest.backing, Backing::Anonymous | Backing::Template)
            && (view.takes_chunks() || view.guest.is_mergeable)
            && view.guest.merged_instead.is_none()
            && self.may_take(view, Actuator::Merge).is_ok()
    }

    /// The domain to be merged: the one with the most to gain, but the present one as long as it is
    /// not far behind.
    pub(super) fn choose_domain(&self, all: &[View<'_>], free: &[View<'_>]) -> Option<Domain> {
        self.situation.host.ksm?;
        let potentials = self.potentials(all, free);
        let present = self.present_domain(&potentials);
        // The first by name of those that are equal.
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
            // What is mergeable already has to belong to somebody, or nobody would be told that
            // others share with it.
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

    /// The domain that is merged now, as long as it has guests.
    fn present_domain<'v>(&self, potentials: &BTreeMap<&'v str, i64>) -> Option<(&'v str, i64)> {
        let remembered = self.ledger.ksm.domain.as_ref().map(|(name, _)| name);
        let present = self.situation.host.merged_domain.as_ref().or(remembered)?;
        potentials.get_key_value(present.as_str()).map(|(name, bytes)| (*name, *bytes))
    }

    /// Whether the domain `name`, with so much to gain, stays, where another has `most`.
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
