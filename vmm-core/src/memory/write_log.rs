//! A log of the pages of guest memory that the host's kernel writes for a device of the guest
//! (vhost). KVM sees only what vCPUs write, and vm-memory only what this process writes.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{CHUNK_BYTES, RamLayout, RamRegion};

/// The pages that the kernel wrote, one bit each, by guest-physical address: a word for each chunk
/// of the address space, so that the hole between the regions has words too.
///
/// The kernel is given the log's address (`VHOST_SET_LOG_BASE`) and writes to it at any time. So it
/// is never moved, and lives as long as the guest's memory.
#[derive(Debug)]
pub(crate) struct WriteLog {
    words: Vec<AtomicU64>,
}

impl WriteLog {
    /// Creates an empty log for RAM of this layout.
    pub(super) fn new(layout: &RamLayout) -> Self {
        let end = layout.regions().iter().map(|region| region.gpa + region.bytes).max();
        let chunks = end.unwrap_or(0).div_ceil(CHUNK_BYTES as u64);
        Self { words: (0..chunks).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Returns the address of the log in this process.
    pub(crate) fn address(&self) -> u64 {
        self.words.as_ptr() as u64
    }

    /// Adds what was written in `region` to `words`, one for each of its chunks, and clears that
    /// record.
    pub(crate) fn take(&self, region: &RamRegion, words: &mut [u64]) {
        let first = region.gpa as usize / CHUNK_BYTES;
        for (word, written) in words.iter_mut().zip(&self.words[first..]) {
            // Most words are 0: a plain load leaves their cache lines shared.
            if written.load(Ordering::Relaxed) != 0 {
                *word |= written.swap(0, Ordering::AcqRel);
            }
        }
    }

    /// Notes a write to the page at `gpa`, as `log_write` of drivers/vhost/vhost.c does.
    #[cfg(test)]
    pub(crate) fn note(&self, gpa: u64) {
        let page = gpa as usize / super::PAGE_BYTES;
        self.words[page / 64].fetch_or(1 << (page % 64), Ordering::AcqRel);
    }

    /// Clears the log.
    pub(crate) fn clear(&self) {
        self.words.iter().for_each(|word| word.store(0, Ordering::Release));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_taken_once_from_both_sides_of_the_hole() {
        let layout = RamLayout::new((3 << 30) + (1 << 20)).unwrap();
        let log = WriteLog::new(&layout);
        let end = (4 << 30) + (1 << 20);
        for gpa in [0, 5 * 4096, (3 << 30) - 4096, 4 << 30, end - 4096] {
            log.note(gpa);
        }
        let [low, high] = layout.regions() else { panic!("two regions") };
        let mut words = vec![0; low.chunks()];
        log.take(low, &mut words);
        assert_eq!((words[0], words[1], words[low.chunks() - 1]), (0b10_0001, 0, 1 << 63));
        let mut words = vec![1 << 7; high.chunks()];
        log.take(high, &mut words);
        assert_eq!(words, [1 << 7 | 1, 1 << 7, 1 << 7, 1 << 7 | 1 << 63]);
        let mut words = vec![0; high.chunks()];
        log.take(high, &mut words);
        assert_eq!(words, [0; 4], "they were taken");
    }

    #[test]
    fn a_cleared_log_has_no_page() {
        let layout = RamLayout::new(4 << 20).unwrap();
        let log = WriteLog::new(&layout);
        log.note(4096);
        log.clear();
        let mut words = vec![0; 16];
        log.take(&layout.regions()[0], &mut words);
        assert_eq!(words, [0; 16]);
    }
}
