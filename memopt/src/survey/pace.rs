//! Keeps work within a share of a CPU.

use std::time::Duration;

/// The target duration of a batch: short, so that other work does not wait long for the CPU, and
/// long compared to the cost of a sleep.
const BATCH: Duration = Duration::from_millis(5);
/// Pages in the first batch: 5 ms at 1.6 GiB/s.
const FIRST_PAGES: usize = 2048;
/// The largest batch, in pages.
const PAGES_MAX: usize = 1 << 18;

/// Decides how many pages to scan next, and how long to sleep before that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    share: f64,
    pages: usize,
}

impl Pace {
    /// Creates a pace of `share` of one CPU, clamped to between 0.001 and 1.
    #[must_use]
    pub fn new(share: f64) -> Self {
        let share = if share.is_finite() { share.clamp(0.001, 1.0) } else { 0.001 };
        Self { share, pages: FIRST_PAGES }
    }

    /// Returns how many pages to scan next.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.pages
    }

    /// Records that the last batch took `worked` of CPU time, and returns how long to sleep now.
    pub fn rest(&mut self, worked: Duration) -> Duration {
        let factor = BATCH.as_secs_f64() / worked.as_secs_f64().max(1e-6);
        let pages = self.pages as f64 * factor.clamp(0.5, 2.0);
        self.pages = (pages as usize).clamp(1, PAGES_MAX);
        worked.mul_f64(1.0 / self.share - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rests_nine_times_as_long_as_it_works_for_a_tenth() {
        let mut pace = Pace::new(0.1);
        assert_eq!(pace.rest(Duration::from_millis(10)), Duration::from_millis(90));
        assert_eq!(pace.pages(), FIRST_PAGES / 2, "the batch took twice as long as it should");
        assert_eq!(Pace::new(1.0).rest(Duration::from_secs(1)), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn any_times_give_a_batch_and_a_rest(share: f64, worked in proptest::collection::vec(0u64..10_000_000_000, 0..20)) {
            let mut pace = Pace::new(share);
            for nanoseconds in worked {
                let rest = pace.rest(Duration::from_nanos(nanoseconds));
                prop_assert!(pace.pages() >= 1 && rest <= Duration::from_secs(10_000));
            }
        }
    }
}
