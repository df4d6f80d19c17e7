//! A scan of one guest's pages, in chunks of 2 MiB.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use super::digests::{Digests, is_sampled};
use super::page::{Page, Seed, is_zero};
use crate::situation::Chunk;

/// Pages in a chunk.
const CHUNK_PAGES: u64 = 512;

/// Scans pages as the caller supplies them.
#[derive(Debug)]
pub struct Scan {
    seed: Seed,
    digests: Digests,
    /// Pages present and pages of zeros, by chunk.
    chunks: BTreeMap<u32, (u16, u16)>,
    /// The number of sampled pages, by chunk and content.
    samples: BTreeMap<(u32, u64), u16>,
    samples_max: usize,
}

/// The result of a scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scanned {
    /// The sampled contents, for estimates and for other guests of the domain.
    pub digests: Digests,
    chunks: BTreeMap<u32, (u16, u16)>,
    samples: BTreeMap<(u32, u64), u16>,
}

impl Scan {
    /// Creates a scan that samples one content in 2^`bits`. The sample becomes coarser when it has
    /// more than `capacity` contents, or more than twice that many pairs of chunk and content. At 3
    /// bits a chunk has about 64 samples, and a guest of 4 GiB needs a capacity of 131,072.
    #[must_use]
    pub fn new(seed: Seed, capacity: NonZeroUsize, bits: u32) -> Self {
        let digests = Digests::new(seed, capacity, bits);
        let samples_max = capacity.get().saturating_mul(2);
        Self { seed, digests, chunks: BTreeMap::new(), samples: BTreeMap::new(), samples_max }
    }

    /// Scans pages, given with their guest physical addresses in pages: in any order, each page
    /// once. To stay within a CPU budget, pass [`super::Pace::pages`] pages per call.
    pub fn feed<'a>(&mut self, pages: impl IntoIterator<Item = (u64, &'a Page)>) {
        for (index, page) in pages {
            // Guest physical addresses end at 2^52; from 2^53 on the chunk number does not fit.
            let Ok(chunk) = u32::try_from(index / CHUNK_PAGES) else { continue };
            let (present, zeros) = self.chunks.entry(chunk).or_default();
            *present = present.saturating_add(1);
            if is_zero(page) {
                *zeros = zeros.saturating_add(1);
                self.digests.add_zero();
                continue;
            }
            let digest = self.seed.digest(page);
            if self.digests.add(digest) {
                *self.samples.entry((chunk, digest)).or_default() += 1;
                self.bound_samples();
            }
        }
    }

    /// Finishes the scan and returns the result.
    #[must_use]
    pub fn finish(mut self) -> Scanned {
        let bits = self.digests.bits();
        self.samples.retain(|(_, digest), _| is_sampled(*digest, bits));
        Scanned { digests: self.digests, chunks: self.chunks, samples: self.samples }
    }

    /// Makes the sample coarser if it has too many pairs of chunk and content.
    fn bound_samples(&mut self) {
        if self.samples.len() <= self.samples_max {
            return;
        }
        let mut bits = self.digests.bits();
        self.samples.retain(|(_, digest), _| is_sampled(*digest, bits));
        while self.samples.len() > self.samples_max {
            bits += 1;
            self.digests.coarsen(bits);
            if self.digests.bits() < bits {
                // A single content is in more chunks than that: it stays, and no others do.
                break;
            }
            self.samples.retain(|(_, digest), _| is_sampled(*digest, bits));
        }
    }
}

