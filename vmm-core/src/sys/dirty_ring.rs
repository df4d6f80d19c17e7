//! KVM's dirty rings as mapped memory, and the ioctl that resets them (`KVM_CAP_DIRTY_LOG_RING` in
//! Documentation/virt/kvm/api.rst).

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

/// KVM has filled in the entry (`KVM_DIRTY_GFN_F_DIRTY` of `linux/kvm.h`).
const FLAG_DIRTY: u32 = 1;
/// The VMM has read the entry (`KVM_DIRTY_GFN_F_RESET`).
const FLAG_RESET: u32 = 2;

/// Bytes of an entry.
pub(crate) const ENTRY_BYTES: usize = size_of::<kvm_dirty_gfn>();

/// The ring of a vCPU: pages that it has written, in order. KVM adds entries, this type takes them.
#[derive(Debug)]
pub(crate) struct DirtyRing {
    entries: *mut kvm_dirty_gfn,
    /// Number of entries, a power of two.
    count: usize,
    /// Index of the next entry to read; it wraps.
    next: usize,
}

// SAFETY: the mapping belongs to this value alone and is accessed only through `&mut self`; it may
// be used from any thread.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of `vcpu`, whose `count` entries were set when the capability was enabled.
    ///
    /// # Errors
    /// The error from the system.
    pub(crate) fn map(vcpu: &VcpuFd, count: usize) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let offset = i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * PAGE_BYTES as i64;
        let (len, fd) = (count * ENTRY_BYTES, vcpu.as_raw_fd());
        // SAFETY: this creates a mapping at an address of the kernel's choice; the mapping keeps
        // the vCPU's file open.
        let mapped =
            unsafe { libc::mmap(ptr::null_mut(), len, access, libc::MAP_SHARED, fd, offset) };
        if mapped == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { entries: mapped.cast(), count, next: 0 })
    }

    /// Takes all entries of the ring: memory slot and page number within it. KVM logs these pages
    /// again, and has room for others, after [`reset_dirty_rings`]. Returns the number of entries.
    pub(crate) fn harvest(&mut self, mut take: impl FnMut(u32, u64)) -> usize {
        for taken in 0..self.count {
            let entry = self.entries.wrapping_add(self.next & (self.count - 1));
            // SAFETY: the entry lies within the mapping; the kernel changes its flags concurrently,
            // hence the atomic access.
            let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
            if flags.load(Ordering::Acquire) & FLAG_DIRTY == 0 {
                return taken;
            }
            // SAFETY: as above; the kernel does not change a dirty entry until it is reset.
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
        // SAFETY: `map` created the mapping with this length, and nothing refers to it any more.
        unsafe { libc::munmap(self.entries.cast(), self.count * ENTRY_BYTES) };
    }
}

/// Has KVM log writes again to the pages taken from any ring of `vm`, and returns the number of
/// entries.
///
/// Signals are blocked during the call: Linux 6.18 stops when one arrives, and would then not log
/// writes to up to 64 consecutive pages that it had already counted, so that those writes would be
/// lost.
///
/// # Errors
/// The error from the kernel.
pub(crate) fn reset_dirty_rings(vm: &VmFd) -> Result<usize, Error> {
    let of_system = |error: Errno| Error::new(error as i32);
    let mask = SigSet::all().thread_swap_mask(SigmaskHow::SIG_SETMASK).map_err(of_system)?;
    // SAFETY: the ioctl takes no argument; the kernel validates what it reads from the rings.
    let result = unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) };
    let reset = usize::try_from(result).map_err(|_| Error::last());
    mask.thread_set_mask().map_err(of_system)?;
    reset
}
