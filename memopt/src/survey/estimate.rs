//! Estimates from samples how much merging would save.

use super::digests::{Digests, DigestsError};

/// Bytes of a page.
const PAGE_BYTES: f64 = 4096.0;
/// The most pages that share one kept page: the default of `/sys/kernel/mm/ksm/max_page_sharing`.
const SHARING_MAX: u32 = 256;

/// An estimate and its error.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Estimate {
    /// Bytes that merging would save, not including pages of zeros.
    pub bytes: f64,
    /// The standard error, in bytes: the true value is within two of them 19 times out of 20.
    pub standard_error: f64,
}

/// How much merging guests would save.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sharing {
    /// If each guest were merged separately.
    pub within: Estimate,
    /// If all were merged together, in addition to `within`.
    pub across: Estimate,
    /// Pages of zeros in all guests, in bytes: counted, not estimated.
    pub zero_bytes: u64,
}

/// Estimates how much merging these guests would save.
///
/// # Errors
/// [`DigestsError::OtherSeed`] if they are not of one merge domain.
pub fn estimate(guests: &[Digests]) -> Result<Sharing, DigestsError> {
    let Some((first, others)) = guests.split_first() else { return Ok(Sharing::default()) };
    let mut all = first.clone();
    for guest in others {
        all.merge(guest)?;
    }
    // For the difference, all guests are reduced to the coarsest sample, so that both sides cover
    // the same contents.
    let mut within = Sum::default();
    let mut across = Sum::default();
    for guest in guests {
        within.add(guest.bits(), guest.counts().map(|pages| saved(pages).into()));
    }
    let alike = guests.iter().map(|guest| {
        let mut guest = guest.clone();
        guest.coarsen(all.bits());
        guest
    });
    let alike: Vec<Digests> = alike.collect();
    let weights = all.contents().map(|(digest, pages)| {
        let alone: u32 = alike.iter().map(|guest| saved(guest.count(digest))).sum();
        f64::from(saved(pages)) - f64::from(alone)
    });
    across.add(all.bits(), weights);
    Ok(Sharing {
        within: within.estimate(),
        across: across.estimate(),
        zero_bytes: all.zero_pages().saturating_mul(4096),
    })
}

/// Returns how many pages are freed when a content with `pages` pages is merged.
pub(super) const fn saved(pages: u32) -> u32 {
    pages - pages.div_ceil(SHARING_MAX)
}

/// Sums over the samples of one or more tables.
#[derive(Debug, Default)]
struct Sum {
    pages: f64,
    variance: f64,
}

impl Sum {
    /// Adds the weights of the contents in a sample of one in 2^`bits`.
    fn add(&mut self, bits: u32, weights: impl Iterator<Item = f64>) {
        let scale = 2_f64.powi(bits.cast_signed());
        for weight in weights {
            self.pages += scale * weight;
            self.variance += scale * (scale - 1.0) * weight * weight;
        }
    }

