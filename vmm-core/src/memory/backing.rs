//! Maps guest memory and gives parts of it back to the host. The right call depends on what backs
//! the memory; the wrong one succeeds and does nothing, or brings back old content.

mod blocks;
mod equals;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress,
};

use blocks::{BLOCK_BYTES, BlockSet};

use super::{
    HugePages, MemoryConfig, MemoryError, PAGE_BYTES, RamLayout, RamRegion, collapse, pool, runs,
};
use crate::sys::mapping::{self, Advice, Part};
use crate::sys::userfaultfd::Userfaultfd;

/// Most blocks of a template that are replaced one by one. Each may add two mappings, and a process
/// may have 65,530 by default (`vm.max_map_count`).
const REPLACED_BLOCKS_MAX: usize = 12_000;
/// Bytes that one thread populates at a time.
const POPULATE_BYTES: usize = 64 << 20;
/// Most threads that populate memory.
const POPULATE_THREADS_MAX: usize = 16;

/// How the kernel treats a part of guest memory from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// The kernel may merge its pages with equal ones of the merge domain.
    Merge,
    /// The kernel no longer merges its pages, and splits those that are merged, which takes memory.
    Unmerge,
    /// As [`Self::Unmerge`], and the kernel collapses its pages into huge pages.
    Collapse,
}

/// Guest memory in a file, from which clones are started.
#[derive(Debug)]
pub(crate) struct TemplateImage {
    /// The file, open for reading.
    pub(crate) file: Arc<File>,
    /// Offset of guest memory in the file, a multiple of the page size.
    pub(crate) offset: u64,
}

/// What backs guest memory.
#[derive(Debug)]
enum Kind {
    /// Private anonymous memory: dropped pages go back to the host and read as zeros.
    Anonymous,
    /// Pages of a pool, in a file that only this process has, and that can so be mapped twice
    /// ([`super::Missing`]). It keeps all pages that it ever had: the pool keeps them for this
    /// guest anyway.
    Pool,
    /// Pages of a file, private once written. A dropped page has the file's content again.
    Template(Replaced),
}

/// Which blocks of a template have been replaced by anonymous memory.
#[derive(Debug)]
struct Replaced {
    blocks: BlockSet,
    /// How many of them were replaced one by one.
    count: AtomicUsize,
}

/// How guest memory is backed, and how to give it back.
#[derive(Debug)]
pub(super) struct Backing {
    kind: Kind,
    config: MemoryConfig,
    is_merged: AtomicBool,
    /// The blocks that the kernel may merge. Locked during the `madvise` calls, so that both agree.
    marks: Mutex<BlockSet>,
    /// Write-protects memory of a template; `None` without a template or without the permission.
    userfaultfd: Option<Userfaultfd>,
}

impl Backing {
    /// Creates the backing that `config` describes, or that of a template.
    ///
    /// # Errors
    /// [`MemoryError::TemplateBacking`] for a template with pages of a pool or memory taken in
    /// advance.
    pub(super) fn new(
        layout: &RamLayout,
        config: &MemoryConfig,
        template: Option<&TemplateImage>,
    ) -> Result<Self, MemoryError> {
        let is_pool = config.huge_pages.pool_page_bytes().is_some();
        let kind = match template {
            Some(_) if is_pool || config.is_populated() => {
                return Err(MemoryError::TemplateBacking);
            }
            Some(_) => Kind::Template(Replaced {
                blocks: BlockSet::new(layout),
                count: AtomicUsize::new(0),
            }),
            None if is_pool => Kind::Pool,
            None => Kind::Anonymous,
        };
        // Open it now: a confined process cannot.
        let userfaultfd = template.and_then(|_| {
            let made =
                Userfaultfd::open().map_err(|cause| MemoryError::NoWriteProtection { cause });
            made.inspect_err(|error| tracing::warn!("{error}")).ok()
        });
        Ok(Self {
            kind,
            config: config.clone(),
            is_merged: AtomicBool::new(false),
            marks: Mutex::new(BlockSet::new(layout)),
            userfaultfd,
        })
    }

    /// Drops the userfaultfd, as if this process had no permission for one.
    #[cfg(test)]
    pub(super) fn without_userfaultfd(self) -> Self {
        Self { userfaultfd: None, ..self }
    }

