//! One schedule: when, for how long, how much, what for and for whom.

use std::fmt;
use std::time::Duration;

use super::cron::Cron;
use crate::labels::Selector;

/// One `[[schedule]]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// What it is called: one schedule's only.
    pub name: String,
    /// When it is due.
    pub cron: Cron,
    /// How long after it was due it may work. Work that begins late ends all the same.
    pub window: Duration,
    /// How much it may use.
    pub budget: Budget,
    /// What it is for.
    pub goal: GoalText,
    /// The guests it is for.
    pub guests: Selector,
    /// Whether it is ever due.
    pub enabled: bool,
    /// What becomes of it when something else runs when it is due.
    pub overlap: Overlap,
    /// What becomes of it when nobody was there when it was due.
    pub missed: Missing,
}

/// How much of the host the kernel's merging thread (ksmd) may use in one run. What is absent is
/// left to the policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Share of one CPU, in percent (1 to 100).
    pub cpu_percent: Option<u8>,
    /// Pages of 4 KiB that are looked at in a second.
    pub pages_per_second: Option<u32>,
    /// CPU time in all, in seconds.
    pub cpu_seconds: Option<u32>,
}

/// A goal as it was written, such as `free 8GiB`, `max density` or `keep 15% headroom`. Whoever
/// reads a file says what is a goal.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GoalText(pub(crate) String);

impl GoalText {
    /// The goal as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for GoalText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What becomes of a schedule that is due while another run is under way: there is one run at a
/// time on a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overlap {
    /// It runs after that, as long as its own window lasts.
    #[default]
    Queue,
    /// It does not run this time.
    Skip,
}

/// What becomes of a schedule that was due while nobody was there: the node was down, the host
/// slept, or its clock was put forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Missing {
    /// It does not run this time.
    #[default]
    Skip,
    /// It runs as soon as somebody is there again, once, if that is soon enough.
    CatchUp {
        /// How late it may begin.
        within: Duration,
    },
}
