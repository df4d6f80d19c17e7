//! Gives back pages whose content costs nothing to restore: pages that equal those of the guest's
//! template, and pages of zeros.

use std::io::{Error, Result};
use std::ops::Range;

use vm_memory::{Bytes, MemoryRegionAddress};

use super::blocks::BLOCK_BYTES;
use super::{Backing, Kind};
use crate::memory::{PAGE_BYTES, RamRegion, runs};
use crate::sys::mapping::{self, Advice, Part};

/// Bytes compared at once: both sides fit a first-level cache.
const COMPARED_BYTES: usize = 4 * PAGE_BYTES;

impl Backing {
    /// Returns the runs of pages of a part that equal those of the guest's template, by their
    /// offsets in the region.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(in crate::memory) fn as_in_template(
        &self,
        place: &RamRegion,
        part: Part<'_>,
    ) -> Result<Vec<Range<usize>>> {
        equals(part, |at, theirs| self.read_template(part.region(), place, at, theirs))
    }

    /// Splits the huge pages that a part lies in into small ones, and stops the kernel from making
    /// new ones there. Linux 6.12 and later then free their zero pages immediately. If the kernel
    /// refuses, the huge pages stay.
    pub(in crate::memory) fn break_up(&self, part: Part<'_>) {
        // The host's huge pages need not begin where the guest's do: one may reach into the block
        // from the front, another beyond its end.
        let ends =
            part.blocks(BLOCK_BYTES).flat_map(|block| [block.first_page(), block.last_page()]);
        let calls = std::iter::once((part, Advice::SmallPages))
            .chain(ends.map(|page| (page, Advice::Cold)));
        for (part, advice) in calls {
            // After a refusal less memory comes back, nothing worse.
            let _ = mapping::advise(part, advice);
        }
    }

    /// Whether the guest must always have all of its memory.
    pub(in crate::memory) fn keeps_all(&self) -> bool {
        self.config.is_populated() || matches!(self.kind, Kind::Pool)
    }

    /// Gives back those pages of a part that are zero. The guest's memory must not be written
    /// meanwhile. Returns the bytes of these pages, whether they took memory or not. Skips memory
    /// where nothing would come back.
    ///
    /// # Errors
    /// The error from the system.
    pub(in crate::memory) fn drop_zeros(&self, place: &RamRegion, part: Part<'_>) -> Result<u64> {
        let zeros = equals(part, |at, theirs| {
            theirs.fill(0);
            Ok(match &self.kind {
                Kind::Anonymous => true,
                Kind::Pool => false,
                Kind::Template(replaced) => replaced.blocks.has(place, at),
            })
        })?;
        // Drop whole runs: a huge page must be dropped as a whole to be freed.
        zeros.into_iter().try_fold(0, |dropped, run| {
            mapping::drop_pages(Part::new(part.region(), run.start, run.len())?)?;
            Ok(dropped + run.len() as u64)
        })
    }
}

/// Returns the runs of pages of a part that equal what `read` fills in for their offset in the
/// region. Skips memory for which `read` returns false.
fn equals(
    part: Part<'_>,
    mut read: impl FnMut(usize, &mut [u8]) -> Result<bool>,
) -> Result<Vec<Range<usize>>> {
    let (mut own, mut theirs) = ([0; COMPARED_BYTES], [0; COMPARED_BYTES]);
    let (region, mut equal) = (part.region(), Vec::new());
    for range in part.blocks(COMPARED_BYTES).map(|piece| piece.range()) {
        let (own, theirs) = (&mut own[..range.len()], &mut theirs[..range.len()]);
        if read(range.start, theirs)? {
            let place = MemoryRegionAddress(range.start as u64);
            region.read_slice(own, place).map_err(Error::other)?;
            add_equal_pages(own, theirs, range.start, &mut equal);
        }
    }
    Ok(equal)
}

/// Adds the runs of whole pages that are equal in `own` and `theirs`, which have the same length
/// and lie at `start`.
fn add_equal_pages(own: &[u8], theirs: &[u8], start: usize, equal: &mut Vec<Range<usize>>) {
    let pages = own.chunks_exact(PAGE_BYTES).zip(theirs.chunks_exact(PAGE_BYTES));
    for (at, (own, theirs)) in (start..).step_by(PAGE_BYTES).zip(pages) {
        if own == theirs {
            runs::add(equal, at..at + PAGE_BYTES);
        }
    }
}