    /// Bytes of a page of the pool that the memory is from.
    pub(super) fn pool_page_bytes(&self) -> Option<u64> {
        self.config.huge_pages.pool_page_bytes()
    }

    /// The userfaultfd that write-protects memory of the guest.
    pub(super) fn userfaultfd(&self) -> Option<&Userfaultfd> {
        self.userfaultfd.as_ref()
    }

    /// Maps a region.
    ///
    /// # Errors
    /// [`MemoryError::Map`] if it cannot be mapped; [`MemoryError::Policy`] if the kernel refuses
    /// the NUMA policy.
    pub(super) fn map(
        &self,
        region: &RamRegion,
        template: Option<&TemplateImage>,
    ) -> Result<GuestRegionMmap<AtomicBitmap>, MemoryError> {
        let failed = |reason: String| MemoryError::Map { bytes: region.bytes, reason };
        let pool = self.pool_page_bytes().map(|page| pool::file(page, region.bytes)).transpose();
        let (file, flags) = match (pool.map_err(|error| failed(error.to_string()))?, template) {
            (Some(file), _) => (Some(FileOffset::new(file, 0)), libc::MAP_SHARED),
            (None, Some(image)) => {
                let offset = image.offset + (region.first_chunk * super::CHUNK_BYTES) as u64;
                let file = FileOffset::from_arc(Arc::clone(&image.file), offset);
                (Some(file), libc::MAP_PRIVATE | libc::MAP_NORESERVE)
            }
            (None, None) => (None, libc::MAP_PRIVATE | libc::MAP_NORESERVE | libc::MAP_ANONYMOUS),
        };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let mapping = MmapRegion::build(file, region.bytes as usize, access, flags)
            .map_err(|error| failed(error.to_string()))?;
        let mapped = GuestRegionMmap::new(mapping, GuestAddress(region.gpa))
            .ok_or_else(|| failed("its end is beyond the last address".into()))?;
        self.prepare(Part::whole(&mapped), !matches!(self.kind, Kind::Anonymous))?;
        Ok(mapped)
    }

    /// Applies the configured page size and NUMA policy. Requests transparent huge pages only for
    /// ordinary anonymous memory, not for a pool or a template's file.
    fn prepare(&self, part: Part<'_>, is_file_or_pool: bool) -> Result<(), MemoryError> {
        let pages = match self.config.huge_pages {
            HugePages::Off => Some(Advice::SmallPages),
            HugePages::Transparent if !is_file_or_pool => Some(Advice::HugePages),
            _ => None,
        };
        if let Some(advice) = pages {
            // A refusal (by a kernel without such pages) costs only speed.
            let _ = mapping::advise(part, advice);
        }
        let policy = self.config.numa;
        let Some((mode, nodes)) = policy.binding() else { return Ok(()) };
        mapping::bind(part, mode, nodes.bits())
            .map_err(|cause| MemoryError::Policy { policy: policy.to_string(), cause })
    }

