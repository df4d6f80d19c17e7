//! Counts the pages that a guest writes in each chunk, and tells the chunks that it writes again
//! and again from the others.

use super::Written;
use crate::memory::PageSet;

/// Most windows that are kept.
const WINDOWS_MAX: usize = 5;

/// How many pages of each chunk were written in windows of growing length: a byte for each.
#[derive(Debug)]
pub(crate) struct ChunkCounts {
    seconds: Vec<f64>,
    pages: Vec<[u8; WINDOWS_MAX]>,
}

impl ChunkCounts {
    /// Creates the counts of `chunks` chunks, without windows.
    pub(crate) fn new(chunks: usize) -> Self {
        Self { seconds: Vec::new(), pages: vec![[0; WINDOWS_MAX]; chunks] }
    }

    /// Adds a window of `seconds`, the time in which the pages of `written` were written. Windows
    /// beyond [`WINDOWS_MAX`] are not kept.
    pub(crate) fn add(&mut self, seconds: f64, written: &PageSet) {
        let window = self.seconds.len();
        if window == WINDOWS_MAX {
            return;
        }
        self.seconds.push(seconds);
        for (counts, word) in self.pages.iter_mut().zip(written.words()) {
            counts[window] = word.count_ones() as u8;
        }
    }

    /// Returns the pages of each window. A chunk is written again and again if at least half of
    /// its pages that were written `first` were written once more `later`.
    pub(crate) fn windows(&self, first: &PageSet, later: &PageSet) -> Vec<Written> {
        let hot = |(first, later): (&u64, &u64)| {
            *first != 0 && (first & later).count_ones() * 2 >= first.count_ones()
        };
        let hot: Vec<bool> = first.words().iter().zip(later.words()).map(hot).collect();
        let window = |(index, seconds): (usize, &f64)| {
            let mut window = Written { seconds: *seconds, pages: 0, hot_pages: 0 };
            for (counts, hot) in self.pages.iter().zip(&hot) {
                let pages = u64::from(counts[index]);
                window.pages += pages;
                window.hot_pages += if *hot { pages } else { 0 };
            }
            window
        };
        self.seconds.iter().enumerate().map(window).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOT_CHUNKS: u64 = 256;
    const COLD_CHUNKS: u64 = 8192;

    /// Adds to `set` what the guest writes from one time to the other, in milliseconds.
    type Guest = fn(&mut PageSet, u64, u64);

    /// Counts what a guest writes as an estimate does: for a second, and then in windows of the
    /// next.
    fn counted(guest: Guest) -> Vec<Written> {
        let chunks = (HOT_CHUNKS + COLD_CHUNKS) as usize;
        let (mut counts, mut first) = (ChunkCounts::new(chunks), PageSet::empty(chunks));
        guest(&mut first, 0, 1000);
        let mut later = PageSet::empty(chunks);
        for ms in [30, 100, 300, 1000] {
            guest(&mut later, 1000, 1000 + ms);
            counts.add(ms as f64 / 1e3, &later);
        }
        let mut all = first.clone();
        all.union(&later);
        counts.add(2.0, &all);
        counts.windows(&first, &later)
    }

    fn insert(set: &mut PageSet, page: u64) {
        set.insert((page / 64) as usize, (page % 64) as usize);
    }

    /// Goes through 64 MiB again and again, at 20,000 pages per second.
    fn sweep(set: &mut PageSet, from: u64, to: u64) {
        (from * 20..to * 20).for_each(|page| insert(set, page % (HOT_CHUNKS * 64)));
    }

    /// Writes 2,000 pages of the other 2 GiB per second, each of another chunk than the last.
    fn scatter(set: &mut PageSet, from: u64, to: u64) {
        for number in from * 2..to * 2 {
            let chunk = HOT_CHUNKS + number * 4099 % COLD_CHUNKS;
            insert(set, chunk * 64 + number / COLD_CHUNKS % 64);
        }
    }

    #[test]
    fn hot_chunks_are_told_from_those_that_are_written_now_and_then() {
        let windows = counted(|set, from, to| {
            sweep(set, from, to);
            scatter(set, from, to);
        });
        for (window, hot) in windows.iter().zip([600, 2000, 6000, 16_384, 16_384]) {
            let cold = (window.seconds * 2000.0) as u64;
            assert_eq!((window.hot_pages, window.pages), (hot, hot + cold), "{window:?}");
        }
    }

    #[test]
    fn ever_new_pages_are_not_hot_and_no_pages_are_none() {
        let windows = counted(|set, from, to| {
            (from * 20..to * 20).for_each(|page| insert(set, page));
        });
        let pages: Vec<_> = windows.iter().map(|window| window.pages).collect();
        assert_eq!(pages, [600, 2000, 6000, 20_000, 40_000]);
        assert!(windows.iter().all(|window| window.hot_pages == 0), "{windows:?}");
        let idle = counted(|_, _, _| {});
        assert!(idle.iter().all(|window| window.pages == 0), "{idle:?}");
    }

    #[test]
    fn a_chunk_is_hot_if_half_of_what_was_written_there_was_written_again() {
        let (mut first, mut later) = (PageSet::empty(2), PageSet::empty(2));
        for page in 0..4 {
            first.insert(0, page);
            first.insert(1, page);
        }
        later.insert(0, 3);
        later.insert(0, 2);
        later.insert(1, 3);
        later.insert(1, 9);
        let mut counts = ChunkCounts::new(2);
        counts.add(1.0, &first);
        let expected = Written { seconds: 1.0, pages: 8, hot_pages: 4 };
        assert_eq!(counts.windows(&first, &later), [expected]);
    }
}
