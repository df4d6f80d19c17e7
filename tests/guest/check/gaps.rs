//! The times in which a thread of the program did not run.

/// A gap is counted in the total from this part of a second on.
const COUNTED_PART: u64 = 1000;

/// The gaps of a thread, in ticks of the time stamp counter.
#[derive(Clone, Copy, Default)]
pub struct Gaps {
    /// The longest.
    pub longest: u64,
    /// The longest of the others.
    pub second: u64,
    /// All of a millisecond and more together.
    pub total: u64,
}

impl Gaps {
    /// Adds a gap, on a counter of `hz` ticks per second.
    pub fn add(&mut self, ticks: u64, hz: u64) {
        self.second = self.second.max(ticks.min(self.longest));
        self.longest = self.longest.max(ticks);
        if ticks >= hz / COUNTED_PART {
            self.total = self.total.saturating_add(ticks);
        }
    }

    /// The worse of two threads' in each figure.
    pub fn worse(self, other: Self) -> Self {
        Self {
            longest: self.longest.max(other.longest),
            second: self.second.max(other.second),
            total: self.total.max(other.total),
        }
    }
}
