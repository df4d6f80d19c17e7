//! Changes of direction of a balloon. More than a few in a short time are an oscillation, which is
//! damped.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Maximum number of turns kept: more than the strongest damping needs.
const TURNS_MAX: usize = 8;
/// Older turns do not count as an oscillation.
const TURNS_WITHIN: Duration = Duration::from_secs(1800);
/// Two turns are one squeeze and one release, which is normal for a guest that grows once.
const TURNS_FREE: usize = 2;

/// The recent changes of direction of a balloon target.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turns {
    /// The last target; absent before the first sample.
    target_bytes: Option<u64>,
    /// Whether the last change was upward; absent before the first change.
    went_up: Option<bool>,
    /// Host uptime of each turn.
    at: VecDeque<Duration>,
}

impl Turns {
    /// Records the current target of the balloon, set by a step or from outside.
    pub(super) fn observe(&mut self, target_bytes: u64, now: Duration) {
        let before = self.target_bytes.replace(target_bytes);
        while self.at.front().is_some_and(|at| now.saturating_sub(*at) > TURNS_WITHIN) {
            self.at.pop_front();
        }
        let Some(before) = before.filter(|before| *before != target_bytes) else { return };
        let goes_up = target_bytes > before;
        if self.went_up.replace(goes_up).is_some_and(|went_up| went_up != goes_up) {
            self.at.push_back(now);
            if self.at.len() > TURNS_MAX {
                self.at.pop_front();
            }
        }
    }

    /// Returns the factor by which the dead band widens and pauses lengthen: 1 while nothing
    /// oscillates, 8 at most.
    #[must_use]
    pub fn damping(&self) -> u32 {
        1 << self.at.len().saturating_sub(TURNS_FREE).min(3)
    }

    /// Returns the host uptime of the last turn.
    #[must_use]
    pub fn last(&self) -> Option<Duration> {
        self.at.back().copied()
    }
}
