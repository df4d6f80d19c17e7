//! Giving back what can be had again for nothing: pages that are as the guest's template has them, and pages of zeros.

use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{Bytes, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use super::blocks::BLOCK_BYTES;
use super::{Backing, Kind};
use crate::memory::{MemoryError, PAGE_BYTES, RamRegion};
use crate::raw_memory::{self, Advice, Part};

impl Backing {
    /// Gives the guest's own copies of a template's pages back where they are as the template has them. Nobody may write to
    /// the guest's memory meanwhile. Returns the bytes that are as in the template, whether there were copies of them or not.
    ///
    /// # Errors
    /// The file cannot be read, or the system's answer.
    pub(in crate::memory) fn share(
        &self,
        region: &GuestRegionMmap<AtomicBitmap>,
        place: &RamRegion,
        offset: usize,
        len: usize,
    ) -> std::io::Result<u64> {
        let (Kind::Template(replaced), Some(template)) = (&self.kind, region.file_offset()) else {
            return Ok(0);
        };
        let (mut own, mut theirs) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
        let (mut shared, mut at) = (0, offset);
        while at < offset + len {
            let next = (offset + len).min((at / BLOCK_BYTES + 1) * BLOCK_BYTES);
            let (own, theirs) = (&mut own[..next - at], &mut theirs[..next - at]);
            if !replaced.blocks.has(place, at) {
                template.file().read_exact_at(theirs, template.start() + at as u64)?;
                let from = MemoryRegionAddress(at as u64);
                region.read_slice(own, from).map_err(std::io::Error::other)?;
                for run in equal_runs(own, theirs) {
                    // What is dropped reads as the template again, which is what it was.
                    raw_memory::drop_copies(Part::new(region, at + run.start, run.len())?)?;
                    shared += run.len() as u64;
                }
            }
            at = next;
        }
        Ok(shared)
    }

    /// Makes small pages of the huge ones that a part lies in, and has the kernel make no new ones there. Linux 6.12 and later give
    /// back at once what is zero of them. Where the kernel refuses, they stay as they are.
    ///
    /// # Errors
    /// [`MemoryError::KeepsAll`].
    pub(in crate::memory) fn break_up(&self, part: Part<'_>) -> Result<(), MemoryError> {
        if self.config.is_populated() || matches!(self.kind, Kind::Pool) {
            return Err(MemoryError::KeepsAll);
        }
        // Huge pages of the host need not begin where the guest's do: one may reach into the block from before, one beyond it.
        let ends =
            part.blocks(BLOCK_BYTES).flat_map(|block| [block.first_page(), block.last_page()]);
        let calls = std::iter::once((part, Advice::SmallPages))
            .chain(ends.map(|page| (page, Advice::Cold)));
        for (part, advice) in calls {
            // Only less comes back then.
            let _ = raw_memory::advise(part, advice);
        }
        Ok(())
    }

    /// Gives those pages of a part back that are zero. Nobody may write to the guest's memory meanwhile. Returns the bytes of them,
    /// whether they took memory or not; where nothing would come back, none are looked at.
    ///
    /// # Errors
    /// The system's answer.
    pub(in crate::memory) fn drop_zeros(
        &self,
        place: &RamRegion,
        part: Part<'_>,
    ) -> std::io::Result<u64> {
        let region = part.region();
        let is_anonymous = |at: usize| match &self.kind {
            Kind::Anonymous => true,
            Kind::Pool => false,
            Kind::Template(replaced) => replaced.blocks.has(place, at),
        };
        let (mut own, zeros) = (vec![0; BLOCK_BYTES], vec![0; BLOCK_BYTES]);
        let mut dropped = 0;
        for range in part.blocks(BLOCK_BYTES).map(|block| block.range()) {
            if !is_anonymous(range.start) {
                continue;
            }
            let own = &mut own[..range.len()];
            region
                .read_slice(own, MemoryRegionAddress(range.start as u64))
                .map_err(std::io::Error::other)?;
            for run in equal_runs(own, &zeros[..range.len()]) {
                raw_memory::drop_anonymous(Part::new(region, range.start + run.start, run.len())?)?;
                dropped += run.len() as u64;
            }
        }
        Ok(dropped)
    }
}

/// The runs of whole pages that are the same in both, which are equally long.
fn equal_runs(own: &[u8], theirs: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let pages = own.chunks_exact(PAGE_BYTES).zip(theirs.chunks_exact(PAGE_BYTES)).enumerate();
    for (index, _) in pages.filter(|(_, (own, theirs))| own == theirs) {
        let page = index * PAGE_BYTES..(index + 1) * PAGE_BYTES;
        match runs.last_mut() {
            Some(last) if last.end == page.start => last.end = page.end,
            _ => runs.push(page),
        }
    }
    runs
}
