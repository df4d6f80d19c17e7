//! Limits and control flow that the drivers of both sides share.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

/// Time between two samples of the data streams' totals.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);
/// Longest wait at the end for messages and records that are still to be written.
pub(super) const LEFTOVER_TIME: Duration = Duration::from_secs(10);
/// Most messages and arrivals queued for the driver; beyond that, the peer waits.
pub(super) const INPUTS_MAX: usize = 16;

/// What the driver does after an action.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    GoOn,
    End,
}

/// Returns an interval that ticks when the totals are to be sampled.
pub(super) fn sample_ticks() -> Interval {
    let mut sample_ticks = interval(SAMPLE_INTERVAL);
    sample_ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    sample_ticks
}
