//! Looks at the pages of a guest, whoever has them: what merging them would bring, and which are written.
//!
//! Three passes over the chunks of 2 MiB: all pages once, for their contents; then a few of each chunk twice, a moment apart, for
//! what is written ([`memopt::survey::Watch`]). KVM's dirty log would tell more, but splits the guest's huge pages as long as it
//! is on. Only pages that are there are read: reading another would map it.
//!
//! A guest's process looks at its own memory (`guest`), the node at that of guests that other programs run (`node`): both
//! by a [`Looker`], in a thread of its own that gives way to everybody else.

mod found;
mod looker;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use vmm_core::memory::{HugeView, MemoryError, OwnPages};

pub(crate) use found::Found;
pub(crate) use looker::Looker;

/// Bytes of a chunk.
pub(crate) const CHUNK_BYTES: u64 = 2 << 20;

/// Memory that is looked at, by addresses of whoever has it.
pub(crate) trait Memory {
    /// What there is, in order.
    ///
    /// # Errors
    /// It is not to be looked at now.
    fn areas(&self) -> Result<Vec<Range<u64>>, Ended>;

    /// The pages in `range`, whole pages of an area within a chunk, that are there and its own. What this takes hold of is kept until
    /// [`Self::let_go`].
    ///
    /// # Errors
    /// It is not to be looked at any more, or the kernel does not tell.
    fn own_pages(&mut self, range: &Range<u64>) -> Result<Vec<OwnPages>, Ended>;

    /// Copies what is at `address`, among pages that were told of last.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies what the template has there, from which the guest was made. Whether there is one.
    ///
    /// # Errors
    /// It cannot be read.
    fn read_template(&self, _address: u64, _bytes: &mut [u8]) -> Result<bool, MemoryError> {
        Ok(false)
    }

    /// The chunk was looked at.
    fn let_go(&mut self) {}

    /// Whether huge pages are told, which is known after a look.
    fn view(&self) -> HugeView;
}

/// Why a look ends early.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Something else is to be done with the guest, or it is gone, or nobody waits for this any more.
    CalledOff,
    /// It cannot go on.
    Failed(MemoryError),
}

impl From<MemoryError> for Ended {
    fn from(error: MemoryError) -> Self {
        Self::Failed(error)
    }
}

/// How far a look is.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pages: AtomicU64,
    cpu_ns: AtomicU64,
}

impl Progress {
    /// Pages that were looked at.
    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// CPU time that it took, in milliseconds.
    pub(crate) fn cpu_ms(&self) -> u64 {
        self.cpu_ns.load(Ordering::Relaxed) / 1_000_000
    }
}
