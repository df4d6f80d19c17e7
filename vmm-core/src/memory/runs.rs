//! Ranges in order, as few as possible.

use std::ops::Range;

/// Adds `next`, which begins where the last one ends, or later.
pub(super) fn add<T: PartialEq>(runs: &mut Vec<Range<T>>, next: Range<T>) {
    match runs.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => runs.push(next),
    }
}
