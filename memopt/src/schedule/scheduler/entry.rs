//! One schedule as time goes by: which of its times are decided, and what became of them.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::schedule::notice::{Due, Lost, Missed, Notice, Punctuality, Trigger};
use crate::schedule::ticks::{Passed, passed};
use crate::schedule::{Missing, Schedule};

/// How late a run may begin and still be on time. The fields of a cron expression are minutes.
const ON_TIME: Duration = Duration::from_secs(60);

/// What has become of a schedule since the scheduler was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Runs that were begun.
    pub begun: u64,
    /// Times at which it did not run.
    pub missed: u64,
    /// How late the last run began.
    pub lag_last: Duration,
    /// How late any run began.
    pub lag_max: Duration,
}

/// A schedule, and how far it is decided.
#[derive(Debug)]
pub(super) struct Entry {
    /// What was written.
    pub(super) schedule: Schedule,
    /// The time up to which everything is decided.
    pub(super) after: u64,
    /// The first time after that.
    pub(super) next: Option<u64>,
    /// The time that waits for another run to end.
    pub(super) queued: Option<u64>,
    /// What has become of it.
    pub(super) tally: Tally,
}

/// Where a time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// It was due before, and waited for another run.
    Queue,
    /// It has gone by just now, or while nobody was there.
    Clock,
}

impl Entry {
    /// `schedule`, of which everything until `after` is decided.
    pub(super) fn new(schedule: Schedule, after: u64) -> Self {
        let mut entry = Self { schedule, after, next: None, queued: None, tally: Tally::default() };
        entry.look_ahead();
        entry
    }

    /// Finds the first time that is not decided.
    pub(super) fn look_ahead(&mut self) {
        let is_on = self.schedule.enabled;
        self.next = is_on.then(|| self.schedule.cron.after(self.after)).flatten();
    }

    /// The times that have gone by until `wall`; they are decided by whoever takes them.
    pub(super) fn take_passed(&mut self, wall: u64) -> Option<Passed> {
        let passed = passed(&self.schedule.cron, self.next?, wall)?;
        self.after = passed.last;
        self.look_ahead();
        Some(passed)
    }

    /// Whether a time that nobody decided on for `lag` is lost.
    pub(super) fn is_too_late(&self, lag: Duration) -> bool {
        let late_max = match self.schedule.missed {
            Missing::Skip => ON_TIME,
            Missing::CatchUp { within } => within.max(ON_TIME),
        };
        lag > late_max || lag >= self.schedule.window
    }

    /// Says that it does not run at `count` times.
    pub(super) fn miss(&mut self, first: u64, last: u64, count: u64, why: Lost) -> Notice {
        self.tally.missed = self.tally.missed.saturating_add(count);
        Notice::Missed(Missed { schedule: self.schedule.name.clone(), first, last, count, why })
    }

    /// Has it run for `tick`, which was so long ago.
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
