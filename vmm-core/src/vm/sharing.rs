//! Giving back memory that the guest can have again for nothing: what is as in its template, and what is zero.

use std::ops::Range;

use super::{RunState, Vm};
use crate::error::Result;
use crate::memory::{MemoryError, PageMap};

impl Vm {
    /// Gives the guest's own copies of its template's pages in `range` (guest-physical addresses, whole pages) back where they
    /// are as in the template again. The guest stands still meanwhile, and its devices with it, so that nobody writes to what is
    /// compared: keep the range small. Returns the bytes that are as in the template.
    ///
    /// # Errors
    /// [`crate::Error::WrongState`] when the guest has ended; [`MemoryError`]; as [`Vm::resume`].
    pub fn share_with_template(&self, range: &Range<u64>) -> Result<u64> {
        self.standing_still(|| self.ram().share(range))
    }

    /// Gives pages of zeros in `range` (guest-physical addresses, whole pages) back, and the huge pages up that they are in. Linux
    /// 6.12 and later do that while the guest runs; for what `map` shows afterwards the guest stands still, and its devices with it:
    /// keep the range small. What the guest reads stays as it was.
    ///
    /// # Errors
    /// [`MemoryError::KeepsAll`]; [`crate::Error::WrongState`] when the guest has ended; other [`MemoryError`]s; as [`Vm::resume`].
    pub fn drop_zeros(&self, range: &Range<u64>, map: &mut PageMap) -> Result<()> {
        self.ram().break_up(range)?;
        let zeros = self.ram().zeros(range, map)?;
        if zeros.is_empty() {
            return Ok(());
        }
        // The guest may have written to them by now: they are looked at again.
        self.standing_still(|| {
            zeros.iter().try_for_each(|run| self.ram().drop_zeros(run).map(drop))
        })
    }

    /// Does something while nobody writes to the guest's memory.
    fn standing_still<T>(&self, body: impl FnOnce() -> Result<T, MemoryError>) -> Result<T> {
        let was_running = self.run_state() == RunState::Running;
        self.pause()?;
        let done = body();
        if was_running {
            self.resume()?;
        }
        Ok(done?)
    }
}
