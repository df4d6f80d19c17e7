//! The simulated guest: how many distinct pages it writes in a time.

use super::Written;

/// A time after which a guest has written all the pages that it writes often.
const LONG_SECONDS: f64 = 60.0;
/// Steps of the numerical mean over a round.
const STEPS: u32 = 32;

/// Distinct pages that a guest writes, by the length of the time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Writes<'a> {
    /// Measured windows, the shortest first.
    measured: &'a [Written],
    /// All pages there are.
    most: f64,
}

impl<'a> Writes<'a> {
    /// Creates the model of a guest with `most` pages from windows, the shortest first.
    pub(super) fn new(measured: &'a [Written], most: u64) -> Self {
        Self { measured, most: most as f64 }
    }

    /// Returns the distinct pages that the guest writes within `seconds`: between two windows by
    /// interpolation, after the last one by the trend.
    pub(super) fn within(&self, seconds: f64) -> f64 {
        let (mut time, mut pages) = (0.0, 0.0);
        for window in self.measured {
            let more = window.pages as f64 - pages;
            if seconds < window.seconds {
                let share = (seconds - time) / (window.seconds - time);
                return (pages + more * share).clamp(0.0, self.most);
            }
            (time, pages) = (window.seconds, window.pages as f64);
        }
        (pages + self.after_the_last(seconds - time)).clamp(0.0, self.most)
    }

    /// Returns the pages that are first written in the `seconds` after the last window.
    ///
    /// The fewer pages the guest has left to write for the first time, the fewer it writes: for
    /// writes at random places of a working set, the rate falls exponentially. The rates in the
    /// last two gaps between windows tell how fast. If the rate did not fall, it stays.
    fn after_the_last(&self, seconds: f64) -> f64 {
        let Some([gap, last]) = self.last_gaps() else { return 0.0 };
        if last.rate <= 0.0 {
            return 0.0;
        }
        let falls = (gap.rate / last.rate).max(1.0).ln() / (last.middle - gap.middle);
        let rate = last.rate * (-falls * (last.end - last.middle)).exp();
        // Below this, the formula divides two numbers near zero.
        if falls * seconds < 1e-6 {
            return rate * seconds;
        }
        rate * (1.0 - (-falls * seconds).exp()) / falls
    }

    /// Returns the last two gaps between windows, the first of which begins at zero; none without
    /// windows.
    fn last_gaps(&self) -> Option<[Gap; 2]> {
        let mut gaps = [None, None];
        let mut from = Written { seconds: 0.0, pages: 0 };
        for to in self.measured.iter().filter(|window| window.seconds > 0.0) {
            gaps = [gaps[1], Some(Gap::between(from, *to))];
            from = *to;
        }
        let [before, last] = gaps;
        let last = last?;
        // One window alone shows no trend.
        let before = before.unwrap_or(Gap { middle: last.middle - 1.0, ..last });
        Some([before, last])
    }

    /// Returns the pages that are dirty after a round of `seconds` that sent `sent` of them.
    ///
    /// A page that is sent counts as dirty only if it is written after that, on average in the
    /// second half of the round; any other page, if it is written at any time of the round. So the
    /// result lies between the mean over the round and all that was written in it, depending on
    /// the share of the working set that was sent.
    pub(super) fn left_by_round(&self, seconds: f64, sent: f64) -> f64 {
        let all = self.within(seconds);
        let working_set = self.within(LONG_SECONDS).max(1.0);
        let steps = f64::from(STEPS);
        let at = |step: u32| self.within(seconds * (f64::from(step) + 0.5) / steps);
        let mean = (0..STEPS).map(at).sum::<f64>() / steps;
        all - (sent / working_set).min(1.0) * (all - mean)
    }
}

/// The time between two windows' ends.
#[derive(Debug, Clone, Copy)]
struct Gap {
    middle: f64,
    end: f64,
    /// Pages per second that were written for the first time.
    rate: f64,
}

impl Gap {
    fn between(from: Written, to: Written) -> Self {
        let time = (to.seconds - from.seconds).max(f64::MIN_POSITIVE);
        let pages = to.pages.saturating_sub(from.pages) as f64;
        Self { middle: (from.seconds + to.seconds) / 2.0, end: to.seconds, rate: pages / time }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 1 << 18;

    fn windows(of: impl Fn(f64) -> f64) -> Vec<Written> {
        let window = |seconds: f64| Written { seconds, pages: of(seconds) as u64 };
        [0.03, 0.1, 0.3, 1.0, 2.0].map(window).to_vec()
    }

    fn is_near(value: f64, expected: f64) {
        let error = (value - expected).abs() / expected.max(1.0);
        assert!(error < 0.03, "{value} instead of {expected}");
    }

    #[test]
    fn a_guest_that_writes_new_pages_goes_on_doing_so() {
        let measured = windows(|seconds| seconds * 5000.0);
        let writes = Writes::new(&measured, MOST);
        for seconds in [0.01, 0.5, 2.0, 10.0] {
            is_near(writes.within(seconds), seconds * 5000.0);
        }
        assert_eq!(writes.within(1e6), MOST as f64, "there are no more");
        assert_eq!(writes.within(0.0), 0.0);
    }

    #[test]
    fn a_working_set_that_was_written_whole_does_not_grow() {
        let measured = windows(|seconds| (seconds * 20_000.0).min(16_384.0));
        let writes = Writes::new(&measured, MOST);
        is_near(writes.within(0.2), 4000.0);
        is_near(writes.within(30.0), 16_384.0);
    }

    #[test]
    fn writes_at_random_places_fill_the_working_set() {
        let set = 65_536.0;
        let written = |seconds: f64| set * (1.0 - (-seconds * 30_000.0 / set).exp());
        let measured = windows(written);
        let writes = Writes::new(&measured, MOST);
        for seconds in [3.0, 5.0, 20.0] {
            is_near(writes.within(seconds), written(seconds));
        }
    }

    #[test]
    fn an_idle_guest_writes_nothing() {
        let measured = windows(|_| 0.0);
        assert_eq!(Writes::new(&measured, MOST).within(100.0), 0.0);
        assert_eq!(Writes::new(&[], MOST).within(100.0), 0.0);
        let one = [Written { seconds: 1.0, pages: 1000 }];
        is_near(Writes::new(&one, MOST).within(2.0), 2000.0);
    }

    #[test]
    fn pages_that_are_sent_late_in_a_round_are_dirty_less_often() {
        let measured = windows(|seconds| (seconds * 20_000.0).min(16_384.0));
        let writes = Writes::new(&measured, MOST);
        is_near(writes.left_by_round(0.2, 0.0), 4000.0);
        is_near(writes.left_by_round(0.2, MOST as f64), 2000.0);
        assert!(writes.left_by_round(10.0, 16_384.0) > 15_000.0);
    }
}
