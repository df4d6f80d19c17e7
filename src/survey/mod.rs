//! Scans the pages of a guest, of lighter or of another program: how much merging them would save,
//! and which are written.
//!
//! A scan makes three passes over the chunks of 2 MiB. The first digests the content of all pages.
//! The other two sample a few pages of each chunk, a second apart, to find out what is written
//! ([`memopt::survey::Watch`]). KVM's dirty log can replace them, which says more and costs the
//! guest more. Only present pages are read: reading another would map it.
//!
//! A guest's process scans its own memory (`guest`). The node scans the memory of guests that other
//! programs run (`node`). Both use a [`Scanner`], in a thread of its own with the lowest priority.

mod scan_result;
mod scanner;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use vmm_core::memory::{HugeView, MemoryError, OwnPages};

pub(crate) use scan_result::ScanResult;
pub(crate) use scanner::Scanner;

/// Size of a chunk, in bytes.
pub(crate) const CHUNK_BYTES: u64 = 2 << 20;

/// Memory to scan, by the addresses of its owner.
pub(crate) trait Memory {
    /// Returns the ranges of memory, in order.
    ///
    /// # Errors
    /// If the memory may not be scanned now.
    fn areas(&self) -> Result<Vec<Range<u64>>, Ended>;

    /// Returns the pages in `range` that are present and the guest's own. `range` has whole pages
    /// of one area, within a chunk. Resources that this takes are kept until [`Self::let_go`].
    ///
    /// # Errors
    /// If the memory may not be scanned any more, or the kernel does not report its pages.
    fn own_pages(&mut self, range: &Range<u64>) -> Result<Vec<OwnPages>, Ended>;

    /// Whether KSM has mapped one page of the host at several addresses of `own`, pages of a chunk.
    /// Such a chunk cannot become a huge page until these are split. Only memory whose merging the
    /// node cannot undo reports this.
    ///
    /// # Errors
    /// If the kernel does not report the pages.
    fn has_twins(&self, _own: &[OwnPages]) -> Result<bool, MemoryError> {
        Ok(false)
    }

    /// Copies the content at `address`, which is in the pages returned last.
    ///
    /// # Errors
    /// If it cannot be read.
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), MemoryError>;

    /// Copies the content at `address` of the template from which the guest was made. Returns
    /// whether there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    fn read_template(&self, _address: u64, _bytes: &mut [u8]) -> Result<bool, MemoryError> {
        Ok(false)
    }

    /// Logs for this time which pages are written. Returns the number of written pages by chunk
    /// number (2 MiB each), or `None` if there is no log.
    ///
    /// # Errors
    /// Like [`Self::own_pages`].
    fn log_writes(&mut self, _time: Duration) -> Result<Option<BTreeMap<u32, u16>>, Ended> {
        Ok(None)
    }

    /// Releases what was taken for a chunk.
    fn let_go(&mut self) {}

    /// Whether the kernel reports huge pages, which is known after a scan.
    fn view(&self) -> HugeView;
}

/// Why a scan ended early.
#[derive(Debug)]
pub(crate) enum Ended {
    /// It was cancelled: another operation needs the guest, the guest is gone, or the caller has
    /// left.
    CalledOff,
    /// It cannot continue.
    Failed(anyhow::Error),
}

impl From<MemoryError> for Ended {
    fn from(error: MemoryError) -> Self {
        Self::Failed(error.into())
    }
}

/// Progress of a scan.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pages: AtomicU64,
    cpu_ns: AtomicU64,
}

impl Progress {
    /// Returns the number of pages scanned.
    pub(crate) fn pages(&self) -> u64 {
        self.pages.load(Ordering::Relaxed)
    }

    /// Returns the CPU time that the scan used, in milliseconds.
    pub(crate) fn cpu_ms(&self) -> u64 {
        self.cpu_ns.load(Ordering::Relaxed) / 1_000_000
    }
}
