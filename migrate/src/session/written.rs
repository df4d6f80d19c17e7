//! The pages of an arriving guest that have content by now: one word per chunk, allocated in
//! blocks, each with its first page that has content.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Words allocated together: 4 KiB, no more than the page that makes them necessary. A peer may
/// announce 16 TiB of disks that hold nothing.
const BLOCK_WORDS: usize = 512;

/// Masks of the pages with content, one per chunk, allocated in blocks.
pub(super) struct Written(Vec<OnceLock<Box<[AtomicU64; BLOCK_WORDS]>>>);

impl Written {
    /// Creates an empty set for `chunks` chunks.
    pub(super) fn new(chunks: usize) -> Self {
        let blocks = chunks.div_ceil(BLOCK_WORDS);
        Self(std::iter::repeat_with(OnceLock::new).take(blocks).collect())
    }

    /// Returns the mask of the pages of `chunk` that have content.
    pub(super) fn of(&self, chunk: usize) -> u64 {
        let block = self.0.get(chunk / BLOCK_WORDS).and_then(OnceLock::get);
        block.map_or(0, |words| words[chunk % BLOCK_WORDS].load(Relaxed))
    }

    /// Sets the mask of the pages of `chunk` that have content.
    pub(super) fn set(&self, chunk: usize, pages: u64) {
        if pages == self.of(chunk) {
            return;
        }
        if let Some(block) = self.0.get(chunk / BLOCK_WORDS) {
            let words = block.get_or_init(|| Box::new([const { AtomicU64::new(0) }; BLOCK_WORDS]));
            words[chunk % BLOCK_WORDS].store(pages, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_blocks_with_set_bits_take_memory() {
        let written = Written::new(3 * BLOCK_WORDS + 1);
        written.set(5, 0);
        written.set(BLOCK_WORDS, 0b101);
        written.set(3 * BLOCK_WORDS, u64::MAX);
        let taken: Vec<_> = written.0.iter().map(|block| block.get().is_some()).collect();
        assert_eq!(taken, [false, true, false, true]);
        let seen =
            [5, BLOCK_WORDS, BLOCK_WORDS + 1, 3 * BLOCK_WORDS].map(|chunk| written.of(chunk));
        assert_eq!(seen, [0, 0b101, 0, u64::MAX]);
        written.set(BLOCK_WORDS, 0);
        assert_eq!(written.of(BLOCK_WORDS), 0);
    }
}
