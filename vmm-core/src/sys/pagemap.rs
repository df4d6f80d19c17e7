//! What the kernel reports about a process's pages: `PAGEMAP_SCAN` of `/proc/PID/pagemap` (Linux
//! 6.7, `linux/fs.h`, Documentation/admin-guide/mm/pagemap.rst), which libc lacks.

use std::fs::File;
use std::io::Result;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use super::PAGE_BYTES;

/// The `ioctl` request that [`PageMap`](crate::memory::PageMap) uses to scan (`PAGEMAP_SCAN` of
/// `linux/fs.h`), for the seccomp filter of the process.
pub const PAGEMAP_SCAN_REQUEST: u64 = 0xc060_6610;

ioctl_iowr_nr!(PAGEMAP_SCAN, b'f' as u32, 16, ScanArgument);

/// `PAGE_IS_WPALLOWED`: the memory can be write-protected asynchronously, see
/// [`super::userfaultfd`].
const IS_PROTECTABLE: u64 = 1 << 0;
/// `PAGE_IS_WRITTEN`: not write-protected, or no longer.
const IS_WRITTEN: u64 = 1 << 1;
/// `PAGE_IS_FILE`: backed by a file or shared memory.
pub(crate) const IS_FILE: u64 = 1 << 2;
/// `PAGE_IS_PRESENT`: in memory, not swapped out.
pub(crate) const IS_PRESENT: u64 = 1 << 3;
/// `PAGE_IS_PFNZERO`: the shared zero page.
pub(crate) const IS_ZERO: u64 = 1 << 5;
/// `PAGE_IS_HUGE`: mapped as part of a huge page.
pub(crate) const IS_HUGE: u64 = 1 << 6;

/// `PM_SCAN_WP_MATCHING`: write-protect the pages found.
const PROTECT: u64 = 1 << 0;
/// `PM_SCAN_CHECK_WPASYNC`: fail if they cannot be write-protected.
const OR_FAIL: u64 = 1 << 1;

/// Bit 63 of an entry: the page is present.
const ENTRY_PRESENT: u64 = 1 << 63;
/// Bit 61 of an entry: backed by a file or shared memory.
const ENTRY_FILE: u64 = 1 << 61;
/// Bits 0 to 54 of an entry: the host's page frame number, or 0 without `CAP_SYS_ADMIN`.
const ENTRY_FRAME: u64 = (1 << 55) - 1;

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// What a scan looks for, and what it does with the pages it finds.
#[derive(Debug, Clone, Copy, Default)]
struct Search {
    /// Categories that pages must have.
    are: u64,
    /// Categories that pages must not have.
    are_not: u64,
    /// Categories to report.
    reported: u64,
    /// `PROTECT` and `OR_FAIL`, or 0.
    flags: u64,
}

/// `struct page_region`: a run of pages with equal categories.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Region {
    /// Address of the first page in the process.
    pub(crate) start: u64,
    /// Address after the last page.
    pub(crate) end: u64,
    /// Categories of the pages, among those that were to be reported.
    pub(crate) categories: u64,
}

/// Returns the present pages of the process at `addresses`, whole pages, in order.
///
/// # Errors
/// `ENOTTY` from a kernel before 6.7; otherwise the error from the kernel.
pub(crate) fn scan(pagemap: &File, addresses: &Range<u64>) -> Result<Vec<Region>> {
    let reported = IS_PRESENT | IS_FILE | IS_ZERO | IS_HUGE;
    search(pagemap, addresses, Search { are: IS_PRESENT, reported, ..Search::default() })
}

/// Write-protects the pages at `addresses` that are present and the process's own, and returns them
/// in order. From now on, any write to a page marks it as written.
///
/// # Errors
/// `EPERM` if the memory is not registered with a userfaultfd for this; otherwise the error from
/// the kernel.
pub(crate) fn protect(pagemap: &File, addresses: &Range<u64>) -> Result<Vec<Region>> {
    let (are, are_not, flags) = (IS_PRESENT, IS_FILE | IS_ZERO, PROTECT | OR_FAIL);
    search(pagemap, addresses, Search { are, are_not, reported: IS_PRESENT, flags })
}

