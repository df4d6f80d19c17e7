//! What is said of single guests: `[[guest]]` of a policy. What comes of all rules together is in
//! `limits.rs`.
//!
//! A user of the host chooses the name of a guest that another program runs when he starts it. So
//! for such a guest a rule that does not say `user` only restricts: what it forbids holds for each
//! guest that claims the name, and what it would give it does not.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::actuator::Actuators;
use crate::labels::LabelTest;
use crate::situation::Guest;
use crate::units::shortened;

/// The priority of a guest of which nothing is said.
pub(super) const PRIORITY: u32 = 100;

/// What is said of the guests that match.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestRule {
    /// `name`: which guests, by their name; all when absent.
    pub name: Option<NamePattern>,
    /// `label`: and by their labels, all of which must hold.
    pub labels: Vec<LabelTest>,
    /// `user`: and by whose processes they are, by name or number. Without it nothing is given to
    /// guests of other programs, which choose their names themselves.
    pub user: Option<String>,
    /// `min`: it keeps at least so much.
    pub min_bytes: Option<u64>,
    /// `max`: it gets at most so much.
    pub max_bytes: Option<u64>,
    /// `priority`: its weight when the host is short, 1 to 10,000; 100 by default.
    pub priority: Option<u32>,
    /// `merge-domain`: instead of what it was started with.
    pub merge_domain: Option<DomainRule>,
    /// `take`: `false` takes nothing from it and leaves its pages as they are; what it needs it
    /// gets.
    pub take: Option<bool>,
    /// `optimize`: `false` leaves it alone.
    pub optimize: Option<bool>,
    /// `actuators`: what may be used on it, of what may be used at all.
    pub actuators: Option<Actuators>,
}

/// Which guests may share pages with one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DomainRule {
    /// None: its pages are its own. Written as `false`.
    Own,
    /// Those of this domain.
    Named(String),
}

/// A name, or many: one `*` stands for any letters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NamePattern {
    before: String,
    after: Option<String>,
}

impl GuestRule {
    /// Whether it speaks of `guest`: by the name that it claims, whatever it is called to tell it
    /// from others.
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

    /// Takes in what of `later` forbids, and takes away. Whether there is more in it, which would
    /// give.
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
            // A domain of that name is not given, and one that was given before is not meant any
            // more.
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
    /// Whether it means the guest of this name.
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
