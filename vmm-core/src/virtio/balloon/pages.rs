//! Converts what a driver names into ranges of guest-physical addresses: whole pages, in order,
//! without duplicates.
//!
//! The caller checks that they are RAM.

use std::ops::Range;

use super::PAGE_BYTES;

/// Size of a page frame number in bytes (`__le32`).
pub(super) const PFN_BYTES: usize = 4;

/// Returns the pages whose frame numbers are in `bytes`; an incomplete number at the end is
/// ignored.
pub(super) fn of_pfns(bytes: &[u8]) -> Vec<Range<u64>> {
    let pages = bytes.chunks_exact(PFN_BYTES).map(|pfn| {
        let pfn = u32::from_le_bytes([pfn[0], pfn[1], pfn[2], pfn[3]]);
        let gpa = u64::from(pfn) * PAGE_BYTES;
        gpa..gpa + PAGE_BYTES
    });
    coalesce(pages.collect())
}

/// Returns the whole pages within pieces of memory (address, length), up to `bytes_max` in total.
pub(super) fn within(pieces: impl Iterator<Item = (u64, u64)>, bytes_max: u64) -> Vec<Range<u64>> {
    let whole = pieces.filter_map(|(gpa, len)| {
        let end = gpa.checked_add(len)?;
        let pages = gpa.checked_next_multiple_of(PAGE_BYTES)?..end - end % PAGE_BYTES;
        (!pages.is_empty()).then_some(pages)
    });
    let mut left = bytes_max - bytes_max % PAGE_BYTES;
    let mut ranges = coalesce(whole.collect());
    ranges.retain_mut(|range| {
        range.end = range.start + left.min(range.end - range.start);
        left -= range.end - range.start;
        !range.is_empty()
    });
    ranges
}

/// Sorts ranges and merges those that touch or overlap.
fn coalesce(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn bytes(ranges: &[Range<u64>]) -> u64 {
        ranges.iter().map(|range| range.end - range.start).sum()
    }

    fn one(range: Range<u64>) -> Vec<Range<u64>> {
        Vec::from([range])
    }

    fn pfns(numbers: &[u32]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// Returns the numbers of the pages in `ranges`, which must be whole, in order and disjoint.
    fn numbers(ranges: &[Range<u64>]) -> BTreeSet<u64> {
        assert!(ranges.iter().all(|range| !range.is_empty()));
        assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start), "{ranges:?}");
        let edges = ranges.iter().flat_map(|range| [range.start, range.end]);
        assert!(edges.into_iter().all(|edge| edge.is_multiple_of(PAGE_BYTES)));
        ranges.iter().flat_map(|range| range.start / PAGE_BYTES..range.end / PAGE_BYTES).collect()
    }

    #[test]
    fn pages_in_any_order_and_twice_are_few_ranges() {
        let found = of_pfns(&pfns(&[9, 3, 2, 1, 3, 8, 7]));
        assert_eq!(found, [0x1000..0x4000, 0x7000..0xa000]);
        assert_eq!(bytes(&found), 6 * PAGE_BYTES);
    }

    #[test]
    fn the_highest_page_does_not_overflow() {
        let end = 1 << 44;
        assert_eq!(of_pfns(&pfns(&[u32::MAX])), one(end - PAGE_BYTES..end));
    }

    #[test]
    fn a_truncated_number_is_ignored() {
        assert_eq!(of_pfns(&[1, 0, 0]), []);
        assert_eq!(of_pfns(&[1, 0, 0, 0, 2]), one(0x1000..0x2000));
    }

    #[test]
    fn only_whole_pages_of_a_piece_count() {
        let all = |pieces: &[(u64, u64)]| within(pieces.iter().copied(), u64::MAX);
        assert_eq!(all(&[(0x1001, 0x1fff)]), one(0x2000..0x3000));
        assert_eq!(all(&[(0x1001, 0x1ffe), (0x5000, 0xfff), (0x6000, 0)]), []);
        assert_eq!(all(&[(u64::MAX, 1), (u64::MAX - 10, 5), (1, u64::MAX)]), []);
    }

    #[test]
    fn no_more_than_the_limit() {
        let pieces = [(0x10_0000, 0x10_0000), (0, 0x2000)];
        assert_eq!(within(pieces.into_iter(), 0x3fff), [0..0x2000, 0x10_0000..0x10_1000]);
        assert_eq!(within(pieces.into_iter(), 0x1000), one(0..0x1000));
        assert_eq!(within(pieces.into_iter(), 0), []);
    }

    proptest! {
        #[test]
        fn every_page_named_and_no_other(named in prop::collection::vec(0..200u32, 0..300)) {
            let expected: BTreeSet<u64> = named.iter().copied().map(u64::from).collect();
            prop_assert_eq!(numbers(&of_pfns(&pfns(&named))), expected);
        }

        #[test]
        fn pieces_of_any_shape_give_their_whole_pages(
            pieces in prop::collection::vec((0..100_000u64, 0..50_000u64), 0..20),
        ) {
            let inside = |page: u64| {
                let (start, end) = (page * PAGE_BYTES, (page + 1) * PAGE_BYTES);
                pieces.iter().any(|(gpa, len)| *gpa <= start && end <= gpa + len)
            };
            let expected: BTreeSet<u64> = (0..50).filter(|page| inside(*page)).collect();
            prop_assert_eq!(numbers(&within(pieces.iter().copied(), u64::MAX)), expected);
        }
    }
}
