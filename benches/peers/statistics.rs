//! Medians, and their units.

use std::time::Duration;

/// Returns a time in milliseconds.
pub(crate) fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Returns the values in ascending order.
pub(crate) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Returns the median of values in ascending order; for an even number, the mean of the middle two.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let middle = values.len() / 2;
    let value = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { value } else { f64::midpoint(values[middle - 1], value) })
}
