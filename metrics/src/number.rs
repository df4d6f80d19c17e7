//! Converts measured values to Prometheus numbers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Converts counts and bytes to Prometheus' only number type; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "the exposition format has no other number")]
pub(crate) fn number(value: u64) -> f64 {
    value as f64
}

/// Converts to seconds since the epoch; 0 for a time before it.
pub(crate) fn unix_seconds(time: SystemTime) -> f64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}
