//! So many pages per second, paced by the TSC.

/// Longest time that is caught up with after a stall, as a part of a second. What a paused guest
/// did not write in its pause is not owed.
const CATCH_UP_PART: u64 = 10;

/// Turns elapsed time into work that is due.
pub struct Pace {
    hz: u64,
    credit: u64,
}

impl Pace {
    /// For a counter of `hz` ticks per second.
    pub fn new(hz: u64) -> Self {
        Self { hz, credit: 0 }
    }

    /// Adds `elapsed` ticks at `rate` pages per second; tells whether a page is due, and takes it.
    pub fn take(&mut self, elapsed: u64, rate: u64) -> bool {
        let most = (rate / CATCH_UP_PART).max(1) * self.hz;
        let earned = elapsed.min(self.hz / CATCH_UP_PART) * rate;
        self.credit = (self.credit + earned).min(most);
        let due = self.credit >= self.hz && rate > 0;
        if due {
            self.credit -= self.hz;
        }
        due
    }
}
