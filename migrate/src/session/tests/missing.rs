//! Memory of which pages are missing, for a guest that consists only of memory.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::memory::FakeMemory;
use crate::guest::{ChunkPages, GuestError, MissingMemory, Waits};

/// Longest wait for a page; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the last pages take to be dropped: time for others to be placed too early.
const LAST_DROP: Duration = Duration::from_millis(100);

pub(super) struct FakeMissing {
    memory: Arc<FakeMemory>,
    pages: Mutex<Pages>,
    changed: Condvar,
}

#[derive(Default)]
struct Pages {
    missing: Vec<u64>,
    wanted: Vec<u64>,
    /// Wanted pages that were not returned yet.
    new: Vec<ChunkPages>,
    /// Wanted pages with the time from which they are waited for.
    since: Vec<(ChunkPages, Instant)>,
    waits: Vec<Duration>,
    is_ended: bool,
    /// Whether `wanted` is to return, whatever is wanted.
    is_interrupted: bool,
    /// How often pages were dropped: for a guest, twice.
    drops: u32,
    is_placed_early: bool,
}

impl FakeMissing {
    pub(super) fn new(memory: Arc<FakeMemory>) -> Self {
        let none = vec![0; memory.chunks()];
        let pages = Pages { missing: none.clone(), wanted: none, ..Pages::default() };
        Self { memory, pages: Mutex::new(pages), changed: Condvar::new() }
    }

    /// Waits for a page as a guest does that reads it.
    pub(super) fn read(&self, page: usize) {
        let (chunk, bit) = (page / 64, 1 << (page % 64));
        let mut pages = self.lock();
        if pages.missing[chunk] & bit != 0 && pages.wanted[chunk] & bit == 0 {
            pages.wanted[chunk] |= bit;
            pages.new.push((chunk, bit));
            pages.since.push(((chunk, bit), Instant::now()));
            self.changed.notify_all();
        }
        let is_absent = |pages: &mut Pages| !pages.is_ended && pages.missing[chunk] & bit != 0;
        let waited = self.changed.wait_timeout_while(pages, PATIENCE, is_absent);
        let in_time = !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        assert!(in_time, "page {page} did not come");
    }

    /// Whether a page was placed before the last ones were dropped.
    pub(super) fn was_placed_early(&self) -> bool {
        self.lock().is_placed_early
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrive(&self, chunk: usize, mask: u64, content: impl Fn(usize) -> Vec<u8>) {
        let mut pages = self.lock();
        let placed = mask & pages.missing[chunk];
        self.memory.with(chunk, |bytes| {
            for page in (0..64).filter(|page| placed >> page & 1 == 1) {
                bytes[page * 4096..][..4096].copy_from_slice(&content(page));
            }
        });
        let is_early = pages.drops < 2 && placed != 0;
        pages.is_placed_early |= is_early;
        pages.missing[chunk] &= !placed;
        pages.wanted[chunk] &= !placed;
        let ended = |((at, bit), _): &mut (ChunkPages, Instant)| *at == chunk && placed & *bit != 0;
        let ended: Vec<_> = pages.since.extract_if(.., ended).collect();
        pages.waits.extend(ended.into_iter().map(|(_, since)| since.elapsed()));
        pages.is_interrupted |= placed != 0 && pages.missing.iter().all(|word| *word == 0);
        self.changed.notify_all();
    }
}

impl MissingMemory for FakeMissing {
    fn clear(&self, words: &[u64]) -> Result<(), GuestError> {
        let mut pages = self.lock();
        if pages.drops == 1 {
            let waited =
                self.changed.wait_timeout_while(pages, LAST_DROP, |pages| !pages.is_placed_early);
            (pages, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        pages.drops += 1;
        for (chunk, word) in words.iter().enumerate() {
            pages.missing[chunk] |= word;
            // What a guest would read that does not wait.
            self.memory.with(chunk, |bytes| {
                for page in (0..64).filter(|page| word >> page & 1 == 1) {
                    bytes[page * 4096..][..4096].fill(0xEE);
                }
            });
        }
        Ok(())
    }

    fn wanted(&self) -> Result<Vec<ChunkPages>, GuestError> {
        let has_nothing = |pages: &mut Pages| pages.new.is_empty() && !pages.is_interrupted;
        let waited = self.changed.wait_while(self.lock(), has_nothing);
        let mut pages = waited.unwrap_or_else(PoisonError::into_inner);
        pages.is_interrupted = false;
        Ok(std::mem::take(&mut pages.new))
    }

    fn interrupt(&self) {
        self.lock().is_interrupted = true;
        self.changed.notify_all();
    }

    fn place(&self, chunk: usize, first_page: usize, content: &[u8]) -> Result<(), GuestError> {
        let count = content.len() / 4096;
        let mask = (0..count).fold(0, |mask, page| mask | 1 << (first_page + page));
        self.arrive(chunk, mask, |page| content[(page - first_page) * 4096..][..4096].to_vec());
        Ok(())
    }

    fn place_zeros(&self, chunk: usize, mask: u64) -> Result<(), GuestError> {
        self.arrive(chunk, mask, |_| vec![0; 4096]);
        Ok(())
    }

    fn left(&self) -> u64 {
        self.lock().missing.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    fn missing(&self) -> Vec<ChunkPages> {
        listed(&self.lock().missing)
    }

    fn waited_for(&self) -> Vec<ChunkPages> {
        listed(&self.lock().wanted)
    }

    fn waits(&self) -> Waits {
        let mut pages = self.lock();
        let oldest = pages.since.iter().map(|(_, since)| since.elapsed()).max();
        Waits { ended: std::mem::take(&mut pages.waits), oldest }
    }

    fn end(&self) -> Result<(), GuestError> {
        self.lock().is_ended = true;
        self.changed.notify_all();
        Ok(())
    }
}

fn listed(words: &[u64]) -> Vec<ChunkPages> {
    words.iter().copied().enumerate().filter(|(_, word)| *word != 0).collect()
}
