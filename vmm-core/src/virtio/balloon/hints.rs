//! Free page hinting (virtio 1.2, 5.5.6.6): at the host's asking, the driver takes all free pages
//! that it can get and names them, and keeps them until it is told that the host is done.
//!
//! Unlike a reported page, a hinted one may be taken back and written by the guest at any time,
//! also before its hint was looked at. So nothing is dropped here: the pages are only noted, and
//! whoever asked leaves those alone that were written since.

use std::ops::Range;

use crate::memory::{CHUNK_PAGES, GuestRam};

/// The host wants no hints (`VIRTIO_BALLOON_CMD_ID_STOP`); in the driver's mouth, it has no more.
pub(super) const STOP: u32 = 0;
/// The host is done: the driver takes its pages back (`VIRTIO_BALLOON_CMD_ID_DONE`).
pub(super) const DONE: u32 = 1;
/// The least id of a command; QEMU's, too. A command has another than the one before it.
pub(super) const ID_MIN: u32 = 1 << 31;

const PAGE_BYTES: u64 = super::PAGE_BYTES;

/// How far a guest is with its hints.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HintProgress {
    /// Pages named so far.
    pub pages: u64,
    /// Nothing more is to come.
    pub complete: bool,
}

/// Where a command stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Stage {
    /// There is none, or it has ended.
    #[default]
    Idle,
    /// The driver has not answered, or answers an older one.
    Asked,
    /// The driver names pages.
    Answering,
    /// It has named all that it could.
    Answered,
}

/// The last command and what came of it.
#[derive(Debug, Default)]
pub(super) struct Hints {
    /// Its id; 0 when there was none.
    id: u32,
    stage: Stage,
    /// The pages that were named, a word for each chunk; empty while there is no command.
    words: Vec<u64>,
    /// The driver may hold pages for a host that the guest has left.
    pub(super) owes_done: bool,
}

impl Hints {
    /// A balloon whose last command, given elsewhere, was `id`.
    ///
    /// # Errors
    /// A sentence, when no command can have it.
    pub(super) fn after(id: u32) -> Result<Self, String> {
        if id != 0 && id < ID_MIN {
            return Err(format!("no command for hints has the id {id}"));
        }
        Ok(Self { id, owes_done: id != 0, ..Self::default() })
    }

    /// The last command's id; 0 when there was none.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// A command is under way.
    pub(super) fn is_asking(&self) -> bool {
        self.stage != Stage::Idle
    }

    /// What the configuration space says.
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

    /// Ends the command; returns the pages that were named: none when there was no command.
    pub(super) fn end(&mut self) -> Vec<u64> {
        self.stage = Stage::Idle;
        self.owes_done = false;
        std::mem::take(&mut self.words)
    }

    /// The driver is gone, with all that it held; its successor has heard of no command.
    pub(super) fn forget(&mut self) {
        self.stage = Stage::Idle;
        self.words = Vec::new();
        self.owes_done = false;
    }

    /// The driver begins to answer the command `id`, or says that it has no more.
    pub(super) fn on_command(&mut self, id: u32) {
        self.stage = match (self.stage, id) {
            (Stage::Idle, _) => Stage::Idle,
            (Stage::Asked, STOP) => Stage::Asked,
            (Stage::Answering | Stage::Answered, STOP) => Stage::Answered,
            _ if id == self.id => Stage::Answering,
            _ => Stage::Asked,
        };
    }

    /// The driver names these pages, all of them RAM. They count when it answers the command that
    /// stands.
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

    /// How far it is.
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
