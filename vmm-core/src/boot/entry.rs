//! The registers with which vCPU 0 enters what the guest boots. The other vCPUs wait until it
//! starts them.

use kvm_bindings::{kvm_regs, kvm_sregs};

use super::BootError;
use super::layout::{BOOT_STACK, PVH_START_INFO, ZERO_PAGE};
use super::tables::{
    Privilege, Xsave, enter_long_mode, enter_protected_mode, write_descriptors, write_identity_map,
};
use crate::Vm;
use crate::error::{KvmContext, Result};

/// Address space mapped for the 64-bit entry: kernel, command line and initrd lie in it.
const MAPPED_BYTES: u64 = 4 << 30;
/// RFLAGS with only the bit set that is always 1.
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Starts at the PVH entry `at`, in 32-bit protected mode with interrupts off.
pub(crate) fn in_protected_mode(vm: &Vm, at: u64) -> Result<()> {
    let regs =
        kvm_regs { rip: at, rbx: PVH_START_INFO, rflags: RFLAGS_RESERVED, ..Default::default() };
    start(vm, regs, enter_protected_mode)
}

/// Starts at the 64-bit entry `at` of a Linux kernel.
pub(super) fn in_long_mode(vm: &Vm, at: u64) -> Result<()> {
    let cr3 =
        write_identity_map(vm.ram(), MAPPED_BYTES, Privilege::Kernel).map_err(BootError::Memory)?;
    let regs = kvm_regs {
        rip: at,
        rsi: ZERO_PAGE,
        rsp: BOOT_STACK,
        rflags: RFLAGS_RESERVED,
        ..Default::default()
    };
    start(vm, regs, move |sregs| enter_long_mode(sregs, cr3, Privilege::Kernel, Xsave::Absent))
}

/// Sets the registers of vCPU 0.
fn start(
    vm: &Vm,
    regs: kvm_regs,
    enter: impl FnOnce(&mut kvm_sregs) + Send + 'static,
) -> Result<()> {
    let sregs = vm.on_vcpu(0, move |vcpu| {
        let fd = vcpu.fd();
        let mut sregs = fd.get_sregs().vcpu_call(0, "KVM_GET_SREGS")?;
        enter(&mut sregs);
        fd.set_sregs(&sregs).vcpu_call(0, "KVM_SET_SREGS")?;
        fd.set_regs(&regs).vcpu_call(0, "KVM_SET_REGS")?;
        Ok::<_, crate::Error>(sregs)
    })?;
    Ok(write_descriptors(vm.ram(), &sregs?).map_err(BootError::Memory)?)
}
