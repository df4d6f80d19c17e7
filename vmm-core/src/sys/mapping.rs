//! What the kernel is asked to do with guest memory: `madvise`, `mbind`, and a mapping over a
//! mapping.

use std::io::{Error, ErrorKind, Result};

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

use super::{PAGE_BYTES, check, host_address};

/// A part of a region: whole pages within it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part<'a> {
    region: &'a GuestRegionMmap<AtomicBitmap>,
    offset: usize,
    len: usize,
}

impl<'a> Part<'a> {
    /// `len` bytes of `region` from `offset` on.
    ///
    /// # Errors
    /// `EINVAL` unless both are whole pages and lie in the region: the kernel would round a length
    /// up, beyond what was asked for.
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

    /// All of `region`.
    pub(crate) fn whole(region: &'a GuestRegionMmap<AtomicBitmap>) -> Self {
        Self { region, offset: 0, len: region.len() as usize }
    }

    /// The same in parts that end where the guest's physical addresses are multiples of `bytes`,
    /// whole pages.
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

    /// The region that it is a part of.
    pub(crate) fn region(&self) -> &'a GuestRegionMmap<AtomicBitmap> {
        self.region
    }

    /// Its first page; nothing where it is nothing.
    pub(crate) fn first_page(self) -> Self {
        Part { len: self.len.min(PAGE_BYTES), ..self }
    }

    /// Its last page; nothing where it is nothing.
    pub(crate) fn last_page(self) -> Self {
        let len = self.len.min(PAGE_BYTES);
        Part { offset: self.offset + self.len - len, len, ..self }
    }

    /// Where it lies in its region.
    pub(crate) fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.len
    }

    /// Where it lies in this process.
    pub(crate) fn addresses(&self) -> std::ops::Range<u64> {
        let start = self.start() as u64;
        start..start + self.len as u64
    }

    fn start(&self) -> *mut libc::c_void {
        host_address(self.region).wrapping_add(self.offset).cast()
    }
}

/// What is asked of the kernel for a part. None of it changes what the guest reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advice {
    /// Transparent huge pages where there are some.
    HugePages,
    /// Small pages only.
    SmallPages,
    /// Pages that are equal may be merged.
    Mergeable,
    /// None is merged any more: those that are become the guest's own again, which takes memory.
    Unmergeable,
    /// What is there now becomes huge pages, at once (`MADV_COLLAPSE`, Linux 6.1).
    Collapse,
    /// What is there is needed less than the rest (`MADV_COLD`, Linux 5.4). A huge page of which it
    /// is a part becomes small ones.
    Cold,
    /// Have every page ready to be written (`MADV_POPULATE_WRITE`, Linux 5.14). An error, where
    /// touching the page would end the process.
    Populate,
}

/// Asks for `advice`.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn advise(part: Part<'_>, advice: Advice) -> Result<()> {
    let advice = match advice {
        Advice::HugePages => libc::MADV_HUGEPAGE,
        Advice::SmallPages => libc::MADV_NOHUGEPAGE,
        Advice::Mergeable => libc::MADV_MERGEABLE,
        Advice::Unmergeable => libc::MADV_UNMERGEABLE,
        Advice::Collapse => libc::MADV_COLLAPSE,
        Advice::Cold => libc::MADV_COLD,
        Advice::Populate => libc::MADV_POPULATE_WRITE,
    };
    loop {
        // SAFETY: none of these changes what is read, and the part lies within a mapping that we
        // own.
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

/// Gives the pages of a private part back to the host. Afterwards it reads as zeros where it is
/// anonymous, and as the file where its pages are copies of a file's.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn drop_pages(part: Part<'_>) -> Result<()> {
    // SAFETY: the part lies within a mapping that we own. Guest memory is only ever accessed as
    // volatile, so nobody minds that its content changes.
    check(unsafe { libc::madvise(part.start(), part.len, libc::MADV_DONTNEED) })
}

/// Puts anonymous, private memory in the place of a part, whatever was mapped there; it reads as
/// zeros.
///
/// # Errors
/// The kernel's answer: `ENOMEM` when the process has as many mappings as it may have.
pub(crate) fn map_anonymous_over(part: Part<'_>) -> Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the part lies within a mapping that we own, and stays mapped with the same access at
    // every moment; vm-memory unmaps the whole range in the end, whatever it consists of. KVM
    // follows such changes (MMU notifiers), and guest memory is only ever accessed as volatile.
    let mapped = unsafe { libc::mmap(part.start(), part.len, access, flags, -1, 0) };
    if mapped == libc::MAP_FAILED { Err(Error::last_os_error()) } else { Ok(()) }
}

/// Takes the pages of a part, those that are touched from now on, from the NUMA nodes whose bits
/// are set in `nodes`, as `mode` says (`MPOL_*`).
///
/// # Errors
/// The kernel's answer.
pub(crate) fn bind(part: Part<'_>, mode: libc::c_int, nodes: u64) -> Result<()> {
    // The kernel reads one bit less than it is told (get_nodes of mm/mempolicy.c).
    let bits = libc::c_ulong::from(u64::BITS + 1);
    // SAFETY: mbind reads the 64 bits of `nodes`, and changes no content of the part, which lies
    // within a mapping that we own.
    let result = unsafe {
        libc::syscall(libc::SYS_mbind, part.start(), part.len, mode, &raw const nodes, bits, 0)
    };
    check(result)
}
