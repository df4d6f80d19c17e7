//! System calls on guest memory: `madvise`, `mbind`, and mapping over an existing mapping.

use std::io::{Error, ErrorKind, Result};

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

use super::{MADV_COLLAPSE, PAGE_BYTES, check, host_address};

/// A part of a region that consists of whole pages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    region: &'a GuestRegionMmap<AtomicBitmap>,
    offset: usize,
    len: usize,
}

impl<'a> Part<'a> {
    /// Returns the `len` bytes of `region` from `offset` on.
    ///
    /// # Errors
    /// `EINVAL` unless both are multiples of the page size and lie in the region: the kernel would
    /// round a length up, beyond the requested part.
    pub(crate) fn new(
        region: &'a GuestRegionMmap<AtomicBitmap>,
        offset: usize,
        len: usize,
    ) -> Result<Self> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= region.len() as usize);
        if !inside || !offset.is_multiple_of(PAGE_BYTES) || !len.is_multiple_of(PAGE_BYTES) {
            return Err(Error::from_raw_os_error(libc::EINVAL));
        }
        Ok(Self { region, offset, len })
    }

    /// Returns all of `region`.
    pub(crate) fn whole(region: &'a GuestRegionMmap<AtomicBitmap>) -> Self {
        Self { region, offset: 0, len: region.len() as usize }
    }

    /// Splits the part where offsets in the region are multiples of `bytes`, which must be whole
    /// pages.
    pub(crate) fn blocks(self, bytes: usize) -> impl Iterator<Item = Self> {
        let end = self.offset + self.len;
        let mut at = self.offset;
        std::iter::from_fn(move || {
            let next = end.min((at / bytes + 1) * bytes);
            let block = Part { region: self.region, offset: at, len: next - at };
            at = next;
            (block.len > 0).then_some(block)
        })
    }

    /// The region that contains the part.
    pub(crate) fn region(&self) -> &'a GuestRegionMmap<AtomicBitmap> {
        self.region
    }

    /// Returns its first page, or an empty part if it is empty.
    pub(crate) fn first_page(self) -> Self {
        Part { len: self.len.min(PAGE_BYTES), ..self }
    }

    /// Returns its last page, or an empty part if it is empty.
    pub(crate) fn last_page(self) -> Self {
        let len = self.len.min(PAGE_BYTES);
        Part { offset: self.offset + self.len - len, len, ..self }
    }

    /// Returns its offsets in the region.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len
    }

    /// Returns its addresses in this process.
    pub(crate) fn addresses(&self) -> std::ops::Range<u64> {
        let start = self.start() as u64;
        start..start + self.len as u64
    }

    fn start(&self) -> *mut libc::c_void {
        host_address(self.region).wrapping_add(self.offset).cast()
    }
}

/// Advice to the kernel about a part. None of it changes what the guest reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Use transparent huge pages where possible.
    HugePages,
    /// Use small pages only.
    SmallPages,
    /// Equal pages may be merged.
    Mergeable,
    /// Merge no pages any more, and split merged ones, which takes memory.
    Unmergeable,
    /// Collapse the present pages into huge pages now (`MADV_COLLAPSE`, Linux 6.1).
    Collapse,
    /// Reclaim these pages before others (`MADV_COLD`, Linux 5.4). This splits a huge page of which
    /// they are only a part.
    Cold,
    /// Make every page present and writable (`MADV_POPULATE_WRITE`, Linux 5.14). Without memory
    /// this fails, where touching the page would kill the process.
    Populate,
}

/// Gives `advice` for a part.
///
/// # Errors
/// The error from the kernel.
pub(crate) fn advise(part: Part<'_>, advice: Advice) -> Result<()> {
    let advice = match advice {
        Advice::HugePages => libc::MADV_HUGEPAGE,
        Advice::SmallPages => libc::MADV_NOHUGEPAGE,
        Advice::Mergeable => libc::MADV_MERGEABLE,
        Advice::Unmergeable => libc::MADV_UNMERGEABLE,
        Advice::Collapse => MADV_COLLAPSE,
        Advice::Cold => libc::MADV_COLD,
        Advice::Populate => libc::MADV_POPULATE_WRITE,
    };
    loop {
        // SAFETY: none of this advice changes what is read, and the part lies within a mapping that
        // we own.
        let result = unsafe { libc::madvise(part.start(), part.len, advice) };
        match check(result) {
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted) => {}
            Err(error)
                if error.raw_os_error() == Some(libc::EAGAIN)
                    && advice == libc::MADV_POPULATE_WRITE => {}
            result => return result,
        }
    }
}

/// Drops the pages of a private part. Afterwards it reads as zeros if it is anonymous, and as the
/// file if its pages were copies of a file's.
///
/// # Errors
/// The error from the kernel.
pub(crate) fn drop_pages(part: Part<'_>) -> Result<()> {
    // SAFETY: the part lies within a mapping that we own. Guest memory is only ever accessed as
    // volatile, so its content may change at any time.
    check(unsafe { libc::madvise(part.start(), part.len, libc::MADV_DONTNEED) })
}

/// Replaces a part by anonymous private memory, whatever was mapped there; it reads as zeros.
///
/// # Errors
/// The error from the kernel: `ENOMEM` if the process has reached its limit of mappings.
pub(crate) fn map_anonymous_over(part: Part<'_>) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the part lies within a mapping that we own, and stays mapped with the same access
    // throughout; vm-memory finally unmaps the whole range, whatever it consists of. KVM follows
    // such changes (MMU notifiers), and guest memory is only ever accessed as volatile.
    let mapped = unsafe { libc::mmap(part.start(), part.len, access, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Sets the NUMA nodes, those whose bits are set in `nodes`, and the mode (`MPOL_*`) for pages of a
/// part that are allocated from now on.
///
/// # Errors
/// The error from the kernel.
pub(crate) fn bind(part: Part<'_>, mode: libc::c_int, nodes: u64) -> Result<()> {
    // The kernel reads one bit fewer than the given number (get_nodes of mm/mempolicy.c).
    let bits = libc::c_ulong::from(u64::BITS + 1);
    // SAFETY: mbind reads the 64 bits of `nodes`, and changes no content of the part, which lies
    // within a mapping that we own.
    let result = unsafe {
        libc::syscall(libc::SYS_mbind, part.start(), part.len, mode, &raw const nodes, bits, 0)
    };
    check(result)
}
