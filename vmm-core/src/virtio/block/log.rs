//! Records which parts of a disk the guest has written: the counterpart of dirty-page tracking.
//!
//! A bit stands for a page of 4096 bytes, a word for a chunk, as in the dirty bitmap of memory. The
//! device marks a range *after* it was written, even if the write failed half-way. So a reader that
//! clears a bit before it reads misses nothing: a write in flight sets the bit again, and a pause
//! waits for all writes.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::memory::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};

/// The write log of a disk; see the module. It costs nothing while it is stopped.
#[derive(Debug, Default)]
pub(super) struct WriteLog(RwLock<Option<Vec<AtomicU64>>>);

impl WriteLog {
    /// Starts to log writes to a disk of `bytes`, with nothing marked.
    pub(super) fn start(&self, bytes: u64) {
        let chunks = bytes.div_ceil(CHUNK_BYTES as u64) as usize;
        let words = std::iter::repeat_with(AtomicU64::default).take(chunks).collect();
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(words);
    }

    /// Stops logging and drops the bits.
    pub(super) fn stop(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Marks a range that was written.
    pub(super) fn mark(&self, offset: u64, bytes: u64) {
        self.with(|words| {
            each_word(offset, bytes, |chunk, mask| {
                if let Some(word) = words.get(chunk) {
                    word.fetch_or(mask, Ordering::AcqRel);
                }
            });
        });
    }

    /// Adds the marked bits to `into` (by OR), from the disk's first chunk on.
    pub(super) fn collect(&self, into: &mut [u64]) {
        self.with(|words| {
            for (into, word) in into.iter_mut().zip(words) {
                *into |= word.load(Ordering::Acquire);
            }
        });
    }

    /// Clears the bits that are set in `masks`, from chunk `first` on.
    pub(super) fn clear(&self, first: usize, masks: &[u64]) {
        self.with(|words| {
            for (word, mask) in words.iter().skip(first).zip(masks) {
                word.fetch_and(!mask, Ordering::AcqRel);
            }
        });
    }

    fn with(&self, inspect: impl FnOnce(&[AtomicU64])) {
        if let Some(words) = &*self.0.read().unwrap_or_else(PoisonError::into_inner) {
            inspect(words);
        }
    }
}

/// Returns the pages that the range touches.
pub(super) fn pages_of(offset: u64, bytes: u64) -> Range<u64> {
    let (page, first) = (PAGE_BYTES as u64, offset / PAGE_BYTES as u64);
    let end = if bytes == 0 { first } else { offset.saturating_add(bytes).div_ceil(page) };
    first..end
}

/// Calls `set` for every chunk that the range touches, with the mask of the touched pages.
pub(super) fn each_word(offset: u64, bytes: u64, mut set: impl FnMut(usize, u64)) {
    let pages = CHUNK_PAGES as u64;
    let Range { start: mut page, end } = pages_of(offset, bytes);
    while page < end {
        let (chunk, first) = (page / pages, page % pages);
        let count = (pages - first).min(end - page);
        let mask = (u64::MAX >> (pages - count)) << first;
        set(chunk as usize, mask);
        page += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = CHUNK_BYTES as u64;

    fn collected(log: &WriteLog, chunks: usize) -> Vec<u64> {
        let mut words = vec![0; chunks];
        log.collect(&mut words);
        words
    }

    #[test]
    fn a_write_marks_every_page_that_it_touches() {
        let log = WriteLog::default();
        log.mark(0, 512);
        log.start(3 * CHUNK - 512);
        assert_eq!(collected(&log, 3), [0, 0, 0], "what was written before is not told");
        log.mark(512, 512);
        log.mark(4096 * 2 - 512, 1024);
        log.mark(CHUNK - 1, 2);
        log.mark(2 * CHUNK, CHUNK);
        assert_eq!(collected(&log, 3), [0b111 | 1 << 63, 1, u64::MAX]);
        log.mark(u64::MAX - 5, 100);
        log.clear(1, &[1, 0b10]);
        assert_eq!(collected(&log, 3), [0b111 | 1 << 63, 0, !0b10]);
        log.stop();
        log.mark(0, 512);
        assert_eq!(collected(&log, 1), [0]);
    }

    #[test]
    fn whole_chunks_have_all_bits() {
        let mut seen = Vec::new();
        each_word(0, 2 * CHUNK + 1, |chunk, mask| seen.push((chunk, mask)));
        assert_eq!(seen, [(0, u64::MAX), (1, u64::MAX), (2, 1)]);
        each_word(7, 0, |_, _| panic!("an empty range touches a page"));
    }
}
