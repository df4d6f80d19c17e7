//! Changes of direction of a balloon: more than a few in a while are an oscillation, which is
//! damped.

use std::collections::VecDeque;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// More turns than are needed for the strongest damping.
const TURNS_MAX: usize = 8;
/// Turns longer ago are no oscillation.
const TURNS_WITHIN: Duration = Duration::from_secs(1800);
/// Two turns are one squeeze and one release: what a guest that grows once does.
const TURNS_FREE: usize = 2;

/// The last changes of direction of what a balloon is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Turns {
    /// The last target; absent before the first look.
    target_bytes: Option<u64>,
    /// Whether it went up last; absent before it moved.
    went_up: Option<bool>,
    /// When it turned, as the host's uptime.
    at: VecDeque<Duration>,
}

impl Turns {
    /// Takes in what the balloon is asked for now, by whomever.
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

    /// How much wider the dead band and longer the pauses have to be: 1 as long as nothing
    /// oscillates, 8 at most.
    #[must_use]
    pub fn damping(&self) -> u32 {
        1 << self.at.len().saturating_sub(TURNS_FREE).min(3)
    }

    /// When it turned last.
    #[must_use]
    pub fn last(&self) -> Option<Duration> {
        self.at.back().copied()
    }
}
