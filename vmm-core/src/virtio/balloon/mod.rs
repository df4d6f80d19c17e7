//! A balloon (virtio 1.2, 5.5): the guest returns memory to the host, and takes it back.
//!
//! There are two ways. The operator sets a *target*: the driver fills its *balloon* with pages of
//! the guest until the guest has no more memory than that (*inflate*), and empties it when the
//! target rises or the guest runs out of memory (*deflate*, and deflate-on-oom). And without a
//! request, the driver *reports* pages that are currently free. In both cases the host drops the
//! pages; they read as zeros when the guest uses them again, and count as written, so that a
//! migration in progress does not keep their old content.
//!
//! | file | contents |
//! |---|---|
//! | `device` | the device: start here |
//! | `config` | its configuration space |
//! | `queues` | which queue has which purpose: it depends on the features |
//! | `pages` | converts what a driver names into ranges of whole pages |
//! | `statistics` | the guest's memory statistics |
//! | `hints` | free pages that the guest names when a migration asks |
//! | `state` | the saved state |
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

/// Size of a balloon page in bytes, whatever page size the guest uses (`VIRTIO_BALLOON_PFN_SHIFT`).
pub(crate) const PAGE_BYTES: u64 = 4096;

/// Feature bits (virtio 1.2, 5.5.3; `linux/virtio_balloon.h`).
mod feature {
    /// The driver sends statistics.
    pub(super) const STATISTICS: u64 = 1 << 1;
    /// The driver takes pages back before the guest kills a process because memory ran out.
    pub(super) const DEFLATE_ON_OOM: u64 = 1 << 2;
    /// The driver names its free pages on request (hinting).
    pub(super) const HINTS: u64 = 1 << 3;
    /// The driver states the value with which the guest fills free pages.
    pub(super) const PAGE_POISON: u64 = 1 << 4;
    /// The driver reports free pages without a request.
    pub(super) const REPORTING: u64 = 1 << 5;
}
