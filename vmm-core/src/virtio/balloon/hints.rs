//! Free page hinting (virtio 1.2, 5.5.6.6): on request of the host, the driver allocates all free
//! pages that it can get, names them, and keeps them until the host says that it is done.
//!
//! Unlike a reported page, a hinted one may be taken back and written by the guest at any time,
//! even before its hint was processed. So this module drops nothing: it only records the pages, and
//! the requester must treat those that were written since as used.

use std::ops::Range;

use crate::memory::{CHUNK_PAGES, GuestRam};

/// No hints wanted (`VIRTIO_BALLOON_CMD_ID_STOP`); sent by the driver, it means "no more hints".
pub(super) const STOP: u32 = 0;
/// The host is done and the driver takes its pages back (`VIRTIO_BALLOON_CMD_ID_DONE`).
pub(super) const DONE: u32 = 1;
/// Lowest id of a command, as in QEMU. Consecutive commands have different ids.
pub(super) const ID_MIN: u32 = 1 << 31;

const PAGE_BYTES: u64 = super::PAGE_BYTES;

/// Progress of a guest's hints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HintProgress {
    /// Pages named so far.
    pub pages: u64,
    /// True if no more pages will be named.
    pub complete: bool,
}

/// State of a command.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// There is no command, or it has ended.
    #[default]
    Idle,
    /// The driver has not answered yet, or is answering an older command.
    Asked,
    /// The driver is naming pages.
    Answering,
    /// The driver has named all pages that it could.
    Answered,
}

/// The last command and the pages named in answer.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// Id of the command; 0 if there was none.
    id: u32,
    stage: Stage,
    /// The pages that were named, one word for each chunk; empty while there is no command.
    words: Vec<u64>,
    /// The driver may still keep pages for a command of the host that the guest came from.
    pub(super) owes_done: bool,
}

impl Hints {
    /// Returns the state of a balloon whose last command, given on another host, was `id`.
    ///
    /// # Errors
    /// If `id` is not a valid command id; the text says so.
    pub(super) fn after(id: u32) -> Result<Self, String> {
        if id != 0 && id < ID_MIN {
            return Err(format!("no command for hints has the id {id}"));
        }
        Ok(Self { id, owes_done: id != 0, ..Self::default() })
    }

    /// Returns the id of the last command; 0 if there was none.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Returns whether a command is active.
    pub(super) fn is_asking(&self) -> bool {
        self.stage != Stage::Idle
    }

    /// Returns the value for the configuration space.
    pub(super) fn command(&self) -> u32 {
        match (self.stage, self.id) {
            (Stage::Idle, 0) => STOP,
            (Stage::Idle, _) => DONE,
            (_, id) => id,
        }
    }

    /// Begins a new command.
    pub(super) fn begin(&mut self, ram: &GuestRam) {
        self.id = self.id.checked_add(1).unwrap_or(ID_MIN).max(ID_MIN);
        self.stage = Stage::Asked;
        self.words = vec![0; ram.chunks()];
        self.owes_done = false;
    }

    /// Ends the command and returns the pages that were named; none if there was no command.
    pub(super) fn end(&mut self) -> Vec<u64> {
        self.stage = Stage::Idle;
        self.owes_done = false;
        std::mem::take(&mut self.words)
    }

    /// Forgets the command: the driver is gone with all that it held, and its successor knows of
    /// none.
    pub(super) fn forget(&mut self) {
        self.stage = Stage::Idle;
        self.words = Vec::new();
        self.owes_done = false;
    }

    /// Records that the driver begins to answer the command `id`, or has no more hints (`STOP`).
    pub(super) fn on_command(&mut self, id: u32) {
        self.stage = match (self.stage, id) {
            (Stage::Idle, _) => Stage::Idle,
            (Stage::Asked, STOP) => Stage::Asked,
            (Stage::Answering | Stage::Answered, STOP) => Stage::Answered,
            _ if id == self.id => Stage::Answering,
            _ => Stage::Asked,
        };
    }

    /// Records pages that the driver names, all of them RAM. They count only if the driver is
    /// answering the current command.
    pub(super) fn on_pages(&mut self, ram: &GuestRam, ranges: &[Range<u64>]) {
        if self.stage != Stage::Answering {
            return;
        }
        for region in ram.layout().regions() {
            let end = region.gpa + region.bytes;
            for range in ranges {
                let (from, to) = (range.start.max(region.gpa), range.end.min(end));
                if from < to {
                    let page = |gpa: u64| ((gpa - region.gpa) / PAGE_BYTES) as usize;
                    let words = self.words.get_mut(region.first_chunk..).unwrap_or_default();
                    set(words, page(from)..page(to));
                }
            }
        }
    }

    /// Returns the progress of the current command.
    pub(super) fn progress(&self) -> HintProgress {
        HintProgress {
            pages: self.words.iter().map(|word| u64::from(word.count_ones())).sum(),
            complete: matches!(self.stage, Stage::Idle | Stage::Answered),
        }
    }
}

/// Sets the bits of `pages`, word by word.
fn set(words: &mut [u64], pages: Range<usize>) {
    let mut from = pages.start;
    while from < pages.end {
        let (index, bit) = (from / CHUNK_PAGES, from % CHUNK_PAGES);
        let count = (CHUNK_PAGES - bit).min(pages.end - from);
        if let Some(word) = words.get_mut(index) {
            *word |= (!0 >> (CHUNK_PAGES - count)) << bit;
        }
        from += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_go_round_and_no_two_in_a_row_are_equal() {
        let ram = GuestRam::anonymous(4 << 20);
        let mut hints = Hints::after(u32::MAX - 1).unwrap();
        let mut ids = Vec::new();
        for _ in 0..3 {
            hints.begin(&ram);
            ids.push(hints.id());
        }
        assert_eq!(ids, [u32::MAX, ID_MIN, ID_MIN + 1]);
        assert!(Hints::after(DONE).is_err() && Hints::after(ID_MIN - 1).is_err());
    }

    #[test]
    fn bits_are_set_across_words() {
        for (from, to) in [(0, 1), (63, 65), (3, 64), (64, 128), (5, 190), (7, 7)] {
            let mut words = [0_u64; 3];
            set(&mut words, from..to);
            let is_set = |page: usize| words[page / 64] >> (page % 64) & 1 == 1;
            assert!((0..192).all(|page| is_set(page) == (from..to).contains(&page)), "{from} {to}");
        }
        set(&mut [0], 60..200);
    }
}
