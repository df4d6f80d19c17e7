//! Giving back what can be had again for nothing: pages that are as the guest's template has them,
//! and pages of zeros.

use std::io::{Error, Result};
use std::ops::Range;

use vm_memory::{Bytes, MemoryRegionAddress};

use super::blocks::BLOCK_BYTES;
use super::{Backing, Kind};
use crate::memory::{PAGE_BYTES, RamRegion, runs};
use crate::sys::mapping::{self, Advice, Part};

/// What is compared at once: both sides fit a first-level cache.
const COMPARED_BYTES: usize = 4 * PAGE_BYTES;

impl Backing {
    /// The runs of pages of a part that are as in the guest's template, by their places in the
    /// region.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(in crate::memory) fn as_in_template(
        &self,
        place: &RamRegion,
        part: Part<'_>,
    ) -> Result<Vec<Range<usize>>> {
        equals(part, |at, theirs| self.read_template(part.region(), place, at, theirs))
    }

    /// Makes small pages of the huge ones that a part lies in, and has the kernel make no new ones
    /// there. Linux 6.12 and later give back at once what is zero of them. Where the kernel
    /// refuses, they stay as they are.
    pub(in crate::memory) fn break_up(&self, part: Part<'_>) {
        // Huge pages of the host need not begin where the guest's do: one may reach into the block
        // from before, one beyond it.
        let ends =
            part.blocks(BLOCK_BYTES).flat_map(|block| [block.first_page(), block.last_page()]);
        let calls = std::iter::once((part, Advice::SmallPages))
            .chain(ends.map(|page| (page, Advice::Cold)));
        for (part, advice) in calls {
            // Only less comes back then.
            let _ = mapping::advise(part, advice);
        }
    }

    /// Whether the guest is to have all of its memory at any time.
    pub(in crate::memory) fn keeps_all(&self) -> bool {
        self.config.is_populated() || matches!(self.kind, Kind::Pool)
    }

    /// Gives those pages of a part back that are zero. Nobody may write to the guest's memory
    /// meanwhile. Returns the bytes of them, whether they took memory or not; where nothing would
    /// come back, none are looked at.
    ///
    /// # Errors
    /// The system's answer.
    pub(in crate::memory) fn drop_zeros(&self, place: &RamRegion, part: Part<'_>) -> Result<u64> {
        let zeros = equals(part, |at, theirs| {
            theirs.fill(0);
            Ok(match &self.kind {
                Kind::Anonymous => true,
                Kind::Pool => false,
                Kind::Template(replaced) => replaced.blocks.has(place, at),
            })
        })?;
        // What lies together goes at once: a huge page is given back whole.
        zeros.into_iter().try_fold(0, |dropped, run| {
            mapping::drop_pages(Part::new(part.region(), run.start, run.len())?)?;
            Ok(dropped + run.len() as u64)
        })
    }
}

/// The runs of pages of a part that are as `read` tells for the place in the region; none where it
/// tells nothing.
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

/// Adds the runs of whole pages that are the same in both, which are equally long and lie at
/// `start`.
fn add_equal_pages(own: &[u8], theirs: &[u8], start: usize, equal: &mut Vec<Range<usize>>) {
    let pages = own.chunks_exact(PAGE_BYTES).zip(theirs.chunks_exact(PAGE_BYTES));
    for (at, (own, theirs)) in (start..).step_by(PAGE_BYTES).zip(pages) {
        if own == theirs {
            runs::add(equal, at..at + PAGE_BYTES);
        }
    }
}
