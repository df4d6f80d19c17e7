//! Missing pages of a pool's huge pages. A huge page is mapped whole, so the guest gets it back
//! when all of it is there; until then what arrives is written through a second mapping of the same
//! file. So only the small pages that are missing are sent, and nothing is copied twice.

use std::io::{Error, Result};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

use vm_memory::mmap::MmapRegion;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::memory::{CHUNK_BYTES, GuestRam, PAGE_BYTES, RamLayout, runs};

/// Memory of a pool, of which parts may be missing.
#[derive(Debug)]
pub(super) struct Hugetlb {
    /// The memory, mapped again: no access to it waits.
    second: GuestMemoryMmap<()>,
    layout: RamLayout,
    page_bytes: usize,
    /// Number of missing small pages of each huge page.
    missing: Vec<AtomicU32>,
}

impl Hugetlb {
    /// Maps the memory of `ram` again, if it comes from a pool.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn map(ram: &GuestRam) -> Result<Option<Self>> {
        let Some(page_bytes) = ram.pool_page_bytes() else { return Ok(None) };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let mut regions = Vec::new();
        for region in ram.memory().iter() {
            let file = region.file_offset().cloned();
            let bytes = region.len() as usize;
            let mapping = MmapRegion::build(file, bytes, access, libc::MAP_SHARED);
            let mapping = mapping.map_err(Error::other)?;
            let place = region.start_addr();
            let region = GuestRegionMmap::new(mapping, place);
            regions.push(region.ok_or_else(|| Error::other("a region ends beyond all addresses"))?);
        }
        let second = GuestMemoryMmap::from_regions(regions).map_err(Error::other)?;
        let page_bytes = page_bytes as usize;
        let layout = ram.layout().clone();
        let count = layout.chunks().div_ceil(page_bytes / CHUNK_BYTES);
        let missing = (0..count).map(|_| AtomicU32::new(0)).collect();
        Ok(Some(Self { second, layout, page_bytes, missing }))
    }

    /// Returns the chunks of the huge page that holds `chunk`.
    pub(super) fn chunks(&self, chunk: usize) -> Range<usize> {
        let each = self.page_bytes / CHUNK_BYTES;
        let first = chunk / each * each;
        first..first + each
    }

    /// Returns the offsets in a region of the huge pages that hold those at `offsets`.
    pub(super) fn whole(&self, offsets: &Range<usize>) -> Range<usize> {
        let bytes = self.page_bytes;
        offsets.start / bytes * bytes..offsets.end.div_ceil(bytes) * bytes
    }

    /// Returns the addresses of the huge page that holds `address`, which is one of a mapping.
    pub(super) fn around(&self, address: u64) -> Range<u64> {
        let bytes = self.page_bytes as u64;
        let start = address / bytes * bytes;
        start..start + bytes
    }

    /// Takes the huge pages of this part of a region from the pool, unless the guest has them: one
    /// that it never touched is not there yet, and could not be mapped when it is complete.
    ///
    /// # Errors
    /// If there is no such part.
    pub(super) fn take(&self, region: usize, offsets: &Range<usize>) -> Result<()> {
        let place = self.layout.regions().get(region).ok_or_else(nowhere)?;
        for offset in offsets.clone().step_by(self.page_bytes) {
            let gpa = GuestAddress(place.gpa + offset as u64);
            self.second.read_obj::<u8>(gpa).map_err(Error::other)?;
        }
        Ok(())
    }

    /// Writes `content` from page `first_page` of `chunk` on.
    ///
    /// # Errors
    /// If there are no such pages.
    pub(super) fn write(&self, chunk: usize, first_page: usize, content: &[u8]) -> Result<()> {
        let gpa = self.layout.gpa_of(chunk, first_page).ok_or_else(nowhere)?;
        self.second.write_slice(content, GuestAddress(gpa)).map_err(Error::other)
    }

    /// Writes zeros to the pages of `chunk` in `mask`.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub(super) fn zero(&self, chunk: usize, mask: u64) -> Result<()> {
        const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        runs::of_mask(mask).flatten().try_for_each(|page| self.write(chunk, page, &ZEROS))
    }

    /// Notes that `count` more pages of `chunk` are missing.
    pub(super) fn lose(&self, chunk: usize, count: u32) {
        self.of(chunk).fetch_add(count, Ordering::AcqRel);
    }

    /// Notes that `count` pages of `chunk`, one at least, are missing no longer; if that completes
    /// the huge page, `map` maps it.
    ///
    /// # Errors
    /// That of `map`: then they count as missing.
    pub(super) fn gain(
        &self,
        chunk: usize,
        count: u32,
        map: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        let missing = self.of(chunk);
        let is_complete = missing.fetch_sub(count, Ordering::AcqRel) == count;
        if is_complete && let Err(error) = map() {
            missing.fetch_add(count, Ordering::AcqRel);
            return Err(error);
        }
        Ok(is_complete)
    }

    fn of(&self, chunk: usize) -> &AtomicU32 {
        &self.missing[chunk / (self.page_bytes / CHUNK_BYTES)]
    }
}

fn nowhere() -> Error {
    std::io::ErrorKind::InvalidInput.into()
}
