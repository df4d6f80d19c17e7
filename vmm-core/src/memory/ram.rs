//! Guest RAM, and how the rest of the program reads and writes it.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use vm_memory::bitmap::{AtomicBitmap, Bitmap};
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{
    Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, bitmap::RefSlice,
};

use super::backing::{Backing, TemplateImage, Treatment, populate, zero};
use super::pin::Pins;
use super::{
    CHUNK_PAGES, MemoryConfig, MemoryError, Missing, MissingPages, PAGE_BYTES, PageMap, RamLayout,
    RamRegion, WriteLog, runs,
};
use crate::sys::RamMap;
use crate::sys::mapping::{self, Part};
use crate::sys::userfaultfd::Userfaultfd;

/// The RAM of one guest: private memory, initially zeros or the content of a template.
///
/// Writes through this type are recorded page by page, since KVM's dirty log does not see them;
/// [`crate::Vm::collect_dirty`] adds them to what the guest wrote. Reads race with a running guest:
/// a page that the guest is writing reads as some mix of old and new, and is dirty afterwards.
#[derive(Debug)]
pub struct GuestRam {
    memory: RamMap,
    layout: RamLayout,
    backing: Backing,
    /// What knows the missing pages, once there may be some.
    missing: OnceLock<Arc<Missing>>,
    /// What the kernel writes for the guest's devices, once that is logged.
    write_log: OnceLock<WriteLog>,
    pins: Pins,
}

impl GuestRam {
    /// Maps `layout` as `config` says, after checking that the host can back it. With a `template`,
    /// the memory has the content of its file, which must be long enough.
    ///
    /// # Errors
    /// As [`MemoryConfig::check_host`]; [`MemoryError::Map`], [`MemoryError::Policy`],
    /// [`MemoryError::Populate`], [`MemoryError::TemplateBacking`].
    pub(crate) fn new(
        layout: RamLayout,
        config: &MemoryConfig,
        template: Option<&TemplateImage>,
    ) -> Result<Self, MemoryError> {
        config.check_host(layout.bytes())?;
        let backing = Backing::new(&layout, config, template)?;
        let regions: Result<Vec<_>, _> =
            layout.regions().iter().map(|region| backing.map(region, template)).collect();
        let memory = GuestMemoryMmap::from_regions(regions?).map_err(|error| MemoryError::Map {
            bytes: layout.bytes(),
            reason: error.to_string(),
        })?;
        if config.is_populated() {
            populate(&memory.iter().collect::<Vec<_>>())?;
        }
        let (missing, write_log) = (OnceLock::new(), OnceLock::new());
        Ok(Self { memory, layout, backing, missing, write_log, pins: Pins::default() })
    }

    /// Creates ordinary memory of `bytes`.
    #[cfg(test)]
    pub(crate) fn anonymous(bytes: u64) -> Self {
        Self::new(RamLayout::new(bytes).unwrap(), &MemoryConfig::default(), None).unwrap()
    }

    /// Lets the kernel merge pages with equal ones of other processes that allow it too; see
    /// [`MemoryConfig::merge_domain`].
    ///
    /// # Errors
    /// [`MemoryError::CannotMerge`] for pages of a pool; [`MemoryError::Merge`] if the kernel
    /// refuses.
    pub fn merge(&self) -> Result<(), MemoryError> {
        self.backing.merge(self.memory.iter(), self.layout.regions())
    }

    /// Applies `treatment` to `range`, whole pages of guest-physical addresses. The guest reads the
    /// same content as before.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if the range is not RAM or not whole pages;
    /// [`MemoryError::CannotMerge`] for pages of a pool; [`MemoryError::NotMerged`] if this guest's
    /// memory must not be merged; [`MemoryError::Merge`] or [`MemoryError::Collapse`] if the kernel
    /// refuses.
    pub fn treat(&self, range: &Range<u64>, treatment: Treatment) -> Result<(), MemoryError> {
        let (part, place) = self.part(range)?;
        self.backing.treat(part, place, treatment)
    }

