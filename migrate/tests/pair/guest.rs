//! A guest of a few chunks whose pages are numbers. While it runs, it dirties them at a given rate.

use std::time::Duration;

use migrate::memory::{CHUNK_BYTES, MemoryLayout, PAGES_PER_CHUNK, Region};
use migrate::text::Blob;
use migrate::{GuestDescription, PageSet, Throttle};
use uuid::Uuid;

/// Number of chunks of the guest's memory, in two regions.
pub(crate) const CHUNKS: usize = 6;

pub(crate) fn description() -> GuestDescription {
    let bytes = (CHUNKS as u64 / 2) * CHUNK_BYTES as u64;
    let regions = vec![Region { base: 0, bytes }, Region { base: 1 << 32, bytes }];
    GuestDescription {
        name: "web-1".to_owned(),
        uuid: Uuid::from_u128(1),
        layout: MemoryLayout::new(regions).unwrap(),
        vcpus: 2,
        config: Blob(vec![1, 2, 3]),
        disks: Vec::new(),
        has_pci: false,
    }
}

/// The content of a copy of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) memory: Vec<u64>,
    /// Counts the guest's writes; serves as the guest's registers.
    pub(crate) stamp: u64,
}

#[derive(Debug)]
pub(crate) struct SimGuest {
    pub(crate) content: Content,
    pub(crate) running: bool,
    pub(crate) logging: bool,
    log: PageSet,
    /// Pages that are still at the source.
    pub(crate) missing: PageSet,
    /// Share of the time that it rests, in percent.
    pub(crate) throttle: Throttle,
    writes_per_second: u32,
    working_set: u64,
    ran_until: Duration,
}

impl SimGuest {
    pub(crate) fn filled(writes_per_second: u32, working_set: u64) -> Self {
        let mut guest = Self::zeroed(writes_per_second, working_set);
        for page in 0..guest.content.memory.len() {
            // A third of the pages is zero.
            guest.content.memory[page] =
                if page.is_multiple_of(3) { 0 } else { 1_000_000 + page as u64 };
        }
        guest
    }

    pub(crate) fn zeroed(writes_per_second: u32, working_set: u64) -> Self {
        Self {
            content: Content { memory: vec![0; CHUNKS * PAGES_PER_CHUNK], stamp: 0 },
            running: false,
            logging: false,
            log: PageSet::empty(CHUNKS),
            missing: PageSet::empty(CHUNKS),
            throttle: Throttle::default(),
            writes_per_second,
            working_set: working_set.max(1),
            ran_until: Duration::ZERO,
        }
    }

    /// Performs the writes of a running guest until `now`; after long waits only the last part of
    /// them.
    pub(crate) fn advance(&mut self, now: Duration) {
        let past = now.saturating_sub(self.ran_until);
        let runs = u128::from(100 - self.throttle.percent);
        let writes = past.as_micros() * u128::from(self.writes_per_second) * runs / 100_000_000;
        if writes == 0 && self.running {
            return;
        }
        self.ran_until = now;
        if self.running {
            for _ in 0..writes.min(64) {
                self.write();
            }
        }
    }

    /// Performs one write, somewhere in the working set; every seventh one zeroes the page. Waits
    /// if the page is missing.
    pub(crate) fn write(&mut self) {
        let stamp = self.content.stamp + 1;
        let pages = self.content.memory.len() as u64;
        let page = (stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % self.working_set.min(pages);
        let (chunk, place) = (page as usize / PAGES_PER_CHUNK, page as usize % PAGES_PER_CHUNK);
        if self.missing.contains(chunk, place) {
            return;
        }
        self.content.stamp = stamp;
        self.content.memory[page as usize] = if stamp.is_multiple_of(7) { 0 } else { stamp };
        if self.logging {
            self.log.insert(chunk, place);
        }
    }

    /// Drops these pages: they are missing from now on.
    pub(crate) fn lose(&mut self, pages: &PageSet) {
        self.missing.union(pages);
        for page in 0..self.content.memory.len() {
            if pages.contains(page / PAGES_PER_CHUNK, page % PAGES_PER_CHUNK) {
                self.content.memory[page] = u64::MAX;
            }
        }
    }

    /// Takes those of the pages of a chunk in `mask` that are missing.
    pub(crate) fn arrive(&mut self, chunk: usize, mask: u64, pages: &[u64]) {
        let mask = mask & self.missing.words()[chunk];
        self.missing.words_mut()[chunk] &= !mask;
        for (page, content) in pages.iter().enumerate().filter(|(page, _)| mask >> page & 1 == 1) {
            self.content.memory[chunk * PAGES_PER_CHUNK + page] = *content;
        }
    }

    /// Whether it has this content, apart from pages that are missing.
    pub(crate) fn has(&self, content: &Content) -> bool {
        let is_missing =
            |page: usize| self.missing.contains(page / PAGES_PER_CHUNK, page % PAGES_PER_CHUNK);
        let pages = self.content.memory.iter().zip(&content.memory).enumerate();
        let mut pages = pages.filter(|(page, _)| !is_missing(*page));
        self.content.stamp == content.stamp && pages.all(|(_, (own, other))| own == other)
    }

    pub(crate) fn start_log(&mut self) {
        self.logging = true;
        self.log = PageSet::full(CHUNKS);
    }

    pub(crate) fn stop_log(&mut self) {
        self.logging = false;
    }

    pub(crate) fn collect(&self, into: &mut PageSet) {
        into.union(&self.log);
    }

    pub(crate) fn rearm(&mut self, chunk: usize, mask: u64) {
        self.log.words_mut()[chunk] &= !mask;
    }

    /// Saves the "registers", which dirties a page as on real machines.
    pub(crate) fn save_state(&mut self) -> Vec<u8> {
        self.write();
        self.content.stamp.to_le_bytes().to_vec()
    }

    pub(crate) fn load_state(&mut self, state: &[u8]) -> bool {
        let Ok(bytes) = state.try_into() else { return false };
        self.content.stamp = u64::from_le_bytes(bytes);
        true
    }
}
