//! What reports accesses to missing pages, and gives them their content: how depends on what backs
//! the memory.

use std::io::Result;
use std::ops::Range;

use rustix::io::Errno;
use vm_memory::GuestMemoryBackend;

use super::hugetlb::Hugetlb;
use crate::memory::{GuestRam, PAGE_BYTES};
use crate::sys::mapping::{self, Part};
use crate::sys::userfaultfd::missing::{MissingPages, Waiting};

/// Pages of a chunk.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) chunk: usize,
    pub(super) pages: Range<usize>,
    /// Address in this process of the chunk.
    pub(super) chunk_address: u64,
}

impl Place {
    fn addresses(&self) -> Range<u64> {
        let address = |page: usize| self.chunk_address + (page * PAGE_BYTES) as u64;
        address(self.pages.start)..address(self.pages.end)
    }
}

/// Missing pages of a guest's memory.
#[derive(Debug)]
pub(super) struct Faults {
    pages: MissingPages,
    /// Present for memory of a pool.
    hugetlb: Option<Hugetlb>,
}

impl Faults {
    /// Registers all memory of `ram`.
    ///
    /// # Errors
    /// `EINVAL` for memory of a template, and for that of a pool before Linux 5.13; otherwise the
    /// error from the kernel.
    pub(super) fn begin(ram: &GuestRam, pages: MissingPages) -> Result<Self> {
        let hugetlb = Hugetlb::map(ram)?;
        let waiting = if hugetlb.is_some() { Waiting::ForMapping } else { Waiting::ForContent };
        let mut regions = ram.memory().iter().map(Part::whole);
        regions.try_for_each(|region| pages.register(region, waiting))?;
        Ok(Self { pages, hugetlb })
    }

    /// Ends the registration of `regions`.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn end<'a>(&self, mut regions: impl Iterator<Item = Part<'a>>) -> Result<()> {
        regions.try_for_each(|region| self.pages.unregister(region))
    }

    /// What is readable when a thread has begun to wait.
    pub(super) fn pages(&self) -> &MissingPages {
        &self.pages
    }

    /// Returns the chunks and, of each, the pages for which a thread waits that waits for `page` of
    /// `chunk`: those that are mapped together.
    pub(super) fn needed(&self, chunk: usize, page: usize) -> (Range<usize>, u64) {
        match &self.hugetlb {
            Some(hugetlb) => (hugetlb.chunks(chunk), u64::MAX),
            None => (chunk..chunk + 1, 1 << page),
        }
    }

    /// Lets those continue who wait for the page at `address`, which is not missing.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn answer(&self, address: u64) -> Result<()> {
        match &self.hugetlb {
            Some(hugetlb) => self.pages.map(&hugetlb.around(address)),
            None => self.pages.zero(&(address..address + PAGE_BYTES as u64)),
        }
    }

    /// Has those who wait for pages at `addresses` report that again.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn wake(&self, addresses: &Range<u64>) -> Result<()> {
        self.pages.wake(addresses)
    }

    /// Notes that `count` more pages of `chunk` are missing.
    pub(super) fn lose(&self, chunk: usize, count: u32) {
        if let Some(hugetlb) = &self.hugetlb {
            hugetlb.lose(chunk, count);
        }
    }

    /// Returns the offsets in a region of what must be unmapped for these to be missing.
    pub(super) fn unmapped_with(&self, offsets: Range<usize>) -> Range<usize> {
        self.hugetlb.as_ref().map_or(offsets.clone(), |hugetlb| hugetlb.whole(&offsets))
    }

    /// Has accesses to `part`, of this region, wait. Its content is lost, unless it comes from a
    /// pool.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn unmap(&self, region: usize, part: Part<'_>) -> Result<()> {
        if let Some(hugetlb) = &self.hugetlb {
            hugetlb.take(region, &part.range())?;
        }
        mapping::drop_pages(part)
    }

    /// Returns the chunk and pages as which the wait for these pages of `chunk` is known: one for
    /// all that is mapped together.
    pub(super) fn wait_of(&self, chunk: usize, pages: u64) -> (usize, u64) {
        self.hugetlb.as_ref().map_or((chunk, pages), |hugetlb| (hugetlb.chunks(chunk).start, 1))
    }

    /// Gives pages their content.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn copy(&self, place: &Place, content: &[u8]) -> Result<()> {
        match &self.hugetlb {
            Some(hugetlb) => hugetlb.write(place.chunk, place.pages.start, content),
            None => self.pages.copy(place.addresses().start, content),
        }
    }

    /// Gives pages zeros as their content.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn zero(&self, place: &Place) -> Result<()> {
        match &self.hugetlb {
            Some(hugetlb) => hugetlb.zero(place.chunk, super::mask_of(&place.pages)),
            None => self.pages.zero(&place.addresses()),
        }
    }

    /// Makes `place`, which is `part` of guest memory, read as zeros, whether it is missing or not.
    /// Returns how many bytes the host gets.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn discard(&self, place: &Place, part: Part<'_>) -> Result<u64> {
        match &self.hugetlb {
            Some(hugetlb) => hugetlb.zero(place.chunk, super::mask_of(&place.pages)).map(|()| 0),
            None => mapping::drop_pages(part).map(|()| part.range().len() as u64),
        }
    }

    /// Notes that `count` missing pages of the chunk at `address` have their content. Returns
    /// whether they are mapped now, with all that is mapped together with them.
    ///
    /// # Errors
    /// The error from the kernel: the pages count as missing.
    pub(super) fn gain(&self, chunk: usize, count: u32, address: u64) -> Result<bool> {
        let Some(hugetlb) = &self.hugetlb else { return Ok(true) };
        hugetlb.gain(chunk, count, || match self.pages.map(&hugetlb.around(address)) {
            // No thread waits any more.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(()),
            mapped => mapped,
        })
    }
}