/// Returns the pages that [`protect`] found and that have not been written since: only pages that
/// are certainly protected, present and the process's own.
///
/// # Errors
/// The error from the kernel.
pub(crate) fn protected(pagemap: &File, addresses: &Range<u64>) -> Result<Vec<Region>> {
    let (are, are_not) = (IS_PRESENT | IS_PROTECTABLE, IS_WRITTEN | IS_FILE | IS_ZERO);
    search(pagemap, addresses, Search { are, are_not, reported: IS_PRESENT, flags: 0 })
}

fn search(pagemap: &File, addresses: &Range<u64>, search: Search) -> Result<Vec<Region>> {
    let mut found = Vec::new();
    // As many regions as 2 MiB can have at most.
    let mut regions = [Region::default(); 512];
    let mut start = addresses.start;
    while start < addresses.end {
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            start,
            end: addresses.end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            flags: search.flags,
            category_inverted: search.are_not,
            category_mask: search.are | search.are_not,
            return_mask: search.reported,
            ..ScanArgument::default()
        };
        // SAFETY: the kernel reads and writes one `struct pm_scan_arg`, and writes at most
        // `vec_len` of `struct page_region` at `vec`, which is `regions`. Pages keep their content,
        // and writes to protected pages are not prevented.
        let count = unsafe { ioctl_with_mut_ref(pagemap, PAGEMAP_SCAN(), &mut argument) };
        let Ok(count) = usize::try_from(count) else { return Err(std::io::Error::last_os_error()) };
        found.extend(regions.iter().take(count));
        if argument.walk_end <= start {
            break;
        }
        start = argument.walk_end;
    }
    Ok(found)
}

/// As `scan`, by reading the file, whose entries identify neither huge pages nor the zero page.
///
/// # Errors
/// The error from the kernel.
pub(crate) fn read(pagemap: &File, addresses: &Range<u64>) -> Result<Vec<Region>> {
    const PAGE: u64 = PAGE_BYTES as u64;
    let mut found: Vec<Region> = Vec::new();
    for (start, entry) in (addresses.start..).step_by(PAGE_BYTES).zip(entries(pagemap, addresses)?)
    {
        if entry & ENTRY_PRESENT == 0 {
            continue;
        }
        let categories = IS_PRESENT | if entry & ENTRY_FILE == 0 { 0 } else { IS_FILE };
        match found.last_mut() {
            Some(last) if last.end == start && last.categories == categories => last.end += PAGE,
            _ => found.push(Region { start, end: start + PAGE, categories }),
        }
    }
    Ok(found)
}

/// Returns the host's frame for each page of `addresses`; `None` where no page is present, or if
/// this process may not see frame numbers (`CAP_SYS_ADMIN`).
///
/// # Errors
/// The error from the kernel.
pub(crate) fn frames(pagemap: &File, addresses: &Range<u64>) -> Result<Vec<Option<NonZeroU64>>> {
    let frame = |entry: u64| {
        NonZeroU64::new(if entry & ENTRY_PRESENT == 0 { 0 } else { entry & ENTRY_FRAME })
    };
    Ok(entries(pagemap, addresses)?.into_iter().map(frame).collect())
}

fn entries(pagemap: &File, addresses: &Range<u64>) -> Result<Vec<u64>> {
    let mut bytes = vec![0; (addresses.end - addresses.start) as usize / PAGE_BYTES * 8];
    pagemap.read_exact_at(&mut bytes, addresses.start / PAGE_BYTES as u64 * 8)?;
    Ok(bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_what_seccomp_lets_through() {
        assert_eq!(PAGEMAP_SCAN(), PAGEMAP_SCAN_REQUEST);
    }
}
