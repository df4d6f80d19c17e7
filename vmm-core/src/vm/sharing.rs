//! Giving back memory that the guest can have again for nothing: what is as in its template, and what is zero.

use std::ops::Range;

use super::{RunState, Vm};
use crate::error::Result;
use crate::memory::{HUGE_PAGE_BYTES, MemoryError, PageMap};

impl Vm {
    /// Gives the guest's own copies of its template's pages in `range` (guest-physical addresses, whole pages) back where they
    /// are as in the template again; `map` tells which pages are copies. What the guest reads stays as it was.
    ///
    /// # Errors
    /// [`crate::Error::WrongState`] when the guest has ended; [`MemoryError`]; as [`Vm::resume`].
    pub fn share_with_template(&self, range: &Range<u64>, map: &mut PageMap) -> Result<()> {
        let copies = self.ram().copies(range, map)?;
        self.give_back(&copies, |run| self.ram().share(run))
    }

    /// Gives pages of zeros in `range` (guest-physical addresses, whole pages) back, and the huge pages up that they are in. Linux
    /// 6.12 and later do that while the guest runs; what `map` shows afterwards is dropped. What the guest reads stays as
    /// it was.
    ///
    /// # Errors
    /// [`MemoryError::KeepsAll`]; [`crate::Error::WrongState`] when the guest has ended; other [`MemoryError`]s; as [`Vm::resume`].
    pub fn drop_zeros(&self, range: &Range<u64>, map: &mut PageMap) -> Result<()> {
        if self.ram().keeps_all() {
            return Err(MemoryError::KeepsAll.into());
        }
        // A huge page that is zero as a whole goes as a whole.
        let zeros = self.ram().zeros(range, map)?;
        let whole: Vec<_> = zeros.into_iter().filter_map(|run| whole_chunks(&run)).collect();
        self.give_back(&whole, |run| self.ram().drop_zeros(run))?;
        self.ram().break_up(range)?;
        let zeros = self.ram().zeros(range, map)?;
        self.give_back(&zeros, |run| self.ram().drop_zeros(run))
    }

    /// Drops what `drop_equals` finds in `runs` that may have been written to since they were found. The guest stands still meanwhile,
    /// and its devices with it.
    fn give_back(
        &self,
        runs: &[Range<u64>],
        drop_equals: impl Fn(&Range<u64>) -> Result<u64, MemoryError>,
    ) -> Result<()> {
        if runs.is_empty() {
            return Ok(());
        }
        let was_running = self.run_state() == RunState::Running;
        self.pause()?;
        let done = runs.iter().try_for_each(|run| drop_equals(run).map(drop));
        if was_running {
            self.resume()?;
        }
        Ok(done?)
    }
}

/// The chunks of 2 MiB that lie within a run as a whole.
fn whole_chunks(run: &Range<u64>) -> Option<Range<u64>> {
    let (start, end) =
        (run.start.next_multiple_of(HUGE_PAGE_BYTES), run.end / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES);
    (start < end).then_some(start..end)
}
