//! What the data streams have carried, so that it is known what a lost connection has cost.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::memory::PageSet;

/// For each chunk, the last frame that carried it and the pages of all that did.
#[derive(Debug, Default)]
pub(super) struct Journal(Vec<Entry>);

/// Only the stream that carries a chunk changes its entry.
#[derive(Debug, Default)]
struct Entry {
    /// Number of the frame among those of its stream, counting from 1; 0 if none has carried it.
    frame: AtomicU64,
    pages: AtomicU64,
}

impl Journal {
    /// Creates the journal of a guest of `chunks` chunks, of which nothing was sent.
    pub(super) fn new(chunks: usize) -> Self {
        Self(std::iter::repeat_with(Entry::default).take(chunks).collect())
    }

    /// Notes that frame `frame` of its stream carries these pages of a chunk.
    pub(super) fn note(&self, chunk: usize, pages: u64, frame: u64) {
        if let Some(entry) = self.0.get(chunk) {
            entry.pages.fetch_or(pages, Relaxed);
            entry.frame.store(frame, Relaxed);
        }
    }

    /// Returns which of these pages no frame has carried after the first `frames` of each stream.
    pub(super) fn unsent(&self, pages: &PageSet, frames: &[u64]) -> PageSet {
        let mut unsent = PageSet::empty(pages.chunks());
        for (chunk, word) in pages.iter() {
            let is_sent = self.0.get(chunk).is_some_and(|it| it.is_after(frames_of(chunk, frames)));
            if !is_sent {
                unsent.words_mut()[chunk] = word;
            }
        }
        unsent
    }

    /// Returns the pages that were carried after the first `applied` frames of each stream, or
    /// before, in the same chunk. What has been carried so far is then noted no more.
    pub(super) fn lost(&self, applied: &[u64]) -> PageSet {
        let mut lost = PageSet::empty(self.0.len());
        for (chunk, (entry, word)) in self.0.iter().zip(lost.words_mut()).enumerate() {
            if entry.is_after(frames_of(chunk, applied)) {
                *word = entry.pages.load(Relaxed);
            }
            entry.pages.store(0, Relaxed);
            entry.frame.store(0, Relaxed);
        }
        lost
    }
}

impl Entry {
    fn is_after(&self, frame: u64) -> bool {
        self.frame.load(Relaxed) > frame
    }
}

/// Returns how many frames the stream has that carries this chunk.
fn frames_of(chunk: usize, frames: &[u64]) -> u64 {
    frames.get(chunk % frames.len().max(1)).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(set: &PageSet) -> Vec<u64> {
        set.words().to_vec()
    }

    #[test]
    fn what_was_sent_after_the_last_frame_that_is_there_is_lost() {
        let journal = Journal::new(5);
        // Two streams: chunks 0, 2 and 4 on the first, 1 and 3 on the second.
        journal.note(0, 0b1, 1);
        journal.note(2, 0b10, 2);
        journal.note(1, 0b100, 1);
        journal.note(0, 0b1000, 3);
        assert_eq!(words(&journal.lost(&[2, 0])), [0b1001, 0b100, 0, 0, 0]);
        assert_eq!(words(&journal.lost(&[0, 0])), [0; 5], "it is dirty again, or there");
    }

    #[test]
    fn what_no_frame_of_a_round_has_carried_is_unsent() {
        let journal = Journal::new(4);
        journal.note(0, 1, 1);
        journal.note(1, 1, 1);
        journal.note(2, 1, 2);
        let round = PageSet::full(4);
        let full = u64::MAX;
        assert_eq!(words(&journal.unsent(&round, &[1, 1])), [full, full, 0, full]);
        assert_eq!(words(&journal.unsent(&round, &[0, 0])), [0, 0, 0, full]);
    }

    #[test]
    fn of_streams_that_are_not_named_all_is_lost() {
        let journal = Journal::new(2);
        journal.note(1, 3, 9);
        assert_eq!(words(&journal.lost(&[])), [0, 3]);
    }
}
