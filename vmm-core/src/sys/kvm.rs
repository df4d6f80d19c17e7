//! Ioctls that kvm-ioctls lacks, exposes only as unsafe, or supports only in part.

use std::fs::File;
use std::os::fd::FromRawFd;

use kvm_bindings::{
    KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_clear_dirty_log, kvm_device_attr,
    kvm_dirty_log, kvm_userspace_memory_region, kvm_xsave,
};
use kvm_ioctls::{Error, Kvm, VcpuFd, VmFd};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{GuestMemoryRegion, GuestRegionMmap};
use vmm_sys_util::ioctl::{
    ioctl, ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref,
};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr, ioctl_iowr_nr};

use super::host_address;

ioctl_iow_nr!(KVM_GET_DIRTY_LOG, KVMIO, 0x42, kvm_dirty_log);
ioctl_iowr_nr!(KVM_CLEAR_DIRTY_LOG, KVMIO, 0xc0, kvm_clear_dirty_log);
ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xa4, kvm_xsave);
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xa5, kvm_xsave);
ioctl_io_nr!(KVM_GET_STATS_FD, KVMIO, 0xce);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xcf, kvm_xsave);
#[cfg(test)]
ioctl_iowr_nr!(KVM_GET_REG_LIST, KVMIO, 0xb0, u64);
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// Flag of an emulation failure: the instruction's bytes are present (`linux/kvm.h`).
const EMULATION_FLAG_INSTRUCTION_BYTES: u64 = 1;
/// `KVM_INTERNAL_ERROR_EMULATION` of `linux/kvm.h`.
const INTERNAL_ERROR_EMULATION: u32 = 1;

/// Bytes of the oldest XSAVE area, `struct kvm_xsave` without its flexible tail.
pub(crate) const XSAVE_BYTES_MIN: usize = 4096;

/// Creates an empty VM. The kernel starts a thread for it, and fails if a signal arrives meanwhile;
/// this retries then, as QEMU does.
pub(crate) fn create_vm(kvm: &Kvm) -> Result<VmFd, Error> {
    loop {
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR => {}
            created => return created,
        }
    }
}

/// Registers `region` as KVM memory slot `slot`, or changes the slot's `flags`.
///
/// The region must outlive the VM: `vcpu::Machine`, which owns both, drops the VM first.
pub(crate) fn set_memory_region(
    vm: &VmFd,
    slot: u32,
    flags: u32,
    region: &GuestRegionMmap<AtomicBitmap>,
) -> Result<(), Error> {
    let userspace = kvm_userspace_memory_region {
        slot,
        flags,
        guest_phys_addr: region.start_addr().0,
        memory_size: region.len(),
        userspace_addr: host_address(region) as u64,
    };
    // SAFETY: the range is one whole mapping made by vm-memory, so it belongs to the guest alone,
    // and its owner keeps it mapped as long as the VM's file descriptor is open.
    unsafe { vm.set_user_memory_region(userspace) }
}

/// Reads the dirty log of `slot` into `words`, which must have one bit for each page of the slot.
///
/// # Errors
/// `EINVAL` if `words` is not `slot_pages / 64` long; otherwise the error from the kernel.
pub(crate) fn get_dirty_log(
    vm: &VmFd,
    slot: u32,
    slot_pages: usize,
    words: &mut [u64],
) -> Result<(), Error> {
    if words.len() * 64 != slot_pages {
        return Err(Error::new(libc::EINVAL));
    }
    let mut log = kvm_dirty_log { slot, ..Default::default() };
    log.__bindgen_anon_1.dirty_bitmap = words.as_mut_ptr().cast();
    // SAFETY: the kernel writes one bit for each page of the slot, rounded up to words: exactly the
    // bytes of `words`, whose length was checked above.
    check(unsafe { ioctl_with_ref(vm, KVM_GET_DIRTY_LOG(), &log) })
}

/// Clears and write-protects again the pages of `slot` whose bits are set in `words`; bit 0 of the
/// first word is page `first_page`, a multiple of 64.
pub(crate) fn clear_dirty_log(
    vm: &VmFd,
    slot: u32,
    first_page: u64,
    words: &[u64],
) -> Result<(), Error> {
    let pages = u32::try_from(words.len() * 64).map_err(|_| Error::new(libc::EINVAL))?;
    let mut clear =
        kvm_clear_dirty_log { slot, num_pages: pages, first_page, ..Default::default() };
    clear.__bindgen_anon_1.dirty_bitmap = words.as_ptr().cast_mut().cast();
    // SAFETY: the kernel reads `num_pages` bits, which is the length of `words`, and checks the
    // page numbers against the slot itself.
    check(unsafe { ioctl_with_mut_ref(vm, KVM_CLEAR_DIRTY_LOG(), &mut clear) })
}

/// Reads a vCPU's XSAVE area of `bytes` (the value of `KVM_CAP_XSAVE2`, or [`XSAVE_BYTES_MIN`]).
pub(crate) fn get_xsave(vcpu: &VcpuFd, bytes: usize) -> Result<Vec<u8>, Error> {
    let request = if bytes > XSAVE_BYTES_MIN { KVM_GET_XSAVE2() } else { KVM_GET_XSAVE() };
    let mut area = vec![0u8; bytes.max(XSAVE_BYTES_MIN)];
    // SAFETY: KVM_GET_XSAVE writes 4096 bytes and KVM_GET_XSAVE2 as many as the capability says;
    // `area` is at least that long. The kernel copies bytewise, so alignment does not matter.
    check(unsafe { ioctl_with_mut_ptr(vcpu, request, area.as_mut_ptr()) })?;
    Ok(area)
}