impl Scanned {
    /// Returns the chunks in order, with the number of pages whose content occurs elsewhere too, in
    /// this guest or in another of `domain`: the merged tables of all guests, including this one.
    /// The caller fills in what was written and how the chunks are mapped.
    #[must_use]
    pub fn chunks(&self, domain: &Digests) -> Vec<Chunk> {
        let bits = domain.bits().max(self.digests.bits());
        let mut duplicates: BTreeMap<u32, u64> = BTreeMap::new();
        for ((chunk, digest), pages) in &self.samples {
            if is_sampled(*digest, bits) && domain.count(*digest) > 1 {
                *duplicates.entry(*chunk).or_default() += u64::from(*pages) << bits;
            }
        }
        let chunks = self.chunks.iter().map(|(index, (present, zeros))| {
            let found = duplicates.get(index).copied().unwrap_or(0);
            let there = present.saturating_sub(*zeros);
            Chunk {
                index: *index,
                present_pages: *present,
                zero_pages: *zeros,
                duplicate_pages: u16::try_from(found).map_or(there, |found| found.min(there)),
                ..Chunk::default()
            }
        });
        chunks.collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEED: Seed = Seed::new(3);

    fn page(content: u32) -> Page {
        let mut page = [0; 4096];
        page[4000..4004].copy_from_slice(&content.to_le_bytes());
        page
    }

    fn scan(capacity: usize, bits: u32, pages: &[(u64, u32)]) -> Scanned {
        let mut scan = Scan::new(SEED, NonZeroUsize::new(capacity).unwrap(), bits);
        for (index, content) in pages {
            scan.feed([(*index, &page(*content))]);
        }
        scan.finish()
    }

    #[test]
    fn finds_zeros_and_duplicates_by_chunk_within_and_across_guests() {
        let one = scan(100, 0, &[(0, 0), (1, 7), (2, 8), (511, 7), (512, 9), (513, 0)]);
        let two = scan(100, 0, &[(1024, 8), (1025, 5)]);
        let mut domain = one.digests.clone();
        domain.merge(&two.digests).unwrap();
        let rows = |scanned: &Scanned, domain: &Digests| -> Vec<_> {
            let chunks = scanned.chunks(domain).into_iter();
            chunks
                .map(|chunk| {
                    (chunk.index, chunk.present_pages, chunk.zero_pages, chunk.duplicate_pages)
                })
                .collect()
        };
        assert_eq!(rows(&one, &domain), [(0, 4, 1, 3), (1, 2, 1, 0)]);
        assert_eq!(rows(&two, &domain), [(2, 2, 0, 1)]);
        assert_eq!(rows(&one, &one.digests), [(0, 4, 1, 2), (1, 2, 1, 0)], "alone");
        assert_eq!((domain.pages(), domain.zero_pages()), (8, 2));
    }

    #[test]
    fn a_coarse_sample_is_right_over_many_chunks() {
        // In each chunk, 100 pages equal a page of another chunk, and 412 are unique.
        let pages = (0..200_u32).flat_map(|chunk| {
            (0..512_u32).map(move |page| {
                let content = if page < 100 {
                    1 + (chunk / 2) * 512 + page
                } else {
                    1_000_000 + chunk * 512 + page
                };
                (u64::from(chunk * 512 + page), content)
            })
        });
        let scanned = scan(100_000, 3, &pages.collect::<Vec<_>>());
        let chunks = scanned.chunks(&scanned.digests);
        let sum: u32 = chunks.iter().map(|chunk| u32::from(chunk.duplicate_pages)).sum();
        let mean = f64::from(sum) / chunks.len() as f64;
        // 100 contents of 2 pages per 2 chunks: the standard error of the mean is 2.6 pages.
        assert!((mean - 100.0).abs() < 8.0, "{mean}");
    }

    #[test]
    fn addresses_beyond_every_guest_are_passed_over() {
        let scanned = scan(10, 0, &[(u64::MAX, 1), (5, 1)]);
        assert_eq!(scanned.chunks.len(), 1);
        assert_eq!(scanned.digests.pages(), 1);
    }

    proptest! {
        /// Nothing grows beyond its bound, and no chunk has more pages of any kind than pages.
        #[test]
        fn all_is_bounded(
            pages in proptest::collection::vec((0u64..4096, 0u32..600), 0..600),
            capacity in 1usize..40,
        ) {
            let scanned = scan(capacity, 0, &pages);
            prop_assert!(scanned.samples.len() <= 2 * capacity + 8);
            for chunk in scanned.chunks(&scanned.digests) {
                prop_assert!(chunk.zero_pages + chunk.duplicate_pages <= chunk.present_pages);
            }
        }
    }
}
