//! How long a guest waits for pages of its memory that follow it.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::guest::Waits;

/// Upper bounds of the lengths by which waits are counted, in seconds.
pub const BOUNDS_SECONDS: [f64; 12] =
    [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0];

/// From when on a page counts as withheld, in seconds: far longer than any network needs for it.
const WITHHELD_SECONDS: f64 = 5.0;

/// The waits of a guest for pages of its memory that follow it, of vCPUs and devices alike, as its
/// destination measured them. Base unit: seconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PageWaits {
    /// Number of waits that took at most 0.1 ms, 0.3 ms, 1 ms, and so on up to 30 s, and longer
    /// than the length before; then of those that took longer. Empty in the report of a source.
    pub counts: Vec<u64>,
    /// Total of these waits.
    pub total_seconds: f64,
    /// The longest wait.
    pub longest_seconds: f64,
    /// How long the oldest wait that goes on has lasted; 0 if there is none.
    pub oldest_seconds: f64,
}

impl PageWaits {
    /// Creates the waits of a guest that has not waited yet.
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; BOUNDS_SECONDS.len() + 1], ..Self::default() }
    }

    /// Creates what a source knows of them, from the length of the longest; none if that is zero.
    pub(crate) fn of_longest(longest: Duration) -> Option<Self> {
        let longest_seconds = longest.as_secs_f64();
        (longest_seconds > 0.0).then(|| Self { longest_seconds, ..Self::default() })
    }

    /// Adds the waits that have ended, and notes for how long the oldest of the others has lasted.
    pub(crate) fn add(&mut self, waits: &Waits) {
        for wait in &waits.ended {
            let seconds = wait.as_secs_f64();
            let place = BOUNDS_SECONDS.partition_point(|bound| *bound < seconds);
            if let Some(count) = self.counts.get_mut(place) {
                *count += 1;
            }
            self.total_seconds += seconds;
            self.longest_seconds = self.longest_seconds.max(seconds);
        }
        self.oldest_seconds = waits.oldest.unwrap_or_default().as_secs_f64();
        self.longest_seconds = self.longest_seconds.max(self.oldest_seconds);
    }

    /// Returns whether the guest has waited for a page for so long that it seems to be withheld:
    /// the source does not send it, or is out of reach.
    pub fn is_withheld(&self) -> bool {
        self.oldest_seconds >= WITHHELD_SECONDS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_are_counted_by_their_length() {
        let mut waits = PageWaits::new();
        let ended = [100, 101, 40_000, 31_000_000].map(Duration::from_micros).to_vec();
        waits.add(&Waits { ended, oldest: Some(Duration::from_secs(5)) });
        assert_eq!(waits.counts, [1, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 1]);
        assert!((waits.total_seconds - 31.040_201).abs() < 1e-9, "{waits:?}");
        assert!(waits.longest_seconds.eq(&31.0) && waits.is_withheld());

        waits.add(&Waits { ended: Vec::new(), oldest: Some(Duration::from_secs(40)) });
        assert!(waits.longest_seconds.eq(&40.0));
        waits.add(&Waits::default());
        assert!(waits.oldest_seconds.eq(&0.0) && !waits.is_withheld());
    }

    #[test]
    fn a_source_that_heard_of_no_wait_says_nothing_of_them() {
        assert_eq!(PageWaits::of_longest(Duration::ZERO), None);
        let longest = PageWaits::of_longest(Duration::from_millis(500)).unwrap();
        assert!(longest.longest_seconds.eq(&0.5) && longest.counts.is_empty());
    }
}
