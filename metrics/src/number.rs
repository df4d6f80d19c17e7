//! How what is measured becomes a number of Prometheus.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Counts and bytes become Prometheus' only number; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "the exposition format has no other number")]
pub(crate) fn number(value: u64) -> f64 {
    value as f64
}

/// Seconds since the epoch, 0 for a clock that stands before it.
pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