    /// Returns the part of a region that is `range`, which must be whole pages, and that region's
    /// place.
    pub(super) fn part(&self, range: &Range<u64>) -> Result<(Part<'_>, &RamRegion), MemoryError> {
        let len = range.end.saturating_sub(range.start) as usize;
        let nowhere = || MemoryError::NoSuchAddress { gpa: range.start, len };
        let (index, offset) = self.find(range).ok_or_else(nowhere)?;
        let region = self.memory.iter().nth(index).ok_or_else(nowhere)?;
        let place = self.layout.regions().get(index).ok_or_else(nowhere)?;
        Ok((Part::new(region, offset, len).map_err(|_| nowhere())?, place))
    }

    /// Whether the kernel may merge pages of the 2 MiB block around guest-physical address `gpa`.
    pub fn is_marked(&self, gpa: u64) -> bool {
        let found = self.find(&(gpa..gpa)).filter(|(index, offset)| {
            (*offset as u64) < self.layout.regions().get(*index).map_or(0, |place| place.bytes)
        });
        found.is_some_and(|(index, offset)| {
            self.backing.is_marked(&self.layout.regions()[index], offset)
        })
    }

    /// Whether the kernel may currently merge any page.
    pub fn has_marks(&self) -> bool {
        self.backing.has_marks()
    }

    /// Fills `buf`, whole pages within 2 MiB, with the template's content at guest-physical address
    /// `gpa`. Returns false where the memory is not, or no longer, a template's.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if the range is not RAM; [`MemoryError::ReadTemplate`] if the
    /// file cannot be read.
    pub fn read_template(&self, gpa: u64, buf: &mut [u8]) -> Result<bool, MemoryError> {
        let len = buf.len();
        let nowhere = || MemoryError::NoSuchAddress { gpa, len };
        let range = gpa..gpa.checked_add(len as u64).ok_or_else(nowhere)?;
        let (index, offset) = self.find(&range).ok_or_else(nowhere)?;
        let (Some(region), Some(place)) =
            (self.memory.iter().nth(index), self.layout.regions().get(index))
        else {
            return Err(nowhere());
        };
        self.backing
            .read_template(region, place, offset, buf)
            .map_err(|cause| MemoryError::ReadTemplate { cause })
    }

    /// Returns the runs of pages in `ranges` that equal those of the guest's template, in order of
    /// their addresses.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if a range is not RAM or not whole pages;
    /// [`MemoryError::ReadTemplate`] if the template's file cannot be read.
    pub(super) fn as_in_template(
        &self,
        ranges: &[Range<u64>],
    ) -> Result<Vec<Range<u64>>, MemoryError> {
        let mut found = Vec::new();
        for range in ranges {
            let (part, place) = self.part(range)?;
            let equal = self.backing.as_in_template(place, part);
            let equal = equal.map_err(|cause| MemoryError::ReadTemplate { cause })?;
            let gpa = |offset: usize| place.gpa + offset as u64;
            equal.iter().for_each(|run| runs::add(&mut found, gpa(run.start)..gpa(run.end)));
        }
        Ok(found)
    }

    /// Drops the pages in `range`: they then read as in the template where the memory is a
    /// template's, and as zeros elsewhere.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if the range is not RAM or not whole pages;
    /// [`MemoryError::Share`] if the kernel refuses; [`MemoryError::Pinned`].
    pub(super) fn drop_pages(&self, range: &Range<u64>) -> Result<(), MemoryError> {
        let (part, _) = self.part(range)?;
        let dropped = self.pins.unless_set(|| mapping::drop_pages(part));
        dropped.ok_or(MemoryError::Pinned)?.map_err(|cause| MemoryError::Share { cause })
    }

    /// Whether all of it has to stay where it is.
    pub(super) fn pins(&self) -> &Pins {
        &self.pins
    }

    /// Returns the addresses in this process of the memory in `range` that is a template's.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if the range is not RAM or not whole pages.
    pub(super) fn of_template(&self, range: &Range<u64>) -> Result<Vec<Range<u64>>, MemoryError> {
        let (part, place) = self.part(range)?;
        Ok(self.backing.of_template(part, place))
    }

    /// The userfaultfd that write-protects memory of the guest. `None` if the memory does not come
    /// from a template, or this process may not have one.
    pub(super) fn userfaultfd(&self) -> Option<&Userfaultfd> {
        self.backing.userfaultfd()
    }

