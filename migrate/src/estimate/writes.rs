//! The simulated guest: how many distinct pages it writes in a time.

use super::Written;

/// A time after which a guest has written all the pages that it writes often.
const LONG_SECONDS: f64 = 60.0;
/// Steps of the numerical mean over a round.
const STEPS: u32 = 32;

/// Pages, by the chunks that they are in.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Pages {
    /// In chunks that are written again and again.
    pub(super) hot: f64,
    /// In all other chunks.
    pub(super) cold: f64,
}

impl Pages {
    pub(super) fn sum(self) -> f64 {
        self.hot + self.cold
    }
}

/// The order in which a guest writes its pages. It matters since a page that is written and then
/// sent is not dirty.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Order {
    /// At random places.
    Random,
    /// Page after page, from the first to the last and from the first again: a round has sent the
    /// pages that are written next long before, if it has not sent all there are.
    Sweep {
        /// The share of the pages that are both written and sent in a round which the guest is the
        /// first to reach: it depends on where it is when the round begins.
        ahead: f64,
    },
}

/// Distinct pages that a guest writes, by the length of the time. Hot chunks and the others have
/// curves of their own: what is written again and again is soon written whole, and would hide that
/// the rest goes on growing.
#[derive(Debug, Clone)]
pub(super) struct Writes {
    hot: Curve,
    cold: Curve,
    /// All pages there are.
    most: f64,
}

impl Writes {
    /// Creates the model of a guest with `most` pages from windows, the shortest first.
    pub(super) fn new(measured: &[Written], most: u64) -> Self {
        let cold = |window: &Written| window.pages.saturating_sub(window.hot_pages);
        Self {
            hot: Curve::new(measured, |window| window.hot_pages.min(window.pages)),
            cold: Curve::new(measured, cold),
            most: most as f64,
        }
    }

    /// Returns the distinct pages that the guest writes within `seconds`.
    pub(super) fn within(&self, seconds: f64) -> Pages {
        let hot = self.hot.within(seconds).min(self.most);
        let cold = self.cold.within(seconds).min(self.most - hot);
        Pages { hot, cold }
    }

    /// Returns the pages that are dirty after a round of `seconds` that sent `sent` of them, if the
    /// guest writes in this `order`.
    pub(super) fn left_by_round(&self, seconds: f64, sent: Pages, order: Order) -> Pages {
        let all = self.within(seconds);
        let left = |curve: &Curve, sent: f64, all: f64| match order {
            Order::Random => all - curve.spared_at_random(seconds, sent, all),
            Order::Sweep { ahead } => all - ahead * curve.met_by_sweep(sent, all),
        };
        Pages {
            hot: left(&self.hot, sent.hot, all.hot),
            cold: left(&self.cold, sent.cold, all.cold),
        }
    }
}

/// Distinct pages that are written within a time, of some chunks.
#[derive(Debug, Clone)]
struct Curve(Vec<Window>);

/// The pages that were written in the first `seconds`.
#[derive(Debug, Clone, Copy, Default)]
struct Window {
    seconds: f64,
    pages: f64,
}

impl Curve {
    fn new(measured: &[Written], pages: impl Fn(&Written) -> u64) -> Self {
        let windows = measured.iter().filter(|window| window.seconds > 0.0);
        let window =
            |window: &Written| Window { seconds: window.seconds, pages: pages(window) as f64 };
        Self(windows.map(window).collect())
    }

    /// Returns the distinct pages that are written within `seconds`: between two windows by
    /// interpolation, after the last one by the trend.
    fn within(&self, seconds: f64) -> f64 {
        let mut from = Window::default();
        for to in &self.0 {
            if seconds < to.seconds {
                let share = (seconds - from.seconds) / (to.seconds - from.seconds);
                return (from.pages + (to.pages - from.pages) * share).max(0.0);
            }
            from = *to;
        }
        from.pages + self.after_the_last(seconds - from.seconds)
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
        let mut from = Window::default();
        for to in &self.0 {
            gaps = [gaps[1], Some(Gap::between(from, *to))];
            from = *to;
        }
        let [before, last] = gaps;
        let last = last?;
        // One window alone shows no trend.
        let before = before.unwrap_or(Gap { middle: last.middle - 1.0, ..last });
        Some([before, last])
    }

    /// Returns how many of `all` pages, those that are written in a round of `seconds`, are clean
    /// after it if they are at random places. The round sends `sent` pages.
    ///
    /// A page that is sent counts as dirty only if it is written after that, on average in the
    /// second half of the round; any other page, if it is written at any time of the round. So what
    /// is dirty lies between the mean over the round and all that was written in it, depending on
    /// the share of the working set that is sent.
    fn spared_at_random(&self, seconds: f64, sent: f64, all: f64) -> f64 {
        let steps = f64::from(STEPS);
        let at = |step: u32| self.within(seconds * (f64::from(step) + 0.5) / steps);
        let mean = (0..STEPS).map(at).sum::<f64>() / steps;
        (sent / self.working_set().max(1.0)).min(1.0) * (all - mean).max(0.0)
    }