    fn estimate(&self) -> Estimate {
        Estimate {
            bytes: self.pages * PAGE_BYTES,
            standard_error: self.variance.sqrt() * PAGE_BYTES,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::survey::page::{Page, Seed};

    fn page(content: u32) -> Page {
        let mut page = [0; 4096];
        page[..4].copy_from_slice(&content.to_le_bytes());
        page[4] = 1;
        page
    }

    fn guest(seed: u64, capacity: usize, bits: u32, contents: &[u32]) -> Digests {
        let seed = Seed::new(seed);
        let mut digests = Digests::new(seed, NonZeroUsize::new(capacity).unwrap(), bits);
        for content in contents {
            digests.add(seed.digest(&page(*content)));
        }
        digests
    }

    #[test]
    fn a_sample_of_everything_is_exact() {
        let one = guest(1, 1000, 0, &[1, 1, 1, 2, 3]);
        let two = guest(1, 1000, 0, &[3, 4, 4, 1]);
        let sharing = estimate(&[one, two]).unwrap();
        assert_eq!(sharing.within, Estimate { bytes: 3.0 * 4096.0, standard_error: 0.0 });
        // One page of content 1 and one of content 3 are saved across the guests.
        assert_eq!(sharing.across.bytes, 2.0 * 4096.0);
        assert_eq!(estimate(&[]).unwrap(), Sharing::default());
    }

    #[test]
    fn one_kept_page_serves_256() {
        assert_eq!((saved(0), saved(1), saved(2), saved(256), saved(257)), (0, 0, 1, 255, 255));
        assert_eq!(saved(u32::MAX), u32::MAX - (1 << 24));
    }

    /// Two guests with contents of one, two, five and forty pages, some of them common to both.
    fn population() -> (Vec<u32>, Vec<u32>, f64, f64) {
        let mut one = Vec::new();
        let mut two = Vec::new();
        for content in 0..1000 {
            let copies = [1, 2, 1, 5, 1, 1, 40, 1, 1, 2][content as usize % 10];
            one.extend(vec![content; copies]);
            two.extend(vec![content * 3 % 1500; copies]);
        }
        let count = |pages: &[u32], content| pages.iter().filter(|page| **page == content).count();
        let (mut within, mut across) = (0.0, 0.0);
        for content in 0..1500 {
            let (a, b) = (count(&one, content) as u32, count(&two, content) as u32);
            let alone = saved(a) + saved(b);
            within += f64::from(alone) * 4096.0;
            across += f64::from(saved(a + b) - alone) * 4096.0;
        }
        (one, two, within, across)
    }

    /// The mean over many seeds is the true value, and the standard error is the spread: for a
    /// fixed sample, and for tables that are too small and grow coarser as they fill.
    #[test]
    fn the_estimate_is_unbiased_and_knows_its_error() {
        let (one, two, within, across) = population();
        for (capacity, bits) in [(100_000, 3), (120, 0)] {
            let runs = 200;
            let mut sums = [0.0; 2];
            let mut spreads = [0.0; 2];
            let mut estimated = [0.0; 2];
            for seed in 0..runs {
                let guests = [guest(seed, capacity, bits, &one), guest(seed, capacity, bits, &two)];
                let sharing = estimate(&guests).unwrap();
                let pairs = [(sharing.within, within), (sharing.across, across)];
                for (at, (estimate, truth)) in pairs.into_iter().enumerate() {
                    sums[at] += estimate.bytes;
                    spreads[at] += (estimate.bytes - truth).powi(2);
                    estimated[at] += estimate.standard_error.powi(2);
                }
            }
            for (at, truth) in [within, across].into_iter().enumerate() {
                let runs = runs as f64;
                let (mean, spread) = (sums[at] / runs, (spreads[at] / runs).sqrt());
                let off = (mean - truth).abs() / (spread / runs.sqrt());
                assert!(off < 3.5, "{capacity}: {mean} for {truth}, {off} standard errors off");
                // Samples of two guests use the same digests, so their errors add up, to 1.4 times
                // at most.
                let ratio = spread / (estimated[at] / runs).sqrt();
                assert!((0.7..1.5).contains(&ratio), "{capacity}: told {ratio} of the spread");
            }
        }
    }

    #[test]
    fn tables_of_different_coarseness_are_compared_by_what_both_have() {
        let contents: Vec<u32> = (0..2000).flat_map(|content| [content; 2]).collect();
        let fine = guest(9, 100_000, 0, &contents);
        let coarse = guest(9, 300, 0, &contents);
        assert!(coarse.bits() > 0);
        let sharing = estimate(&[fine, coarse]).unwrap();
        // Of the four pages of a content, one is saved in each guest, and then one of the two that
        // remain.
        let (within, across) = (4000.0 * 4096.0, 2000.0 * 4096.0);
        assert!((sharing.within.bytes - within).abs() < 4.0 * sharing.within.standard_error);
        assert!((sharing.across.bytes - across).abs() < 4.0 * sharing.across.standard_error);
    }
}
