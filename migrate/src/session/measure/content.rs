//! Samples what the guest's pages contain.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use uuid::Uuid;

use crate::guest::{GuestError, SourceGuest};
use crate::memory::PAGE_BYTES;
use crate::pages::{Sampler, is_zero};

/// Pages that are read. With 1024, a share of a half is off by more than 3 % once in twenty times.
const SAMPLES: u64 = 1024;
/// Pages of a chunk.
const CHUNK_PAGES: u64 = 64;

/// What a sample of memory contains.
#[derive(Debug)]
pub(super) struct Content {
    /// Share of pages that are zero.
    pub(super) zero_ratio: f64,
    /// Share of the others that lz4 shrinks.
    pub(super) compressible_ratio: f64,
    /// Time to read a page and find that it is zero.
    pub(super) zero_page_seconds: f64,
    /// Chunks with a page that is not zero, in random order.
    pub(super) chunks: Vec<usize>,
}

/// Reads pages at random places of the `chunks` chunks of memory.
///
/// # Errors
/// If the memory cannot be read.
pub(super) fn sample(guest: &dyn SourceGuest, chunks: usize) -> Result<Content, GuestError> {
    let pages = chunks as u64 * CHUNK_PAGES;
    let mut random = Random::new();
    let mut sampler = Sampler::default();
    let mut page = [0; PAGE_BYTES];
    let (mut zero, mut compressible, mut on_zero) = (0_u64, 0_u64, Duration::ZERO);
    let (mut with_content, mut seen) = (Vec::new(), BTreeSet::new());
    for _ in 0..SAMPLES {
        let number = random.below(pages);
        let chunk = (number / CHUNK_PAGES) as usize;
        let began = Instant::now();
        guest.copy_out(chunk, (number % CHUNK_PAGES) as usize, &mut page)?;
        if is_zero(&page) {
            zero += 1;
            on_zero += began.elapsed();
            continue;
        }
        compressible += u64::from(sampler.compresses(&page));
        if seen.insert(chunk) {
            with_content.push(chunk);
        }
    }
    let share = |part: u64, of: u64| part as f64 / of.max(1) as f64;
    Ok(Content {
        zero_ratio: share(zero, SAMPLES),
        compressible_ratio: share(compressible, SAMPLES - zero),
        zero_page_seconds: on_zero.as_secs_f64() / zero.max(1) as f64,
        chunks: with_content,
    })
}

/// Random numbers for samples: SplitMix64 (Steele, Lea and Flood 2014), with a random seed.
struct Random(u64);

impl Random {
    fn new() -> Self {
        Self(Uuid::new_v4().as_u64_pair().1)
    }

    /// Returns a number below `limit`, or 0 if that is 0.
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)).checked_rem(limit).unwrap_or(0)
    }
}
