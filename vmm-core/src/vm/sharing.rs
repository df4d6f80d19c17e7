//! Gives back memory whose content costs nothing to restore: pages that equal the template's, and
//! pages of zeros.

use std::ops::Range;

use super::{RunState, Vm};
use crate::error::Result;
use crate::memory::{HUGE_PAGE_BYTES, MemoryError, PageMap, Writers};

impl Vm {
    /// Gives back the guest's own copies of template pages in `range` (guest-physical addresses,
    /// whole pages) where they equal the template again; `map` reports which pages are copies. The
    /// guest reads the same content as before. It pauses twice: while its copies are
    /// write-protected, and while those that it has not written since are dropped.
    ///
    /// # Errors
    /// [`crate::Error::WrongState`] if the guest has ended; [`MemoryError`]; as [`Vm::resume`].
    pub fn share_with_template(&self, range: &Range<u64>, map: &mut PageMap) -> Result<()> {
        self.ram().share(range, map, self)
    }

    /// Gives back pages of zeros in `range` (guest-physical addresses, whole pages), and splits the
    /// huge pages that contain them. Linux 6.12 and later free zero pages in the split, while the
    /// guest runs; those that `map` still shows afterwards are dropped. The guest reads the same
    /// content as before.
    ///
    /// # Errors
    /// [`MemoryError::KeepsAll`], [`MemoryError::Pinned`] if the guest must have all of its memory;
    /// [`crate::Error::WrongState`] if the guest has ended; other [`MemoryError`]s; as
    /// [`Vm::resume`].
    pub fn drop_zeros(&self, range: &Range<u64>, map: &mut PageMap) -> Result<()> {
        if self.ram().is_pinned() {
            return Err(MemoryError::Pinned.into());
        }
        if self.ram().keeps_all() {
            return Err(MemoryError::KeepsAll.into());
        }
        // Drop huge pages that are entirely zero as a whole, without splitting them.
        let zeros = self.ram().zeros(range, map)?;
        let whole: Vec<_> = zeros.into_iter().filter_map(|run| whole_chunks(&run)).collect();
        self.drop_what_is_zero(&whole)?;
        self.ram().break_up(range)?;
        self.drop_what_is_zero(&self.ram().zeros(range, map)?)
    }

    /// Drops the pages of `runs` that are still zero; they may have been written since they were
    /// found.
    fn drop_what_is_zero(&self, runs: &[Range<u64>]) -> Result<()> {
        if runs.is_empty() {
            return Ok(());
        }
        self.still(|| runs.iter().try_for_each(|run| self.ram().drop_zeros(run).map(drop)))
    }
}

impl Writers for Vm {
    fn still<T>(&self, work: impl FnOnce() -> Result<T, MemoryError>) -> Result<T> {
        let was_running = self.run_state() == RunState::Running;
        self.pause()?;
        let done = work();
        let resumed = if was_running { self.resume() } else { Ok(()) };
        let done = done?;
        resumed.map(|()| done)
    }
}

/// Returns the whole 2 MiB blocks that lie within a run.
fn whole_chunks(run: &Range<u64>) -> Option<Range<u64>> {
    let (start, end) =
        (run.start.next_multiple_of(HUGE_PAGE_BYTES), run.end / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES);
    (start < end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use std::io::sink;

    use super::*;
    use crate::snapshot::{CloneConfig, Template, save_template};
    use crate::testing::{DATA, vm_with, word};

    /// Flips the first bit of RSI pages from RDI on, and repeats.
    const FLIP_PAGES: &[u8] = &[
        0x48, 0x89, 0xf8, // mov rax, rdi
        0x48, 0x89, 0xf1, // mov rcx, rsi
        0x48, 0x83, 0x30, 0x01, // page: xor qword [rax], 1
        0x48, 0x05, 0x00, 0x10, 0x00, 0x00, // add rax, 4096
        0x48, 0xff, 0xc9, // dec rcx
        0x75, 0xf1, // jnz page
        0xeb, 0xe9, // jmp start
    ];
    const PAGES: u64 = 256;

    #[test]
    fn a_guest_that_writes_loses_nothing_while_it_shares_with_its_template() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("template");
        save_template(&vm_with(16, FLIP_PAGES, &[[DATA, PAGES]]), &path).unwrap();
        let own = CloneConfig::default();
        let clone = Template::open(&path).unwrap().start(&own, Box::new(sink())).unwrap();
        let mut map = PageMap::open().unwrap();
        let quiet = 8 << 20..12 << 20;
        clone.resume().unwrap();
        for turn in 0..100 {
            clone.ram().write(quiet.start, &[0; 1 << 20]).unwrap();
            for piece in [0..8 << 20, 8 << 20..16 << 20] {
                clone.share_with_template(&piece, &mut map).unwrap();
            }
            assert_eq!(clone.run_state(), RunState::Running);
            assert_eq!(map.own_pages(clone.ram(), &quiet).unwrap(), [], "turn {turn}");
            clone.pause().unwrap();
            // It is somewhere within a turn: the pages that it has flipped already differ from the
            // rest.
            let words: Vec<u64> = (0..PAGES).map(|page| word(&clone, DATA + page * 4096)).collect();
            let changes = words.windows(2).filter(|two| two[0] != two[1]).count();
            assert!(changes <= 1 && words.iter().all(|word| *word <= 1), "turn {turn}: {words:?}");
            clone.resume().unwrap();
        }
    }
}