    /// Drops the userfaultfd, as if this process might not have one.
    #[cfg(test)]
    pub(super) fn without_userfaultfd(self) -> Self {
        Self { backing: self.backing.without_userfaultfd(), ..self }
    }

    /// Splits the huge pages in `range` into small ones, and stops the kernel from making new ones
    /// there.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if the range is not RAM or not whole pages.
    pub(crate) fn break_up(&self, range: &Range<u64>) -> Result<(), MemoryError> {
        self.backing.break_up(self.part(range)?.0);
        Ok(())
    }

    /// Returns the bytes of a page of the pool that it is from; `None` for other memory.
    pub(super) fn pool_page_bytes(&self) -> Option<u64> {
        self.backing.pool_page_bytes()
    }

    /// Whether the VMM gives none of it back on its own: it is preallocated, from a pool, or
    /// pinned.
    pub(crate) fn keeps_all(&self) -> bool {
        self.backing.keeps_all() || self.is_pinned()
    }

    /// Returns the runs of pages in `range` that are zero and take memory according to `map`, in
    /// order of their addresses.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if the range is not RAM or not whole pages;
    /// [`MemoryError::Pagemap`] if the kernel refuses.
    pub(crate) fn zeros(
        &self,
        range: &Range<u64>,
        map: &mut PageMap,
    ) -> Result<Vec<Range<u64>>, MemoryError> {
        let (mut first, mut page) = ([0; 8], [0; PAGE_BYTES]);
        let mut found = Vec::new();
        for pages in map.own_pages(self, range)? {
            for number in 0..pages.count {
                let gpa = pages.start + number * PAGE_BYTES as u64;
                self.read(gpa, &mut first)?;
                if first != [0; 8] {
                    continue;
                }
                self.read(gpa, &mut page)?;
                if page == [0; PAGE_BYTES] {
                    runs::add(&mut found, gpa..gpa + PAGE_BYTES as u64);
                }
            }
        }
        Ok(found)
    }

    /// Gives back those pages of `range` that are zero, where that frees memory. The guest reads
    /// the same content as before. Its memory must not be written meanwhile. Returns the bytes of
    /// these pages.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if the range is not RAM or not whole pages;
    /// [`MemoryError::Discard`] if the kernel refuses; [`MemoryError::Pinned`].
    pub(crate) fn drop_zeros(&self, range: &Range<u64>) -> Result<u64, MemoryError> {
        let (part, place) = self.part(range)?;
        let dropped = self.pins.unless_set(|| self.backing.drop_zeros(place, part));
        dropped.ok_or(MemoryError::Pinned)?.map_err(MemoryError::Discard)
    }

    /// Whether parts of it may be marked for the kernel to merge: the guest has a merge domain, and
    /// this host merges that domain.
    pub fn is_merged(&self) -> bool {
        self.backing.is_merged()
    }

    /// Whether pages that the guest has not written yet are those of a template.
    pub fn is_from_template(&self) -> bool {
        self.backing.is_template()
    }

    /// Layout of the RAM in guest-physical addresses.
    pub fn layout(&self) -> &RamLayout {
        &self.layout
    }

    /// Number of chunks of 64 pages.
    pub fn chunks(&self) -> usize {
        self.layout.chunks()
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.layout.bytes()
    }

    /// The same memory in the form that rust-vmm crates use.
    pub fn memory(&self) -> &GuestMemoryMmap<AtomicBitmap> {
        &self.memory
    }

    /// Fills `buf`, a whole number of pages, from page `first_page` of `chunk` on.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPages`] if the guest has no such pages; [`MemoryError::NotWholePages`].
    pub fn copy_out(
        &self,
        chunk: usize,
        first_page: usize,
        buf: &mut [u8],
    ) -> Result<(), MemoryError> {
        self.pages(chunk, first_page, buf.len())?.copy_to(buf);
        Ok(())
    }

    /// Writes `data`, a whole number of pages, from page `first_page` of `chunk` on.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPages`] if the guest has no such pages; [`MemoryError::NotWholePages`].
    pub fn copy_in(&self, chunk: usize, first_page: usize, data: &[u8]) -> Result<(), MemoryError> {
        self.pages(chunk, first_page, data.len())?.copy_from(data);
        Ok(())
    }

