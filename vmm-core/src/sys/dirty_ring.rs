//! KVM's dirty rings as mapped memory, and the ioctl that goes with them (`KVM_CAP_DIRTY_LOG_RING`
//! in Documentation/virt/kvm/api.rst).

use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, KVMIO, kvm_dirty_gfn};
use kvm_ioctls::{Error, VcpuFd, VmFd};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow};
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl_io_nr;

use super::PAGE_BYTES;

ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

/// An entry that holds a page (`KVM_DIRTY_GFN_F_DIRTY` of `linux/kvm.h`).
const FLAG_DIRTY: u32 = 1;
/// An entry that has been read (`KVM_DIRTY_GFN_F_RESET`).
const FLAG_RESET: u32 = 2;

/// Bytes of an entry.
pub(crate) const ENTRY_BYTES: usize = size_of::<kvm_dirty_gfn>();

/// The ring of a vCPU: pages that it has written, in order. KVM adds to it, this takes from it.
#[derive(Debug)]
pub(crate) struct DirtyRing {
    entries: *mut kvm_dirty_gfn,
    /// A power of two.
    count: usize,
    /// The entry to look at next.
    next: usize,
}

// SAFETY: the mapping belongs to this value alone, and may be used from any thread; it is only
// reached through `&mut self`.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of `vcpu`, which has `count` entries, as was said when the capability was
    /// enabled.
    ///
    /// # Errors
    /// The system's answer.
    pub(crate) fn map(vcpu: &VcpuFd, count: usize) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_BYTES as i64;
        let (len, fd) = (count * ENTRY_BYTES, vcpu.as_raw_fd());
        // SAFETY: a new mapping at an address of the kernel's choice; it keeps the vCPU's file
        // open.
        let mapped =
            unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, fd, offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { entries: mapped.cast(), count, next: 0 })
    }

    /// Takes everything that is in the ring: slot and page number within it. KVM watches these
    /// pages again, and has room for others, after [`reset_dirty_rings`]. Returns how many there
    /// were.
    pub(crate) fn harvest(&mut self, mut take: impl FnMut(u32, u64)) -> usize {
        for taken in 0..self.count {
            let entry = self.entries.wrapping_add(self.next & (self.count - 1));
            // SAFETY: the entry lies within the mapping; the kernel changes its flags at the same
            // time, which is what atomics are for.
            let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
            if flags.load(Ordering::Acquire) & FLAG_DIRTY == 0 {
                return taken;
            }
            // SAFETY: as above; the kernel leaves an entry alone that is dirty until it is reset.
            let (slot, offset) = unsafe {
                let (slot, offset) = (&raw const (*entry).slot, &raw const (*entry).offset);
                (slot.read_volatile(), offset.read_volatile())
            };
            take(slot, offset);
            flags.store(FLAG_RESET, Ordering::Release);
            self.next = self.next.wrapping_add(1);
        }
        self.count
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `map` with this length, and nothing refers to it any
        // more.
        unsafe { libc::munmap(self.entries.cast(), self.count * ENTRY_BYTES) };
    }
}

/// Has KVM watch the pages again that have been taken from any ring of `vm`, and returns how many
/// entries that were.
///
/// Signals wait meanwhile: Linux 6.18 stops when one comes, and up to 64 pages in a row that it had
/// taken note of were then not watched again, so that what the guest wrote to them was lost.
///
/// # Errors
/// The kernel's answer.
pub(crate) fn reset_dirty_rings(vm: &VmFd) -> Result<usize, Error> {
    let of_system = |error: Errno| Error::new(error as i32);
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(of_system)?;
    // SAFETY: the ioctl has no argument; what it reads of the rings, the kernel checks.
    let result = unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) };
    let reset = usize::try_from(result).map_err(|_| Error::last());
    mask.thread_set_mask().map_err(of_system)?;
    reset
}
