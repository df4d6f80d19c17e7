//! A balloon (virtio 1.2, 5.5): the guest gives memory back to the host, and takes it again.
//!
//! Two ways lead there. The operator sets a *target*, the driver fills its *balloon* with pages of
//! the guest's until no more than that is left (*inflate*), and empties it when the target rises or
//! the guest runs out of memory (*deflate*, and deflate-on-oom). And without anybody's asking, the
//! driver *reports* pages that are free at the moment. In both cases the host drops the pages; they
//! read as zeros when the guest uses them again, and count as written, so that a migration under
//! way does not keep what was there.
//!
//! | file | is |
//! |---|---|
//! | `device` | the device: start here |
//! | `config` | its configuration space |
//! | `queues` | which queue is which: it depends on the features |
//! | `pages` | from what a driver names to ranges of whole pages |
//! | `statistics` | what the guest says of its memory |
//! | `hints` | free pages that the guest names when a migration asks |
//! | `state` | what is saved |
//!
//! *Hints* are for drivers that do not report: a reported page is a page of zeros already, which
//! costs a migration next to nothing (docs/adr/0015-free-page-hints.md).

mod config;
mod device;
mod hints;
mod pages;
mod queues;
mod state;
mod statistics;

pub(crate) use device::{BalloonDevice, BalloonReport};
pub use device::{Discarded, FreePages, SetBy};
pub use hints::HintProgress;
pub use statistics::Statistics;

/// Bytes of a balloon's page, whatever the guest's own are (`VIRTIO_BALLOON_PFN_SHIFT`).
pub(crate) const PAGE_BYTES: u64 = 4096;

/// Bits of the features (virtio 1.2, 5.5.3; `linux/virtio_balloon.h`).
mod feature {
    /// The driver sends statistics.
    pub(super) const STATISTICS: u64 = 1 << 1;
    /// The driver takes pages back before the guest kills a process for want of memory.
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// The driver says which pages are free when it is asked.
    pub(super) const HINTS: u64 = 1 << 3;
    /// The driver says what its pages must hold when they come back.
    pub(super) const PAGE_POISON: u64 = 1 << 4;
    /// The driver reports free pages.
    pub(super) const REPORTING: u64 = 1 << 5;
}