/// Loads a vCPU's XSAVE area. `bytes` is the length that this host's KVM reads: the value of
/// `KVM_CAP_XSAVE2`, or [`XSAVE_BYTES_MIN`]. A shorter `area` is padded with zeros, which mean
/// initial state.
///
/// # Errors
/// `E2BIG` if `area` is longer than this host can load; otherwise the error from the kernel.
pub(crate) fn set_xsave(vcpu: &VcpuFd, area: &[u8], bytes: usize) -> Result<(), Error> {
    let bytes = bytes.max(XSAVE_BYTES_MIN);
    if area.len() > bytes {
        return Err(Error::new(libc::E2BIG));
    }
    let mut padded = area.to_vec();
    padded.resize(bytes, 0);
    // SAFETY: the kernel reads as many bytes as KVM_CAP_XSAVE2 says (at least 4096), which is the
    // length of `padded`, and checks their content.
    check(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), padded.as_ptr()) })
}

/// Opens the statistics of `vcpu`, a file that can be read at any time: a `kvm_stats_header`, then
/// descriptors and data. Close it before the VM: it may keep the VM alive.
///
/// # Errors
/// `EINVAL` before Linux 5.14; otherwise the error from the kernel.
pub(crate) fn statistics(vcpu: &VcpuFd) -> Result<File, Error> {
    // SAFETY: the ioctl takes no argument and creates a descriptor.
    let descriptor = unsafe { ioctl(vcpu, KVM_GET_STATS_FD()) };
    check(descriptor)?;
    // SAFETY: the kernel has just created the descriptor, so nothing else owns it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// Reads the host's TSC, in ticks.
pub(crate) fn host_tsc() -> u64 {
    // SAFETY: the instruction reads a register, and every x86-64 processor has it.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// Returns the offset of the guest's TSC from the host's, in ticks (wrapping). Fails if this KVM
/// does not report it (`KVM_VCPU_TSC_OFFSET`, Documentation/virt/kvm/devices/vcpu.rst).
pub(crate) fn tsc_offset(vcpu: &VcpuFd) -> Result<u64, Error> {
    let mut offset = 0u64;
    let attr = kvm_device_attr { addr: (&raw mut offset) as u64, ..tsc_offset_attr() };
    // SAFETY: the kernel writes one u64 to `addr`, which points to `offset`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_GET_DEVICE_ATTR(), &attr) })?;
    Ok(offset)
}

/// Sets the offset that [`tsc_offset`] reads.
pub(crate) fn set_tsc_offset(vcpu: &VcpuFd, offset: u64) -> Result<(), Error> {
    let attr = kvm_device_attr { addr: (&raw const offset) as u64, ..tsc_offset_attr() };
    // SAFETY: the kernel reads one u64 from `addr`, which points to `offset`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_DEVICE_ATTR(), &attr) })
}

fn tsc_offset_attr() -> kvm_device_attr {
    kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        ..Default::default()
    }
}

/// Returns the suberror after an exit with `KVM_EXIT_INTERNAL_ERROR`, and the bytes of the
/// instruction that could not be emulated, if KVM reports them.
pub(crate) fn internal_error(vcpu: &mut VcpuFd) -> (u32, Vec<u8>) {
    let run = vcpu.get_kvm_run();
    // SAFETY: any bytes are a valid value of these plain integers; the exit reason says which view
    // of the union KVM filled in, and `suberror` is the first field of both.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    let has_bytes = failure.suberror == INTERNAL_ERROR_EMULATION
        && failure.flags & EMULATION_FLAG_INSTRUCTION_BYTES != 0;
    if !has_bytes {
        return (failure.suberror, Vec::new());
    }
    // SAFETY: the flag says that KVM filled in this struct, and it is plain integers.
    let (size, bytes) = unsafe {
        let instruction = failure.__bindgen_anon_1.__bindgen_anon_1;
        (instruction.insn_size, instruction.insn_bytes)
    };
    (failure.suberror, bytes.iter().copied().take(usize::from(size)).collect())
}

/// Returns the number of registers that `KVM_GET_REG_LIST` lists for `vcpu`. Since Linux 6.18 these
/// are registers that no other structure holds and that are not MSRs, such as the shadow stack
/// pointer; earlier kernels have no such list.
#[cfg(test)]
pub(crate) fn listed_registers(vcpu: &VcpuFd) -> Result<u64, Error> {
    let mut count = 0_u64;
    // SAFETY: a `kvm_reg_list` with room for no register consists of its length alone, and the
    // kernel writes no more.
    match check(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_REG_LIST(), &mut count) }) {
        Err(error) if [libc::EINVAL, libc::ENOTTY].contains(&error.errno()) => Ok(0),
        Err(error) if error.errno() != libc::E2BIG => Err(error),
        _ => Ok(count),
    }
}

fn check(result: i32) -> Result<(), Error> {
    if result < 0 { Err(Error::last()) } else { Ok(()) }
}
