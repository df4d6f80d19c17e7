//! Rules for single guests: `[[guest]]` of a policy. `limits.rs` combines all rules that match a
//! guest.
//!
//! Any user of the host can choose the name of a guest that another VMM runs. So for such a guest a
//! rule without `user` only restricts: its restrictions hold for each guest that claims the name,
//! and what it grants does not apply.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::actuator::Actuators;
use crate::labels::LabelTest;
use crate::situation::Guest;
use crate::units::shortened;

/// The priority of a guest without one.
pub(super) const PRIORITY: u32 = 100;

/// A rule for the guests that match it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestRule {
    /// `name`: the guests with a matching name; all if absent.
    pub name: Option<NamePattern>,
    /// `label`: only guests whose labels meet all these conditions.
    pub labels: Vec<LabelTest>,
    /// `user`: only guests whose process belongs to this user, given by name or number. Without it
    /// the rule grants nothing to guests of other VMMs, whose users choose the names.
    pub user: Option<String>,
    /// `min`: the guest keeps at least this much, in bytes.
    pub min_bytes: Option<u64>,
    /// `max`: the guest gets at most this much, in bytes.
    pub max_bytes: Option<u64>,
    /// `priority`: the guest's weight when the host is short of memory, 1 to 10,000; 100 by
    /// default.
    pub priority: Option<u32>,
    /// `merge-domain`: replaces the domain that the guest was started with.
    pub merge_domain: Option<DomainRule>,
    /// `take`: `false` takes no memory from the guest and leaves its pages as they are; it still
    /// gets the memory that it needs.
    pub take: Option<bool>,
    /// `optimize`: `false` leaves the guest alone.
    pub optimize: Option<bool>,
    /// `actuators`: those that may be used on the guest, out of the policy's `actuators`.
    pub actuators: Option<Actuators>,
}

/// The guests that may share pages with a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainRule {
    /// No other guest. Written as `false`.
    Own,
    /// The guests of this merge domain.
    Named(String),
}

/// A guest's name, or a pattern in which one `*` stands for any text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern {
    before: String,
    after: Option<String>,
}

impl GuestRule {
    /// Returns whether the rule matches `guest`. It compares the name that the guest claims, not
    /// the name that lighter made unique.
    #[must_use]
    pub fn matches(&self, guest: &Guest) -> bool {
        self.name.as_ref().is_none_or(|name| name.matches(guest.claimed_name()))
            && self.labels.iter().all(|test| test.holds(&guest.labels))
            && self.user.as_ref().is_none_or(|user| {
                guest.user.as_ref().is_some_and(|of_guest| of_guest.is_called(user))
            })
    }

    pub(super) fn overrule(&mut self, later: &Self) {
        self.min_bytes = later.min_bytes.or(self.min_bytes);
        self.max_bytes = later.max_bytes.or(self.max_bytes);
        self.priority = later.priority.or(self.priority);
        self.take = later.take.or(self.take);
        self.optimize = later.optimize.or(self.optimize);
        if later.merge_domain.is_some() {
            self.merge_domain.clone_from(&later.merge_domain);
        }
        if later.actuators.is_some() {
            self.actuators.clone_from(&later.actuators);
        }
    }

    /// Applies only the restrictions of `later`. Returns whether `later` would also grant
    /// something.
    pub(super) fn restrict(&mut self, later: &Self) -> bool {
        if later.optimize == Some(false) {
            self.optimize = later.optimize;
        }
        if later.take == Some(false) {
            self.take = later.take;
        }
        if let Some(fewer) = &later.actuators {
            let all = self.actuators.as_ref().unwrap_or(fewer);
            self.actuators = Some(all.intersection(fewer).copied().collect());
        }
        if later.merge_domain.is_some() {
            // The rule does not grant the domain that it names, and the domain granted before no
            // longer applies.
            self.merge_domain = later.merge_domain.clone().filter(|it| *it == DomainRule::Own);
        }
        let least = |own: Option<u64>, other: u64| own.map_or(other, |own| own.min(other));
        self.max_bytes = later.max_bytes.map(|max| least(self.max_bytes, max)).or(self.max_bytes);
        let own = self.priority.unwrap_or(PRIORITY);
        self.priority = later.priority.filter(|it| *it < own).or(self.priority);
        later.min_bytes.is_some() || later.priority.is_some_and(|it| it > own)
    }
}

impl NamePattern {
    /// Returns whether the pattern matches the name.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        match &self.after {
            None => name == self.before,
            Some(after) => {
                name.strip_prefix(&self.before).is_some_and(|rest| rest.ends_with(after.as_str()))
            }
        }
    }
}

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (before, after) = match text.split_once('*') {
            Some((before, after)) => (before, Some(after)),
            None => (text, None),
        };
        if text.is_empty() || text.len() > 256 || after.is_some_and(|after| after.contains('*')) {
            let shown = shortened(text);
            return Err(format!(
                "`{shown}` names no guest: write a name, or one with a single `*` in it"
            ));
        }
        Ok(Self { before: before.to_owned(), after: after.map(str::to_owned) })
    }
}

impl fmt::Display for NamePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.after {
            None => f.write_str(&self.before),
            Some(after) => write!(f, "{}*{after}", self.before),
        }
    }
}

impl TryFrom<String> for NamePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<NamePattern> for String {
    fn from(pattern: NamePattern) -> Self {
        pattern.to_string()
    }
}
