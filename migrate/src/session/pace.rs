//! What the drivers of both sides have in common: their limits, and whether to go on.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

/// Time between two looks at the totals of the data streams.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Longest wait at the end for what is still to be sent or written.
pub(super) const LEFTOVER_TIME: Duration = Duration::from_secs(10);
/// Messages and arrivals that wait for the driver; the peer waits beyond.
pub(super) const INPUTS_MAX: usize = 16;

/// What follows an action.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    End,
}

/// Ticks when the totals are to be looked at.
pub(super) fn looks() -> Interval {
    let mut looks = interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    looks
}
