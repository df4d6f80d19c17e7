//! One schedule over time: which of its times are decided, and with what result.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::schedule::notice::{Due, Lost, Missed, Notice, Punctuality, Trigger};
use crate::schedule::ticks::{Passed, passed};
use crate::schedule::{Missing, Schedule};

/// How late a run may begin and still be on time: the resolution of a cron expression is a minute.
const ON_TIME: Duration = Duration::from_secs(60);

/// A schedule's results since the scheduler was created.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Runs that began.
    pub begun: u64,
    /// Times at which the schedule did not run.
    pub missed: u64,
    /// How late the last run began.
    pub lag_last: Duration,
    /// How late any run began, at most.
    pub lag_max: Duration,
}

/// A schedule, and up to when it is decided.
#[derive(Debug)]
pub(super) struct Entry {
    /// The schedule as configured.
    pub(super) schedule: Schedule,
    /// The time until which everything is decided, in Unix seconds.
    pub(super) after: u64,
    /// The first time after `after`.
    pub(super) next: Option<u64>,
    /// The due time that waits for another run to end.
    pub(super) queued: Option<u64>,
    /// The schedule's results so far.
    pub(super) tally: Tally,
}

/// Why a time has to be decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// It was due earlier, and waited for another run.
    Queue,
    /// It has just passed, or passed while no scheduler ran.
    Clock,
}

impl Entry {
    /// Creates the entry of `schedule`, decided until `after`.
    pub(super) fn new(schedule: Schedule, after: u64) -> Self {
        let mut entry = Self { schedule, after, next: None, queued: None, tally: Tally::default() };
        entry.find_next();
        entry
    }

    /// Finds the first undecided time.
    pub(super) fn find_next(&mut self) {
        let is_on = self.schedule.enabled;
        self.next = is_on.then(|| self.schedule.cron.after(self.after)).flatten();
    }

    /// Returns the times that have passed until `wall`. They count as decided: the caller must
    /// decide them.
    pub(super) fn take_passed(&mut self, wall: u64) -> Option<Passed> {
        let passed = passed(&self.schedule.cron, self.next?, wall)?;
        self.after = passed.last;
        self.find_next();
        Some(passed)
    }

    /// Returns whether a time that was not decided for `lag` is missed.
    pub(super) fn is_too_late(&self, lag: Duration) -> bool {
        let late_max = match self.schedule.missed {
            Missing::Skip => ON_TIME,
            Missing::CatchUp { within } => within.max(ON_TIME),
        };
        lag > late_max || lag >= self.schedule.window
    }

    /// Counts `count` missed times, and returns the notice.
    pub(super) fn miss(&mut self, first: u64, last: u64, count: u64, why: Lost) -> Notice {
        self.tally.missed = self.tally.missed.saturating_add(count);
        Notice::Missed(Missed { schedule: self.schedule.name.clone(), first, last, count, why })
    }

    /// Begins the run for `tick`, which was `lag` ago.
    pub(super) fn begin(&mut self, tick: u64, lag: Duration, origin: Origin) -> Due {
        self.tally.begun += 1;
        self.tally.lag_last = lag;
        self.tally.lag_max = self.tally.lag_max.max(lag);
        let punctuality = if origin == Origin::Queue {
            Punctuality::Queued
        } else if lag > ON_TIME {
            Punctuality::CaughtUp
        } else {
            Punctuality::OnTime
        };
        Due {
            trigger: Trigger::Schedule { name: self.schedule.name.clone(), tick },
            lag,
            window: Some(self.schedule.window.saturating_sub(lag)),
            punctuality,
        }
    }
}
