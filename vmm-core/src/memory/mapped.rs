//! Which pages of a guest are present, and how they are mapped.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;

use super::{GuestRam, MemoryError, PAGE_BYTES};
use crate::sys::pagemap::{self, IS_FILE, IS_HUGE, IS_ZERO, Region};

/// Whether the kernel reports which pages are parts of huge ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HugeView {
    /// It does, by `PAGEMAP_SCAN`.
    Told,
    /// It does not: Linux before 6.7 has no `PAGEMAP_SCAN`.
    Untold,
}

/// A run of present pages that are the guest's own: neither the template's nor the zero page, to
/// which the kernel maps memory that was only read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnPages {
    /// Address of the first page: guest-physical, or virtual for `ProcessMemory`.
    pub start: u64,
    /// Number of pages.
    pub count: u64,
    /// Whether the pages are mapped as parts of huge pages.
    pub is_huge: bool,
}

/// A process's page tables, as the kernel reports them.
#[derive(Debug)]
pub struct PageMap {
    file: File,
    view: HugeView,
}

impl PageMap {
    /// Opens `/proc/self/pagemap`.
    ///
    /// # Errors
    /// [`MemoryError::Pagemap`] if it cannot be opened.
    pub fn open() -> Result<Self, MemoryError> {
        let file =
            File::open("/proc/self/pagemap").map_err(|cause| MemoryError::Pagemap { cause })?;
        Ok(Self::new(file))
    }

    /// Reads page tables from `file`, a `/proc/PID/pagemap`.
    pub(super) fn new(file: File) -> Self {
        Self { file, view: HugeView::Told }
    }

    /// Opens it as on a kernel before 6.7.
    #[cfg(test)]
    fn open_plainly() -> Self {
        Self { view: HugeView::Untold, ..Self::open().unwrap() }
    }

    /// Whether the kernel reports huge pages; not reliable before the first scan.
    pub fn view(&self) -> HugeView {
        self.view
    }

    /// Returns the guest's own pages in `range`, whole pages of guest-physical addresses within a
    /// region, in order. The scan maps no pages. On a kernel before 6.7 the result includes zero
    /// pages that were only read.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if the range is not RAM; [`MemoryError::Pagemap`] if the
    /// kernel refuses.
    pub fn own_pages(
        &mut self,
        ram: &GuestRam,
        range: &Range<u64>,
    ) -> Result<Vec<OwnPages>, MemoryError> {
        let (part, _) = ram.part(range)?;
        let addresses = part.addresses();
        let mut found = self.own_pages_at(&addresses)?;
        for pages in &mut found {
            pages.start = range.start + (pages.start - addresses.start);
        }
        Ok(found)
    }

    /// As `own_pages`, for virtual `addresses` of the process, whole pages.
    ///
    /// # Errors
    /// [`MemoryError::Pagemap`] if the kernel refuses.
    pub(super) fn own_pages_at(
        &mut self,
        addresses: &Range<u64>,
    ) -> Result<Vec<OwnPages>, MemoryError> {
        let scanned = match self.view {
            HugeView::Told => pagemap::scan(&self.file, addresses),
            HugeView::Untold => pagemap::read(&self.file, addresses),
        };
        let regions = match scanned {
            Err(error)
                if self.view == HugeView::Told && error.raw_os_error() == Some(libc::ENOTTY) =>
            {
                self.view = HugeView::Untold;
                pagemap::read(&self.file, addresses)
            }
            other => other,
        };
        let regions = regions.map_err(|cause| MemoryError::Pagemap { cause })?;
        let own = |region: &Region| OwnPages {
            start: region.start,
            count: (region.end - region.start) / PAGE_BYTES as u64,
            is_huge: region.categories & IS_HUGE != 0,
        };
        let is_own = |region: &&Region| region.categories & (IS_FILE | IS_ZERO) == 0;
        Ok(regions.iter().filter(is_own).map(own).collect())
    }

    /// Whether KSM has mapped one host page at several places of `own`, which are in order and
    /// within 2 MiB: the kernel makes no huge page of such memory. False without `CAP_SYS_ADMIN`,
    /// since the frame numbers are hidden then.
    ///
    /// # Errors
    /// [`MemoryError::Pagemap`] if they cannot be read.
    pub(super) fn has_twins_at(&self, own: &[OwnPages]) -> Result<bool, MemoryError> {
        let small: Vec<&OwnPages> = own.iter().filter(|pages| !pages.is_huge).collect();
        let (Some(first), Some(last)) = (small.first(), small.last()) else { return Ok(false) };
        debug_assert!(own.is_sorted_by_key(|pages| pages.start));
        // One read covers all of them.
        let addresses = first.start..last.start + last.count * PAGE_BYTES as u64;
        let frames = pagemap::frames(&self.file, &addresses)
            .map_err(|cause| MemoryError::Pagemap { cause })?;
        let of = |pages: &&OwnPages| {
            let at = ((pages.start - addresses.start) / PAGE_BYTES as u64) as usize;
            frames[at..at + pages.count as usize].iter().flatten()
        };
        let mut seen = HashSet::new();
        Ok(!small.iter().flat_map(of).all(|frame| seen.insert(frame)))
    }

