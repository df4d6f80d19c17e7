//! Estimates how many pages of each chunk were written between two scans, from a sample of pages.

use std::collections::BTreeMap;

use super::page::{Page, Seed};

/// Sampled pages per chunk. A changed one stands for 16 pages, half of what makes a chunk hot.
const SAMPLES: u64 = 32;
/// Pages in a chunk.
const CHUNK_PAGES: u64 = 512;
/// Pages that each sampled page stands for.
const STRATUM: u64 = CHUNK_PAGES / SAMPLES;

/// Remembers some pages of each chunk, and detects which of them change.
///
/// One page of each 16 is sampled. The seed decides which, so that a guest cannot deliberately
/// write to the others only. The result is an estimate: if w of a chunk's 512 pages are written,
/// w/16 of the samples change on average, and a chunk with fewer writes may seem unchanged. A page
/// that was written with the content it had counts as unwritten, which is harmless for merging.
#[derive(Debug)]
pub struct Watch {
    seed: Seed,
    /// Digests from the first scan, by page.
    digests: BTreeMap<u64, u32>,
    /// By chunk: pages sampled twice, and how many of them changed.
    chunks: BTreeMap<u32, (u16, u16)>,
}

impl Watch {
    /// Creates a watch that remembers no pages yet.
    #[must_use]
    pub fn new(seed: Seed) -> Self {
        Self { seed, digests: BTreeMap::new(), chunks: BTreeMap::new() }
    }

    /// Returns whether the page at this guest physical address (in pages) is sampled.
    #[must_use]
    pub fn wants(&self, index: u64) -> bool {
        index % STRATUM == self.seed.digest_of(&(index / STRATUM).to_le_bytes()) % STRATUM
    }

    /// Remembers a page for which [`Self::wants`] is true.
    pub fn first(&mut self, index: u64, page: &Page) {
        self.digests.insert(index, self.digest(page));
    }

    /// Compares a page with its first sample. A page without one is ignored.
    pub fn second(&mut self, index: u64, page: &Page) {
        let (Some(before), Ok(chunk)) =
            (self.digests.remove(&index), u32::try_from(index / CHUNK_PAGES))
        else {
            return;
        };
        let has_changed = before != self.digest(page);
        let (sampled, changed) = self.chunks.entry(chunk).or_default();
        *sampled += 1;
        *changed += u16::from(has_changed);
    }

    /// Estimates how many pages of a chunk were written between the scans, if `present` of its
    /// pages are present. `None` if no page of it was sampled twice.
    #[must_use]
    pub fn written_pages(&self, chunk: u32, present: u16) -> Option<u16> {
        let (sampled, changed) = self.chunks.get(&chunk)?;
        let scaled = u32::from(*changed) * u32::from(present) / u32::from(*sampled);
        u16::try_from(scaled).ok()
    }

    fn digest(&self, page: &Page) -> u32 {
        (self.seed.digest_of(page) >> 32) as u32
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn watch(seed: u64) -> Watch {
        Watch::new(Seed::new(seed))
    }

    fn page(content: u8) -> Page {
        [content; 4096]
    }

    /// Two scans of chunk 3, in which the pages `written` change.
    fn sample_twice(written: impl Fn(u64) -> bool) -> Watch {
        let mut watch = watch(1);
        let pages: Vec<u64> = (3 * 512..4 * 512).filter(|index| watch.wants(*index)).collect();
        pages.iter().for_each(|index| watch.first(*index, &page(1)));
        for index in pages {
            watch.second(index, &page(if written(index) { 2 } else { 1 }));
        }
        watch
    }

    #[test]
    fn what_changes_is_scaled_to_the_pages_that_are_there() {
        assert_eq!(sample_twice(|_| false).written_pages(3, 512), Some(0));
        assert_eq!(sample_twice(|_| true).written_pages(3, 512), Some(512));
        assert_eq!(sample_twice(|_| true).written_pages(3, 100), Some(100));
        assert_eq!(sample_twice(|index| index < 3 * 512 + 256).written_pages(3, 512), Some(256));
        assert_eq!(sample_twice(|_| true).written_pages(4, 512), None, "no sample there");
    }

    #[test]
    fn a_page_that_was_absent_before_is_not_counted() {
        let mut watch = watch(1);
        watch.second(0, &page(1));
        watch.first(1, &page(1));
        assert_eq!(watch.written_pages(0, 512), None);
    }

    proptest! {
        #[test]
        fn one_page_of_each_sixteen_is_sampled_at_any_position(seed: u64, stratum in 0..1_u64 << 40) {
            let watch = watch(seed);
            let wanted = (stratum * 16..(stratum + 1) * 16).filter(|index| watch.wants(*index));
            prop_assert_eq!(wanted.count(), 1);
        }
    }

    #[test]
    fn which_pages_depends_on_the_seed() {
        let wanted = |seed| (0..512).filter(|index| watch(seed).wants(*index)).collect::<Vec<_>>();
        assert_ne!(wanted(1), wanted(2));
    }
}
