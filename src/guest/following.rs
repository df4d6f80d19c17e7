//! Memory that arrives after its guest, as a migration sees it: a thin adapter from `vmm-core` to
//! `migrate`.

use std::sync::Arc;

use migrate::GuestError;
use migrate::guest::{ChunkPages, MissingMemory, Waits};
use vmm_core::memory::{Missing, MissingPages};

use super::machine::Machine;

/// The missing pages of a machine's memory.
#[derive(Debug)]
pub(super) struct FollowingMemory(Arc<Missing>);

impl FollowingMemory {
    /// Has memory of `machine` arrive after its guest, through `faults`.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub(super) fn begin(machine: &Machine, faults: MissingPages) -> Result<Self, GuestError> {
        let missing = machine.vm().ram().follow(faults);
        missing.map(Self).map_err(|cause| failed("have memory arrive after its guest", &cause))
    }
}

fn failed(what: &str, cause: &std::io::Error) -> GuestError {
    GuestError::new(format!("cannot {what}: {cause}"))
}

impl MissingMemory for FollowingMemory {
    fn clear(&self, words: &[u64]) -> Result<(), GuestError> {
        self.0.clear(words).map_err(|cause| failed("drop pages", &cause))
    }

    fn wanted(&self) -> Result<Vec<ChunkPages>, GuestError> {
        let wanted = self.0.wait(None).and_then(|()| self.0.wanted());
        wanted.map_err(|cause| failed("tell which pages are waited for", &cause))
    }

    fn interrupt(&self) {
        self.0.interrupt();
    }

    fn place(&self, chunk: usize, first_page: usize, content: &[u8]) -> Result<(), GuestError> {
        let placed = self.0.place(chunk, first_page, content);
        placed.map(drop).map_err(|cause| failed("place pages", &cause))
    }

    fn place_zeros(&self, chunk: usize, mask: u64) -> Result<(), GuestError> {
        let placed = self.0.place_zeros(chunk, mask);
        placed.map(drop).map_err(|cause| failed("place pages", &cause))
    }

    fn left(&self) -> u64 {
        self.0.left()
    }

    fn missing(&self) -> Vec<ChunkPages> {
        self.0.missing()
    }

    fn waited_for(&self) -> Vec<ChunkPages> {
        self.0.waited_for()
    }

    fn waits(&self) -> Waits {
        let vmm_core::memory::Waits { ended, oldest } = self.0.waits();
        Waits { ended, oldest }
    }

    fn end(&self) -> Result<(), GuestError> {
        self.0.end().map_err(|cause| failed("end the wait for pages", &cause))
    }
}

/// Stops the vCPUs of a guest whose memory will never be complete. One that waits for a page stops
/// with its process only.
pub(super) fn strand(machine: &Machine) -> Result<(), GuestError> {
    machine.vm().pause().map_err(|cause| {
        GuestError::new(format!("cannot stop the vCPUs of a guest without its memory: {cause}"))
    })
}
