//! Safe wrappers of system calls that no library offers; each says why it is safe. All `unsafe` of
//! this crate is here, except for that of the embedded workload.
//!
//! This module depends on the kernel, on vm-memory, and on imago's buffers and storage trait: it
//! knows neither devices nor the layout of guest memory. Its errors are the kernel's.

pub(crate) mod dirty_ring;
pub(crate) mod file;
pub(crate) mod image_file;
pub(crate) mod kick;
pub(crate) mod kvm;
pub(crate) mod mapping;
pub(crate) mod net;
pub(crate) mod pagemap;
pub(crate) mod process;
pub(crate) mod sched;
pub(crate) mod sectors;
pub(crate) mod uring;
pub(crate) mod userfaultfd;
pub(crate) mod vfio;

use std::io;

use vm_memory::bitmap::{AtomicBitmap, RefSlice};
use vm_memory::volatile_memory::VolatileSlice;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MemoryRegionAddress, Permissions,
};

/// `MADV_COLLAPSE` of `asm-generic/mman-common.h`, which the libc crate lacks for musl.
const MADV_COLLAPSE: libc::c_int = 25;

/// Size of a page in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Guest memory in the form that rust-vmm crates use; it records what is written through it.
pub(crate) type RamMap = GuestMemoryMmap<AtomicBitmap>;
/// A piece of guest memory that records writes.
pub(crate) type RamSlice<'a> = VolatileSlice<'a, RefSlice<'a, AtomicBitmap>>;

/// A range of guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Buffer {
    /// Guest-physical address of the first byte.
    pub(crate) gpa: u64,
    /// Length in bytes, not 0.
    pub(crate) len: u32,
}

/// Returns the memory of `buffers`, for I/O without a copy. A buffer that spans two regions gives
/// two slices.
///
/// # Errors
/// If a buffer does not lie in RAM.
pub(crate) fn slices<'a>(
    buffers: &[Buffer],
    memory: &'a RamMap,
) -> Result<Vec<RamSlice<'a>>, GuestMemoryError> {
    let mut slices = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        let (gpa, len) = (GuestAddress(buffer.gpa), buffer.len as usize);
        for slice in GuestMemory::get_slices(memory, gpa, len, Permissions::ReadWrite)? {
            slices.push(slice?);
        }
    }
    Ok(slices)
}

/// Returns the address of `region` in this process.
pub(crate) fn host_address(region: &GuestRegionMmap<AtomicBitmap>) -> *mut u8 {
    region.get_host_address(MemoryRegionAddress(0)).unwrap_or(std::ptr::null_mut())
}

/// Converts the result of a call that returns a negative number on failure.
fn check(result: impl Into<libc::c_long>) -> io::Result<()> {
    if result.into() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