    /// Write-protects the process's own pages at `addresses`, which are registered for that, and
    /// returns their ranges.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn protect_at(&self, addresses: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        pagemap::protect(&self.file, addresses).map(places)
    }

    /// Returns the ranges that have not been written to since `protect_at`.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(super) fn protected_at(&self, addresses: &Range<u64>) -> io::Result<Vec<Range<u64>>> {
        pagemap::protected(&self.file, addresses).map(places)
    }
}

fn places(regions: Vec<Region>) -> Vec<Range<u64>> {
    regions.into_iter().map(|region| region.start..region.end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{HugePages, MemoryConfig, RamLayout, Treatment};

    const MIB: u64 = 1 << 20;

    fn ram(huge_pages: HugePages) -> GuestRam {
        let config = MemoryConfig { huge_pages, ..MemoryConfig::default() };
        GuestRam::new(RamLayout::new(8 * MIB).unwrap(), &config, None).unwrap()
    }

    fn own(map: &mut PageMap, ram: &GuestRam) -> Vec<(u64, u64)> {
        let pages = map.own_pages(ram, &(0..8 * MIB)).unwrap();
        pages.iter().map(|pages| (pages.start, pages.count)).collect()
    }

    #[test]
    fn a_host_page_mapped_twice_is_reported() {
        let ram = ram(HugePages::Off);
        let map = PageMap::open().unwrap();
        let (part, _) = ram.part(&(0..8192)).unwrap();
        let own = |count| [OwnPages { start: part.addresses().start, count, is_huge: false }];
        let mut page = [0; 2 * PAGE_BYTES];
        ram.read(0, &mut page).unwrap();
        assert!(
            map.has_twins_at(&own(2)).unwrap(),
            "the page of zeros twice; this test takes root"
        );
        assert!(!map.has_twins_at(&own(1)).unwrap());
        ram.write(4096, &[1]).unwrap();
        assert!(!map.has_twins_at(&own(2)).unwrap());
    }

    #[test]
    fn written_pages_are_present_and_inspection_maps_none() {
        let ram = ram(HugePages::Off);
        for mut map in [PageMap::open().unwrap(), PageMap::open_plainly()] {
            let before = own(&mut map, &ram);
            assert_eq!(own(&mut map, &ram), before);
        }
        for gpa in [4096, 8192, 2 * MIB, 8 * MIB - 4096] {
            ram.write(gpa, &[1]).unwrap();
        }
        let expected = [(4096, 2), (2 * MIB, 1), (8 * MIB - 4096, 1)];
        assert_eq!(own(&mut PageMap::open().unwrap(), &ram), expected);
        assert_eq!(own(&mut PageMap::open_plainly(), &ram), expected);
        let part = PageMap::open().unwrap().own_pages(&ram, &(8192..2 * MIB)).unwrap();
        assert_eq!(part, [OwnPages { start: 8192, count: 1, is_huge: false }]);
    }

    #[test]
    fn pages_that_were_only_read_are_not_owned() {
        let ram = ram(HugePages::Off);
        ram.read(4 * MIB, &mut [0; 8192]).unwrap();
        let mut map = PageMap::open().unwrap();
        assert_eq!(own(&mut map, &ram), []);
        assert_eq!(map.view(), HugeView::Told, "this test needs Linux 6.7");
    }

    #[test]
    fn huge_pages_are_reported() {
        let ram = ram(HugePages::Off);
        // A region need not begin at a multiple of 2 MiB in this process, but 8 MiB contain whole 2
        // MiB blocks.
        ram.copy_in(0, 0, &[1; crate::memory::CHUNK_BYTES]).unwrap();
        (0..ram.chunks()).for_each(|chunk| ram.copy_in(chunk, 0, &[1; 4096]).unwrap());
        ram.treat(&(0..8 * MIB), Treatment::Collapse).unwrap();
        let mut map = PageMap::open().unwrap();
        let pages = map.own_pages(&ram, &(0..8 * MIB)).unwrap();
        assert!(pages.iter().any(|pages| pages.is_huge && pages.count >= 512), "{pages:?}");
    }

    #[test]
    fn unmapped_ranges_are_not_inspected() {
        let (ram, mut map) = (ram(HugePages::Off), PageMap::open().unwrap());
        for range in [8 * MIB..9 * MIB, 7 * MIB..9 * MIB, 1..4096] {
            let refused = map.own_pages(&ram, &range);
            assert!(matches!(refused, Err(MemoryError::NoSuchAddress { .. })), "{range:?}");
        }
    }
}