    /// Returns how many of `all` pages, those that a sweep writes in a round, the round sends, too:
    /// the sweep first writes what it has not written for the longest time.
    fn met_by_sweep(&self, sent: f64, all: f64) -> f64 {
        (all + sent - self.working_set()).clamp(0.0, all)
    }

    fn working_set(&self) -> f64 {
        self.within(LONG_SECONDS)
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
    fn between(from: Window, to: Window) -> Self {
        let time = (to.seconds - from.seconds).max(f64::MIN_POSITIVE);
        let rate = (to.pages - from.pages).max(0.0) / time;
        Self { middle: (from.seconds + to.seconds) / 2.0, end: to.seconds, rate }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u64 = 1 << 18;

    /// Windows of a guest that writes these pages of hot chunks and of others.
    fn windows(hot: impl Fn(f64) -> f64, cold: impl Fn(f64) -> f64) -> Vec<Written> {
        let window = |seconds: f64| {
            let [hot, cold] = [hot(seconds), cold(seconds)].map(|pages| pages as u64);
            Written { seconds, pages: hot + cold, hot_pages: hot }
        };
        [0.03, 0.1, 0.3, 1.0, 2.0].map(window).to_vec()
    }

    fn none(_: f64) -> f64 {
        0.0
    }

    fn is_near(value: f64, expected: f64) {
        let error = (value - expected).abs() / expected.max(1.0);
        assert!(error < 0.03, "{value} instead of {expected}");
    }

    #[test]
    fn a_guest_that_writes_new_pages_goes_on_doing_so() {
        let writes = Writes::new(&windows(none, |seconds| seconds * 5000.0), MOST);
        for seconds in [0.01, 0.5, 2.0, 10.0] {
            is_near(writes.within(seconds).sum(), seconds * 5000.0);
        }
        assert_eq!(writes.within(1e6).sum(), MOST as f64, "there are no more");
        assert_eq!(writes.within(0.0).sum(), 0.0);
    }

    #[test]
    fn a_working_set_that_was_written_whole_does_not_grow() {
        let writes =
            Writes::new(&windows(|seconds| (seconds * 20_000.0).min(16_384.0), none), MOST);
        is_near(writes.within(0.2).sum(), 4000.0);
        is_near(writes.within(30.0).sum(), 16_384.0);
    }

    #[test]
    fn writes_at_random_places_fill_the_working_set() {
        let set = 65_536.0;
        let written = |seconds: f64| set * (1.0 - (-seconds * 30_000.0 / set).exp());
        for measured in [windows(written, none), windows(none, written)] {
            let writes = Writes::new(&measured, MOST);
            for seconds in [3.0, 5.0, 20.0] {
                is_near(writes.within(seconds).sum(), written(seconds));
            }
        }
    }

    #[test]
    fn what_is_written_again_and_again_does_not_hide_that_the_rest_grows() {
        let hot = |seconds: f64| 16_384.0 * (1.0 - (-seconds * 2.0).exp());
        let cold = |seconds: f64| seconds * 2000.0;
        let writes = Writes::new(&windows(hot, cold), 1 << 20);
        for seconds in [0.3, 5.0, 60.0] {
            let pages = writes.within(seconds);
            is_near(pages.hot, hot(seconds));
            is_near(pages.cold, cold(seconds));
        }
        let together = windows(none, |seconds| hot(seconds) + cold(seconds));
        let blind = Writes::new(&together, 1 << 20).within(60.0).sum();
        assert!(blind < 0.2 * (hot(60.0) + cold(60.0)), "as one curve, it seems to end: {blind}");
    }

    #[test]
    fn an_idle_guest_writes_nothing() {
        assert_eq!(Writes::new(&windows(none, none), MOST).within(100.0), Pages::default());
        assert_eq!(Writes::new(&[], MOST).within(100.0), Pages::default());
        let one = [Written { seconds: 1.0, pages: 1000, hot_pages: 0 }];
        is_near(Writes::new(&one, MOST).within(2.0).sum(), 2000.0);
    }

    #[test]
    fn pages_that_are_sent_late_in_a_round_are_dirty_less_often() {
        let writes =
            Writes::new(&windows(|seconds| (seconds * 20_000.0).min(16_384.0), none), MOST);
        let left = |seconds: f64, sent: f64, order: Order| {
            writes.left_by_round(seconds, Pages { hot: sent, cold: sent }, order).sum()
        };
        let all = MOST as f64;
        is_near(left(0.2, 0.0, Order::Random), 4000.0);
        is_near(left(0.2, all, Order::Random), 2000.0);
        assert!(left(10.0, 16_384.0, Order::Random) > 15_000.0);
        for (ahead, expected) in [(0.0, 4000.0), (0.3, 2800.0), (1.0, 0.0)] {
            is_near(left(0.2, all, Order::Sweep { ahead }), expected);
        }
        let ahead = Order::Sweep { ahead: 1.0 };
        is_near(left(0.2, 12_000.0, ahead), 4000.0);
        is_near(left(0.2, 13_384.0, ahead), 3000.0);
    }
}
