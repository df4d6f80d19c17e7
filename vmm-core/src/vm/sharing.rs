//! Sharing memory with a template again.

use std::ops::Range;

use super::{RunState, Vm};
use crate::error::Result;

impl Vm {
    /// Gives the guest's own copies of its template's pages in `range` (guest-physical addresses, whole pages) back where they
    /// are as in the template again. The guest stands still meanwhile, and its devices with it, so that nobody writes to what is
    /// compared: keep the range small. Returns the bytes that are as in the template.
    ///
    /// # Errors
    /// [`crate::Error::WrongState`] when the guest has ended; [`crate::memory::MemoryError`]; as [`Vm::resume`].
    pub fn share_with_template(&self, range: &Range<u64>) -> Result<u64> {
        let was_running = self.run_state() == RunState::Running;
        self.pause()?;
        let shared = self.ram().share(range);
        if was_running {
            self.resume()?;
        }
        Ok(shared?)
    }
}