    /// Lets the kernel merge pages of `regions`, which lie at `places`, with equal ones.
    ///
    /// # Errors
    /// [`MemoryError::CannotMerge`] for pages of a pool; [`MemoryError::Merge`] if the kernel
    /// refuses.
    pub(super) fn merge<'a>(
        &self,
        regions: impl Iterator<Item = &'a GuestRegionMmap<AtomicBitmap>>,
        places: &[RamRegion],
    ) -> Result<(), MemoryError> {
        if matches!(self.kind, Kind::Pool) {
            return Err(MemoryError::CannotMerge);
        }
        self.is_merged.store(true, Ordering::Release);
        regions.zip(places).try_for_each(|(region, place)| self.mark(Part::whole(region), place))
    }

    /// Merges, unmerges or collapses a part of the memory at `place`.
    ///
    /// # Errors
    /// [`MemoryError::CannotMerge`] for pages of a pool; [`MemoryError::NotMerged`] if this guest's
    /// memory must not be merged; [`MemoryError::Merge`] or [`MemoryError::Collapse`] if the kernel
    /// refuses.
    pub(super) fn treat(
        &self,
        part: Part<'_>,
        place: &RamRegion,
        treatment: Treatment,
    ) -> Result<(), MemoryError> {
        if matches!(self.kind, Kind::Pool) {
            return Err(MemoryError::CannotMerge);
        }
        match treatment {
            Treatment::Merge if !self.is_merged() => Err(MemoryError::NotMerged),
            Treatment::Merge => self.mark(part, place),
            Treatment::Unmerge => self.unmark(part, place),
            Treatment::Collapse => {
                self.unmark(part, place)?;
                mapping::advise(part, Advice::HugePages)
                    .and_then(|()| {
                        collapse::each(part.blocks(BLOCK_BYTES), |block| {
                            mapping::advise(*block, Advice::Collapse)
                        })
                    })
                    .map_err(|cause| MemoryError::Collapse { cause })
            }
        }
    }

    fn mark(&self, part: Part<'_>, place: &RamRegion) -> Result<(), MemoryError> {
        let marks = self.marks();
        mapping::advise(part, Advice::Mergeable).map_err(|cause| MemoryError::Merge { cause })?;
        marks.add(place, part.range());
        Ok(())
    }

    /// Memory that the kernel could unmerge only in part stays marked: the rest may still be
    /// merged.
    fn unmark(&self, part: Part<'_>, place: &RamRegion) -> Result<(), MemoryError> {
        let marks = self.marks();
        mapping::advise(part, Advice::Unmergeable).map_err(|cause| MemoryError::Merge { cause })?;
        marks.remove(place, part.range());
        Ok(())
    }

    fn marks(&self) -> MutexGuard<'_, BlockSet> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the kernel may merge pages of the block at `offset` of the region at `place`.
    pub(super) fn is_marked(&self, place: &RamRegion, offset: usize) -> bool {
        self.marks().has(place, offset)
    }

    /// Whether the kernel may merge pages of any block.
    pub(super) fn has_marks(&self) -> bool {
        self.marks().has_any()
    }

    /// Fills `buf` with the template's content from `offset` on, within one block. Returns false,
    /// and leaves `buf` alone, where the memory is not a template's.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(super) fn read_template(
        &self,
        region: &GuestRegionMmap<AtomicBitmap>,
        place: &RamRegion,
        offset: usize,
        buf: &mut [u8],
    ) -> std::io::Result<bool> {
        match (&self.kind, region.file_offset()) {
            (Kind::Template(replaced), Some(template)) if !replaced.blocks.has(place, offset) => {
                template.file().read_exact_at(buf, template.start() + offset as u64)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Whether pages may be marked for the kernel to merge.
    pub(super) fn is_merged(&self) -> bool {
        self.is_merged.load(Ordering::Acquire)
    }

    /// Whether the memory comes from a template.
    pub(super) fn is_template(&self) -> bool {
        matches!(self.kind, Kind::Template(_))
    }

    /// Returns the addresses in this process of those blocks of a part that are still the
    /// template's.
    pub(super) fn of_template(&self, part: Part<'_>, place: &RamRegion) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        if let Kind::Template(replaced) = &self.kind {
            part.blocks(BLOCK_BYTES)
                .filter(|block| !replaced.blocks.has(place, block.range().start))
                .for_each(|block| runs::add(&mut found, block.addresses()));
        }
        found
    }

    /// Makes `len` bytes of `region` from `offset` on, whole pages, read as zeros, and gives them
    /// back to the host if the backing allows it. Returns how many bytes the host got.
    ///
    /// # Errors
    /// The error from the system.
    pub(super) fn discard(
        &self,
        region: &GuestRegionMmap<AtomicBitmap>,
        place: &RamRegion,
        offset: usize,
        len: usize,
    ) -> std::io::Result<u64> {
        match &self.kind {
            Kind::Anonymous => {
                mapping::drop_pages(Part::new(region, offset, len)?)?;
                Ok(len as u64)
            }
            Kind::Pool => zero(region, offset, len).map(|()| 0),
            Kind::Template(replaced) if len as u64 == place.bytes => {
                self.replace(replaced, region, place, offset, len)?;
                Ok(len as u64)
            }
            Kind::Template(replaced) => self.discard_template(replaced, region, place, offset, len),
        }
    }

    /// Handles each block: drops pages of a block that is already anonymous, and replaces a whole
    /// block by anonymous memory. Of a partial block, or one that cannot be replaced, overwrites
    /// the pages that are not zero.
    fn discard_template(
        &self,
        replaced: &Replaced,
        region: &GuestRegionMmap<AtomicBitmap>,
        place: &RamRegion,
        offset: usize,
        len: usize,
    ) -> std::io::Result<u64> {
        let mut given = 0;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let next = end.min((at / BLOCK_BYTES + 1) * BLOCK_BYTES);
            let bytes = next - at;
            let is_whole = bytes == BLOCK_BYTES;
            if replaced.blocks.has(place, at) {
                mapping::drop_pages(Part::new(region, at, bytes)?)?;
                given += bytes;
            } else if is_whole
                && replaced.count.load(Ordering::Relaxed) < REPLACED_BLOCKS_MAX
                && self.replace(replaced, region, place, at, bytes).is_ok()
            {
                replaced.count.fetch_add(1, Ordering::Relaxed);
                given += bytes;
            } else {
                zero(region, at, bytes)?;
            }
            at = next;
        }
        Ok(given as u64)
    }

    /// Maps anonymous memory over whole blocks, or over a whole region.
    fn replace(
        &self,
        replaced: &Replaced,
        region: &GuestRegionMmap<AtomicBitmap>,
        place: &RamRegion,
        offset: usize,
        len: usize,
    ) -> std::io::Result<()> {
        let part = Part::new(region, offset, len)?;
        mapping::map_anonymous_over(part)?;
        replaced.blocks.add(place, part.range());
        // The guest has its memory; a wrong page size, policy or mark costs only speed or memory.
        if let Err(error) = self.prepare(part, false).and_then(|()| self.mark_again(part, place)) {
            tracing::warn!(%error, "a part of a guest's memory is not backed as it should be");
        }
        Ok(())
    }

    /// Marks the new mapping, which does not inherit the marks of the one it replaced.
    fn mark_again(&self, part: Part<'_>, place: &RamRegion) -> Result<(), MemoryError> {
        let marks = self.marks();
        part.blocks(BLOCK_BYTES)
            .filter(|block| marks.has(place, block.range().start))
            .try_for_each(|block| mapping::advise(block, Advice::Mergeable))
            .map_err(|cause| MemoryError::Merge { cause })
    }
}

