//! Looks at the pages of a guest, whoever has them: what merging them would bring, and which are
//! written.
//!
//! Three passes over the chunks of 2 MiB: all pages once, for their contents; then a few of each
//! chunk twice, a moment apart, for what is written ([`memopt::survey::Watch`]), or KVM's dirty log
//! for that moment, which tells more and costs the guest more. Only pages that are there are read:
//! reading another would map it.
//!
//! A guest's process looks at its own memory (`guest`), the node at that of guests that other
//! programs run (`node`): both by a [`Looker`], in a thread of its own that gives way to everybody
//! else.

mod found;
mod looker;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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

    /// The pages in `range`, whole pages of an area within a chunk, that are there and its own.
    /// What this takes hold of is kept until [`Self::let_go`].
    ///
    /// # Errors
    /// It is not to be looked at any more, or the kernel does not tell.
    fn own_pages(&mut self, range: &Range<u64>) -> Result<Vec<OwnPages>, Ended>;

    /// Whether merging has put one page of the host at several places of `own`, pages of a chunk,
    /// so that no huge page can be made of it before they are taken apart: for who cannot do that.
    ///
    /// # Errors
    /// The kernel does not tell.
    fn has_twins(&self, _own: &[OwnPages]) -> Result<bool, MemoryError> {
        Ok(false)
    }

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

    /// Logs for so long which pages are written: how many of each chunk of 2 MiB, by its number.
    /// None where there is no log.
    ///
    /// # Errors
    /// As [`Self::own_pages`].
    fn log_writes(&mut self, _time: Duration) -> Result<Option<BTreeMap<u32, u16>>, Ended> {
        Ok(None)
    }

    /// The chunk was looked at.
    fn let_go(&mut self) {}

    /// Whether huge pages are told, which is known after a look.
    fn view(&self) -> HugeView;
}

/// Why a look ends early.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Something else is to be done with the guest, or it is gone, or nobody waits for this any
    /// more.
    CalledOff,
    /// It cannot go on.
    Failed(anyhow::Error),
}

impl From<MemoryError> for Ended {
    fn from(error: MemoryError) -> Self {
        Self::Failed(error.into())
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
