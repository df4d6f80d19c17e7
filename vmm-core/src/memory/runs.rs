//! Ordered lists of ranges, with adjacent ranges merged.

use std::ops::Range;

/// Appends `next`, which begins at or after the end of the last range.
pub(super) fn add<T: PartialEq>(runs: &mut Vec<Range<T>>, next: Range<T>) {
    match runs.last_mut() {
        Some(last) if last.end == next.start => last.end = next.end,
        _ => runs.push(next),
    }
}

/// Returns the runs of the pages of a chunk whose bits are set, in order.
pub(crate) fn of_mask(mask: u64) -> impl Iterator<Item = Range<usize>> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        let start = rest.trailing_zeros();
        let end = start + rest.checked_shr(start)?.trailing_ones();
        rest &= u64::MAX.checked_shl(end).unwrap_or(0);
        Some(start as usize..end as usize)
    })
}

/// Returns the intersection of two lists.
pub(super) fn common(one: &[Range<u64>], other: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut one, mut other) = (one.iter().peekable(), other.iter().peekable());
    let mut found = Vec::new();
    while let (Some(a), Some(b)) = (one.peek(), other.peek()) {
        let both = a.start.max(b.start)..a.end.min(b.end);
        let ends_first = if a.end < b.end { &mut one } else { &mut other };
        ends_first.next();
        if !both.is_empty() {
            add(&mut found, both);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns the runs of the numbers whose bits are set.
    fn of(bits: u64) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        (0..64).filter(|bit| bits >> bit & 1 == 1).for_each(|bit| add(&mut runs, bit..bit + 1));
        runs
    }

    proptest! {
        #[test]
        fn what_two_have_in_common_is_in_both(one: u64, other: u64) {
            prop_assert_eq!(common(&of(one), &of(other)), of(one & other));
        }
    }
}