/// Overwrites pages with zeros, except those that are zero already: writing them would take memory.
pub(super) fn zero(
    region: &GuestRegionMmap<AtomicBitmap>,
    offset: usize,
    len: usize,
) -> std::io::Result<()> {
    const ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];
    let mut page = [0; PAGE_BYTES];
    for at in (offset..offset + len).step_by(PAGE_BYTES) {
        let place = MemoryRegionAddress(at as u64);
        region.read_slice(&mut page, place).map_err(std::io::Error::other)?;
        if page != ZEROS {
            region.write_slice(&ZEROS, place).map_err(std::io::Error::other)?;
        }
    }
    Ok(())
}

/// Populates all of `regions`, on several threads.
///
/// # Errors
/// [`MemoryError::Populate`] if the host has too little memory.
pub(super) fn populate(regions: &[&GuestRegionMmap<AtomicBitmap>]) -> Result<(), MemoryError> {
    let parts: Vec<(usize, usize, usize)> = regions
        .iter()
        .enumerate()
        .flat_map(|(index, region)| {
            let len = region.len() as usize;
            let starts = (0..len).step_by(POPULATE_BYTES);
            starts.map(move |start| (index, start, POPULATE_BYTES.min(len - start)))
        })
        .collect();
    let next = AtomicUsize::new(0);
    let work = || -> std::io::Result<()> {
        while let Some((index, start, len)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            let part = Part::new(regions[*index], *start, *len)?;
            if let Err(error) = mapping::advise(part, Advice::Populate) {
                // Tell the other threads to stop.
                next.store(parts.len(), Ordering::Relaxed);
                return Err(error);
            }
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let results = std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads.min(POPULATE_THREADS_MAX).min(parts.len()))
            .filter_map(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
            .collect();
        let own = work();
        let mut results: Vec<_> =
            others.into_iter().filter_map(|other| other.join().ok()).collect();
        results.push(own);
        results
    });
    results
        .into_iter()
        .collect::<std::io::Result<()>>()
        .map_err(|cause| MemoryError::Populate { cause })
}

#[cfg(test)]
mod tests;
