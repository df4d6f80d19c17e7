//! Sets of 2 MiB blocks of guest memory.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::memory::{CHUNK_BYTES, RamLayout, RamRegion};

/// Bytes of a block, the size of a huge page.
pub(super) const BLOCK_BYTES: usize = 2 << 20;

/// A set of blocks.
#[derive(Debug)]
pub(super) struct BlockSet {
    /// A bit for each block of each region, the regions one after the other.
    words: Vec<AtomicU64>,
}

impl BlockSet {
    /// Creates an empty set for the blocks of `layout`.
    pub(super) fn new(layout: &RamLayout) -> Self {
        let words = (layout.bytes() as usize).div_ceil(BLOCK_BYTES * 64) + 1;
        Self { words: (0..words).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Whether the set contains the block at `offset` of the region at `place`.
    pub(super) fn has(&self, place: &RamRegion, offset: usize) -> bool {
        let (word, bit) = bit(place, offset);
        self.words[word].load(Ordering::Acquire) & bit != 0
    }

    /// Whether the set contains any block.
    pub(super) fn has_any(&self) -> bool {
        self.words.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Adds the blocks that begin in `range` of the region at `place`.
    pub(super) fn add(&self, place: &RamRegion, range: Range<usize>) {
        for (word, bit) in range.step_by(BLOCK_BYTES).map(|at| bit(place, at)) {
            self.words[word].fetch_or(bit, Ordering::Release);
        }
    }

    /// Removes the blocks that begin in `range` of the region at `place`.
    pub(super) fn remove(&self, place: &RamRegion, range: Range<usize>) {
        for (word, bit) in range.step_by(BLOCK_BYTES).map(|at| bit(place, at)) {
            self.words[word].fetch_and(!bit, Ordering::Release);
        }
    }
}

/// Returns word and bit of a block. They are unambiguous because only the last region may end
/// within a block.
fn bit(place: &RamRegion, offset: usize) -> (usize, u64) {
    let block = (place.first_chunk * CHUNK_BYTES + offset) / BLOCK_BYTES;
    (block / 64, 1 << (block % 64))
}
