//! One schedule: its times, window, budget, goal and guests.

use std::fmt;
use std::time::Duration;

use super::cron::Cron;
use crate::labels::Selector;

/// One `[[schedule]]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The schedule's name, unique in the file.
    pub name: String,
    /// When the schedule is due.
    pub cron: Cron,
    /// How long after its due time a run may work. A run that begins late still ends at that time.
    pub window: Duration,
    /// What a run may use.
    pub budget: Budget,
    /// The goal of its runs.
    pub goal: GoalText,
    /// The guests to optimise.
    pub guests: Selector,
    /// Whether the schedule is in use; a disabled one is never due.
    pub enabled: bool,
    /// What happens if another run is under way when it is due.
    pub overlap: Overlap,
    /// What happens if no scheduler ran when it was due.
    pub missed: Missing,
}

/// How much of the host the kernel's merging thread (ksmd) may use in one run. The policy decides
/// absent values.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Share of one CPU, in percent (1 to 100).
    pub cpu_percent: Option<u8>,
    /// Pages of 4 KiB that ksmd may scan per second.
    pub pages_per_second: Option<u32>,
    /// Total CPU time, in seconds.
    pub cpu_seconds: Option<u32>,
}

/// A goal as written, such as `free 8GiB`, `max density` or `keep 15% headroom`. The caller of
/// `read` validates it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GoalText(pub(crate) String);

impl GoalText {
    /// Returns the goal as written.
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

/// What happens to a schedule that is due while another run is under way: a host has one run at a
/// time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Overlap {
    /// It runs after the other run, if its own window is still open.
    #[default]
    Queue,
    /// It does not run this time.
    Skip,
}

/// What happens to a schedule that was due while no scheduler ran: the node was down, the host
/// slept, or its clock was set forward.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Missing {
    /// It does not run this time.
    #[default]
    Skip,
    /// It runs once, as soon as the scheduler runs again, if that is soon enough.
    CatchUp {
        /// The longest delay with which it may still begin.
        within: Duration,
    },
}
