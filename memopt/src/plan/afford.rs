//! Limits what is marked to what ksmd's CPU time pays for.
//!
//! ksmd scans all marked memory alike, and scans each page twice before it merges it. With less CPU
//! time than that takes, it would merge next to nothing. So no more is marked than the time pays
//! for, starting with what returns most per page scanned. Clones have equal pages at the same
//! addresses, which only help if all of them are marked: a chunk is chosen in all guests of the
//! domain or in none.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::chunks::Worth;
use super::view::Context;

/// How often a window scans each page: in two full scans, in the rest of the scan during which it
/// begins, and in parts of another one until the profit is flat (`crate::ksm`). 2.57 was measured.
pub(super) const SCANS_PER_PAGE: f64 = 2.5;

impl Context<'_> {
    /// Returns the CPU time that ksmd can use in a window.
    pub(super) fn ksmd_time(&self) -> Duration {
        let merge = &self.policy.merge;
        merge.cpu_time.min(merge.window.mul_f64(merge.cpu))
    }

    /// Returns the pages that ksmd can merge in a window, given how often it has to scan each.
    pub(super) fn affordable_pages(&self) -> u64 {
        let merge = &self.policy.merge;
        let rate = self.ledger.ksm.pages_per_cpu_second() as f64;
        let by_time = self.ksmd_time().as_secs_f64() * rate;
        let by_rate = merge.window.as_secs_f64() * merge.pages_per_s as f64;
        (by_time.min(by_rate) / SCANS_PER_PAGE) as u64
    }
}

/// Returns the indices of the most valuable chunks that fit into `pages_max` pages, counted over
/// all guests. `None` when all chunks fit.
pub(super) fn best(worths: impl Iterator<Item = Worth>, pages_max: u64) -> Option<BTreeSet<u32>> {
    let mut places: BTreeMap<u32, (u64, i64)> = BTreeMap::new();
    for worth in worths {
        let (pages, bytes) = places.entry(worth.index).or_default();
        *pages += u64::from(worth.pages);
        *bytes = bytes.saturating_add(worth.bytes);
    }
    if places.values().map(|(pages, _)| *pages).sum::<u64>() <= pages_max {
        return None;
    }
    let mut order: Vec<_> = places.into_iter().collect();
    order.sort_by_key(|(index, (pages, bytes))| (Reverse(bytes / (*pages).max(1) as i64), *index));
    let mut left = pages_max;
    let affordable = order.into_iter().filter_map(|(index, (pages, _))| {
        left = left.checked_sub(pages)?;
        Some(index)
    });
    Some(affordable.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RICH: Worth = Worth { index: 7, pages: 512, bytes: 1 << 20 };
    const POOR: Worth = Worth { index: 3, pages: 512, bytes: 1 << 19 };

    #[test]
    fn nothing_is_chosen_when_all_can_be_afforded() {
        assert_eq!(best([RICH, POOR].into_iter(), 1024), None);
        assert_eq!(best([].into_iter(), 0), None);
    }

    #[test]
    fn the_richest_come_first_and_in_all_guests() {
        let worths = || [POOR, RICH, POOR, RICH].into_iter();
        assert_eq!(best(worths(), 2047), Some(BTreeSet::from([7])));
        assert_eq!(best(worths(), 1023), Some(BTreeSet::new()), "one of two brings nothing");
        let equal = (0..4).map(|index| Worth { index, ..POOR });
        assert_eq!(best(equal, 1100), Some(BTreeSet::from([0, 1])));
    }
}
