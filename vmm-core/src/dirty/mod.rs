//! Which pages of guest memory have changed.
//!
//! A backend asks KVM what the guest wrote; what the VMM itself wrote is in vm-memory's bitmap, since
//! KVM does not see it, and is added to every answer. Bits are dense words over the guest's chunks.

mod bitmap;

pub(crate) use bitmap::BitmapLog;

use crate::error::Result;

/// A way to learn which pages the guest wrote.
///
/// After `start`, every page counts as dirty once. A page is reported by every `collect` until it is
/// re-armed, and again once it is written after that; so a page must be re-armed *before* it is
/// copied, or a write in between would be lost.
pub(crate) trait DirtyTracking: Send + std::fmt::Debug {
    /// Starts to track.
    fn start(&mut self) -> Result<()>;
    /// Stops to track, which gives the guest its huge pages back.
    fn stop(&mut self) -> Result<()>;
    /// Sets the bits of pages that have been written, and clears none.
    fn collect(&mut self, words: &mut [u64]) -> Result<()>;
    /// Forgets the bits set in `words`, which start at chunk `first_chunk`, and watches these pages
    /// for writes again.
    fn rearm(&mut self, first_chunk: usize, words: &[u64]) -> Result<()>;
}
