//! What the kernel tells of the pages of a process: `PAGEMAP_SCAN` of `/proc/PID/pagemap` (Linux 6.7, `linux/fs.h`,
//! Documentation/admin-guide/mm/pagemap.rst), which libc lacks. The functions here are safe to call; each says why.

use std::fs::File;
use std::io::Result;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl_iowr_nr;

use crate::memory::PAGE_BYTES;

ioctl_iowr_nr!(PAGEMAP_SCAN, b'f' as u32, 16, ScanArgument);

/// `PAGE_IS_FILE`: of a file, or of shared memory.
pub(crate) const IS_FILE: u64 = 1 << 2;
/// `PAGE_IS_PRESENT`.
pub(crate) const IS_PRESENT: u64 = 1 << 3;
/// `PAGE_IS_PFNZERO`: the page of zeros that everybody has.
pub(crate) const IS_ZERO: u64 = 1 << 5;
/// `PAGE_IS_HUGE`: mapped as part of a huge page.
pub(crate) const IS_HUGE: u64 = 1 << 6;

/// Bit 63 of an entry: present.
const ENTRY_PRESENT: u64 = 1 << 63;
/// Bit 61: of a file, or of shared memory.
const ENTRY_FILE: u64 = 1 << 61;

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

/// `struct page_region`: pages next to each other that are alike.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Region {
    /// Address in the process.
    pub(crate) start: u64,
    /// Where it ends.
    pub(crate) end: u64,
    /// `IS_PRESENT`, and which of the others.
    pub(crate) categories: u64,
}

/// The pages of the process at `addresses`, whole pages, that are present, in order.
///
/// # Errors
/// `ENOTTY` of a kernel before 6.7; otherwise the kernel's answer.
pub(crate) fn scan(pagemap: &File, addresses: &Range<u64>) -> Result<Vec<Region>> {
    let mut found = Vec::new();
    // As many as 2 MiB can have at most.
    let mut regions = [Region::default(); 512];
    let mut start = addresses.start;
    while start < addresses.end {
        let mut argument = ScanArgument {
            size: size_of::<ScanArgument>() as u64,
            start,
            end: addresses.end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_mask: IS_PRESENT,
            return_mask: IS_PRESENT | IS_FILE | IS_ZERO | IS_HUGE,
            ..ScanArgument::default()
        };
        // SAFETY: the kernel reads and writes one `struct pm_scan_arg`, and writes at most `vec_len` of `struct page_region` at
        // `vec`, which is `regions`. Without flags it changes nothing of the pages.
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

/// The same from the plain file, which does not tell huge pages, nor the page of zeros from others.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn read(pagemap: &File, addresses: &Range<u64>) -> Result<Vec<Region>> {
    const PAGE: u64 = PAGE_BYTES as u64;
    let mut bytes = vec![0; (addresses.end - addresses.start) as usize / PAGE_BYTES * 8];
    pagemap.read_exact_at(&mut bytes, addresses.start / PAGE * 8)?;
    let entries = bytes.as_chunks::<8>().0.iter().map(|entry| u64::from_le_bytes(*entry));
    let mut found: Vec<Region> = Vec::new();
    for (start, entry) in (addresses.start..).step_by(PAGE_BYTES).zip(entries) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_what_seccomp_lets_through() {
        assert_eq!(PAGEMAP_SCAN(), crate::memory::PAGEMAP_SCAN_REQUEST);
    }
}