    /// Fills the pages of `chunk` whose bits are set in `mask` with zeros.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchPages`] if there is no such chunk.
    pub fn zero(&self, chunk: usize, mask: u64) -> Result<(), MemoryError> {
        const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
        for page in (0..CHUNK_PAGES).filter(|page| mask >> page & 1 == 1) {
            self.copy_in(chunk, page, &ZEROS)?;
        }
        Ok(())
    }

    /// Fills `buf` from guest-physical address `gpa` on. The range must lie within one region.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if the range is not RAM.
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), MemoryError> {
        let len = buf.len();
        self.memory
            .read_slice(buf, GuestAddress(gpa))
            .map_err(|_| MemoryError::NoSuchAddress { gpa, len })
    }

    /// Writes `data` from guest-physical address `gpa` on. The range must lie within one region.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if the range is not RAM.
    pub fn write(&self, gpa: u64, data: &[u8]) -> Result<(), MemoryError> {
        self.memory
            .write_slice(data, GuestAddress(gpa))
            .map_err(|_| MemoryError::NoSuchAddress { gpa, len: data.len() })
    }

    /// Has pages arrive after the guest from now on, through `faults`: a thread that accesses one
    /// that is absent waits, while another thread calls [`Missing::wanted`]. Called once.
    ///
    /// # Errors
    /// `EINVAL` for memory of a template, and for that of a pool before Linux 5.13; `AlreadyExists`
    /// if it was called before; otherwise the error from the kernel.
    pub fn follow(&self, faults: MissingPages) -> std::io::Result<Arc<Missing>> {
        let missing = Arc::new(Missing::begin(self, faults)?);
        match self.missing.set(Arc::clone(&missing)) {
            Ok(()) => Ok(missing),
            Err(_) => Err(std::io::ErrorKind::AlreadyExists.into()),
        }
    }

    /// Returns the log of what the kernel writes for the guest's devices. From the first call on it
    /// takes memory.
    pub(crate) fn write_log(&self) -> &WriteLog {
        self.write_log.get_or_init(|| WriteLog::new(&self.layout))
    }

    /// As `write_log`; `None` if the kernel was never given one.
    pub(crate) fn write_log_in_use(&self) -> Option<&WriteLog> {
        self.write_log.get()
    }

    /// Whether a page of these guest-physical addresses, below the PCI hole, has yet to arrive.
    pub(crate) fn is_missing_in(&self, addresses: &Range<u64>) -> bool {
        self.missing.get().is_some_and(|missing| !missing.is_ended() && missing.is_in(addresses))
    }

    /// Whether no access waits for a page that has not arrived: none is missing any more, or ever
    /// was.
    pub fn is_complete(&self) -> bool {
        self.missing.get().is_none_or(|missing| missing.is_ended())
    }

    /// Gives all memory back to the host: it reads as zeros, and every page counts as written.
    ///
    /// # Errors
    /// [`MemoryError::Discard`] if the system refuses.
    pub(crate) fn clear(&self) -> Result<(), MemoryError> {
        for (index, region) in self.layout.regions().iter().enumerate() {
            self.discard_in(index, 0, region.bytes as usize)?;
        }
        Ok(())
    }

    /// Whether all of `range`, guest-physical addresses, is RAM.
    pub(crate) fn contains(&self, range: &Range<u64>) -> bool {
        self.find(range).is_some()
    }

    /// Gives whole pages back to the host: they read as zeros, and count as written, so that a
    /// migration that has already sent their content sends zeros after it. Returns how many bytes
    /// the host got: none from a pool or if the memory is pinned, and possibly less than all from a
    /// template.
    ///
    /// # Errors
    /// [`MemoryError::NoSuchAddress`] if the range is not RAM or not whole pages, and then nothing
    /// has changed. [`MemoryError::Discard`] if the system refuses.
    pub(crate) fn discard(&self, range: &Range<u64>) -> Result<u64, MemoryError> {
        let len = range.end.saturating_sub(range.start) as usize;
        let page = PAGE_BYTES as u64;
        let whole = range.start.is_multiple_of(page) && range.end.is_multiple_of(page);
        match self.find(range) {
            Some((region, offset)) if whole => self.discard_in(region, offset, len),
            _ => Err(MemoryError::NoSuchAddress { gpa: range.start, len }),
        }
    }

    /// Returns the index of the region that holds all of `range`, and the offset of the range in
    /// it.
    fn find(&self, range: &Range<u64>) -> Option<(usize, usize)> {
        self.layout.regions().iter().enumerate().find_map(|(index, region)| {
            let offset = range.start.checked_sub(region.gpa)?;
            let end = range.end.checked_sub(region.gpa)?;
            (offset <= end && end <= region.bytes).then_some((index, offset as usize))
        })
    }

    /// Gives whole pages of a region back to the host.
    fn discard_in(&self, index: usize, offset: usize, len: usize) -> Result<u64, MemoryError> {
        let (Some(region), Some(place)) =
            (self.memory.iter().nth(index), self.layout.regions().get(index))
        else {
            return Ok(0);
        };
        let discard = || {
            let missing = self.missing.get();
            let discarded = missing.map(|missing| missing.discard(index, &(offset..offset + len)));
            match discarded.transpose()? {
                Some(Some(given)) => Ok(given),
                Some(None) | None => self.backing.discard(region, place, offset, len),
            }
        };
        let discarded = self.pins.unless_set(discard);
        let discarded = discarded.unwrap_or_else(|| zero(region, offset, len).map(|()| 0));
        // Mark the pages dirty afterwards, even after a partial failure: a page marked before could
        // be found dirty, sent with its old content, and then be zeroed unseen.
        (**region).bitmap().mark_dirty(offset, len);
        discarded.map_err(MemoryError::Discard)
    }

    /// The mapped regions, in the order of the layout; the index is KVM's memory slot.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = &GuestRegionMmap<AtomicBitmap>> {
        self.memory.iter()
    }

    fn pages(
        &self,
        chunk: usize,
        first_page: usize,
        bytes: usize,
    ) -> Result<VolatileSlice<'_, RefSlice<'_, AtomicBitmap>>, MemoryError> {
        if !bytes.is_multiple_of(PAGE_BYTES) {
            return Err(MemoryError::NotWholePages(bytes));
        }
        let pages = bytes / PAGE_BYTES;
        let missing =
            || MemoryError::NoSuchPages { chunk, first_page, pages, chunks: self.chunks() };
        if first_page >= CHUNK_PAGES || pages > CHUNK_PAGES - first_page {
            return Err(missing());
        }
        let gpa = self.layout.gpa_of(chunk, first_page).ok_or_else(missing)?;
        self.memory.get_slice(GuestAddress(gpa), bytes).map_err(|_| missing())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::CHUNK_BYTES;

    fn ram(bytes: u64) -> GuestRam {
        GuestRam::anonymous(bytes)
    }

    #[test]
    fn fresh_memory_is_zero_and_keeps_what_is_written() {
        let ram = ram(8 << 20);
        let mut page = [1; PAGE_BYTES];
        ram.copy_out(31, 63, &mut page).unwrap();
        assert_eq!(page, [0; PAGE_BYTES]);

        ram.copy_in(3, 2, &[7; 2 * PAGE_BYTES]).unwrap();
        ram.zero(3, 1 << 3).unwrap();
        let mut chunk = vec![1; CHUNK_BYTES];
        ram.copy_out(3, 0, &mut chunk).unwrap();
        let expected = |page| if page == 2 { 7 } else { 0 };
        for (page, bytes) in chunk.chunks(PAGE_BYTES).enumerate() {
            assert!(bytes.iter().all(|byte| *byte == expected(page)), "page {page}");
        }
    }

    #[test]
    fn cleared_memory_reads_as_zeros_and_counts_as_written() {
        let ram = ram(4 << 20);
        ram.copy_in(3, 2, &[7; PAGE_BYTES]).unwrap();
        reset_dirty(&ram);
        ram.clear().unwrap();
        let mut page = [1; PAGE_BYTES];
        ram.copy_out(3, 2, &mut page).unwrap();
        assert_eq!(page, [0; PAGE_BYTES]);
        assert_eq!(dirty(&ram), vec![!0; 16]);
    }

    fn reset_dirty(ram: &GuestRam) {
        ram.mappings().for_each(|region| (**region).bitmap().reset());
    }

    fn dirty(ram: &GuestRam) -> Vec<u64> {
        ram.mappings().flat_map(|region| (**region).bitmap().get_and_reset()).collect()
    }

    #[test]
    fn discarded_pages_read_as_zeros_and_count_as_written_and_no_others() {
        let ram = ram(4 << 20);
        ram.copy_in(3, 0, &[7; CHUNK_BYTES]).unwrap();
        reset_dirty(&ram);
        let start = 3 * CHUNK_BYTES as u64;
        ram.discard(&(start + 4096..start + 3 * 4096)).unwrap();
        let mut chunk = vec![1; CHUNK_BYTES];
        ram.copy_out(3, 0, &mut chunk).unwrap();
        for (page, bytes) in chunk.chunks(PAGE_BYTES).enumerate() {
            let expected = if page == 1 || page == 2 { 0 } else { 7 };
            assert!(bytes.iter().all(|byte| *byte == expected), "page {page}");
        }
        let mut expected = vec![0; 16];
        expected[3] = 0b110;
        assert_eq!(dirty(&ram), expected);
    }

    #[test]
    fn what_is_not_ram_or_not_whole_pages_is_not_discarded() {
        let ram = ram((3 << 30) + (1 << 20));
        ram.write((3 << 30) - 4096, &[7; 4096]).unwrap();
        ram.write(4 << 30, &[7; 4096]).unwrap();
        reset_dirty(&ram);
        let low_end = 3 << 30;
        let backwards = Range { start: 8192, end: 4096 };
        let ranges = [
            low_end - 4096..low_end + 4096,
            low_end - 4096..(4 << 30) + 4096,
            low_end..low_end + 4096,
            (4 << 30) - 4096..(4 << 30) + 4096,
            (4 << 30)..(4 << 30) + (2 << 20),
            (4 << 30) + 1..(4 << 30) + 4096,
            (4 << 30)..(4 << 30) + 1,
            u64::MAX - 4095..u64::MAX,
            backwards,
        ];
        for range in ranges {
            let refused = ram.discard(&range);
            assert!(matches!(refused, Err(MemoryError::NoSuchAddress { .. })), "{range:x?}");
        }
        assert!(dirty(&ram).iter().all(|word| *word == 0));
        let mut byte = [0; 1];
        for gpa in [low_end - 4096, 4 << 30] {
            ram.read(gpa, &mut byte).unwrap();
            assert_eq!(byte, [7], "{gpa:#x}");
        }
        ram.discard(&(4 << 30..(4 << 30) + 4096)).unwrap();
        ram.read(4 << 30, &mut byte).unwrap();
        assert_eq!(byte, [0]);
    }

    #[test]
    fn chunks_above_the_hole_are_the_memory_from_4_gib_on() {
        let ram = ram((3 << 30) + (1 << 20));
        ram.copy_in(12288, 1, &[9; PAGE_BYTES]).unwrap();
        let mut byte = [0];
        ram.read((4 << 30) + 4096, &mut byte).unwrap();
        assert_eq!(byte, [9]);
    }

    #[test]
    fn pages_and_addresses_outside_memory_are_refused() {
        let ram = ram(4 << 20);
        let mut two = [0; 2 * PAGE_BYTES];
        let missing = |result| assert!(matches!(result, Err(MemoryError::NoSuchPages { .. })));
        missing(ram.copy_out(16, 0, &mut two));
        missing(ram.copy_out(usize::MAX, 0, &mut two));
        missing(ram.copy_in(0, 63, &two));
        missing(ram.copy_in(0, usize::MAX, &two));
        missing(ram.zero(16, 1));
        assert!(matches!(ram.copy_in(0, 0, &[0; 100]), Err(MemoryError::NotWholePages(100))));
        assert!(ram.read((4 << 20) - 1, &mut [0; 2]).is_err());
        assert!(ram.write(u64::MAX, &[0; 2]).is_err());
    }
}
