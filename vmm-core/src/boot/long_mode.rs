//! Starts a freestanding program in 64-bit user mode on all vCPUs at once.
//!
//! Each vCPU begins at CPL 3 with flat segments, I/O privilege level 3 (so that port instructions
//! work), interrupts off, SSE on, XSAVE on with every vector state of the processor, and all of RAM
//! mapped one to one, writable and executable, by 2 MiB pages. There is no interrupt table: a fault
//! becomes a triple fault and ends the guest.

use super::BootError;
use super::layout::{LOW_MEMORY_END, PAGE_TABLES};
use super::tables::{
    Privilege, Xsave, enter_long_mode, identity_map_bytes, write_descriptors, write_identity_map,
};
use crate::Vm;
use crate::error::{KvmContext, Result};
use crate::vcpu::Vcpu;

/// Lowest address that programs may use; page and descriptor tables lie below it.
pub const PROGRAM_START: u64 = LOW_MEMORY_END;
/// Largest memory that can be mapped for a program, in bytes.
pub const USER_MEMORY_BYTES_MAX: u64 = 128 << 30;

const _: () =
    assert!(PAGE_TABLES + identity_map_bytes(USER_MEMORY_BYTES_MAX + (1 << 30)) <= LOW_MEMORY_END);

/// Initial registers of a vCPU; all others are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UserEntry {
    /// Address of the first instruction.
    pub rip: u64,
    /// Stack pointer.
    pub rsp: u64,
    /// RDI and RSI, the first two arguments of the System V calling convention.
    pub args: [u64; 2],
}

/// Prepares all vCPUs of a paused VM to run a program that is in its memory, with one entry for
/// each vCPU.
///
/// # Errors
/// [`BootError::EntryCount`] if there is not one entry for each vCPU; [`BootError::TooMuchMemory`]
/// if the guest has more than `USER_MEMORY_BYTES_MAX`; the error of a KVM call.
pub fn start_user_mode(vm: &Vm, entries: &[UserEntry]) -> Result<()> {
    let shape = vm.shape();
    if entries.len() != usize::from(shape.vcpus) {
        let entries = entries.len();
        return Err(BootError::EntryCount { entries, vcpus: shape.vcpus }.into());
    }
    let bytes = vm.ram().bytes();
    if bytes > USER_MEMORY_BYTES_MAX {
        return Err(BootError::TooMuchMemory { bytes }.into());
    }
    let layout = vm.ram().layout();
    let end = layout.regions().iter().map(|region| region.gpa + region.bytes).max().unwrap_or(0);
    let cr3 = write_identity_map(vm.ram(), end, Privilege::User).map_err(BootError::Memory)?;
    for (index, entry) in (0..).zip(entries.iter().copied()) {
        let sregs = vm.on_vcpu(index, move |vcpu| set_registers(vcpu, cr3, entry))?;
        write_descriptors(vm.ram(), &sregs?).map_err(BootError::Memory)?;
    }
    Ok(())
}

fn set_registers(vcpu: &Vcpu, cr3: u64, entry: UserEntry) -> Result<kvm_bindings::kvm_sregs> {
    const RFLAGS_RESERVED: u64 = 1 << 1;
    const RFLAGS_IOPL_3: u64 = 3 << 12;
    let (fd, index) = (vcpu.fd(), vcpu.index());

    let mut sregs = fd.get_sregs().vcpu_call(index, "KVM_GET_SREGS")?;
    enter_long_mode(&mut sregs, cr3, Privilege::User, enable_xsave(vcpu)?);
    fd.set_sregs(&sregs).vcpu_call(index, "KVM_SET_SREGS")?;

    let regs = kvm_bindings::kvm_regs {
        rip: entry.rip,
        rsp: entry.rsp,
        rdi: entry.args[0],
        rsi: entry.args[1],
        rflags: RFLAGS_RESERVED | RFLAGS_IOPL_3,
        ..Default::default()
    };
    fd.set_regs(&regs).vcpu_call(index, "KVM_SET_REGS")?;
    let runnable = kvm_bindings::kvm_mp_state { mp_state: kvm_bindings::KVM_MP_STATE_RUNNABLE };
    fd.set_mp_state(runnable).vcpu_call(index, "KVM_SET_MP_STATE")?;
    Ok(sregs)
}

/// Enables in XCR0 every vector state that this processor has, which user mode cannot do itself.
fn enable_xsave(vcpu: &Vcpu) -> Result<Xsave> {
    let (fd, index) = (vcpu.fd(), vcpu.index());
    let cpuid =
        fd.get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).vcpu_call(index, "KVM_GET_CPUID2")?;
    let Some(states) = vector_states(cpuid.as_slice()) else { return Ok(Xsave::Absent) };
    let mut xcrs = kvm_bindings::kvm_xcrs { nr_xcrs: 1, ..Default::default() };
    xcrs.xcrs[0].value = states;
    fd.set_xcrs(&xcrs).vcpu_call(index, "KVM_SET_XCRS")?;
    Ok(Xsave::Enabled)
}

/// Returns the bits that XCR0 may have on a processor with the table `cpuid`; `None` without XSAVE,
/// which is checked separately because the leaf of its states can be present without it.
fn vector_states(cpuid: &[kvm_bindings::kvm_cpuid_entry2]) -> Option<u64> {
    /// x87, SSE, AVX, and the three parts of AVX-512: the states that need no setup but this bit.
    const VECTOR_STATES: u64 = 0b1110_0111;
    const X87: u64 = 1;
    const XSAVE: u32 = 1 << 26;
    let leaf =
        |function| cpuid.iter().find(move |entry| entry.function == function && entry.index == 0);
    leaf(1).filter(|leaf| leaf.ecx & XSAVE != 0)?;
    let states = leaf(0xd).map_or(0, |leaf| u64::from(leaf.edx) << 32 | u64::from(leaf.eax));
    (states & X87 != 0).then_some(states & VECTOR_STATES)
}

/// Starts vCPU 0 at `rip` in 64-bit kernel mode with interrupts off.
#[cfg(test)]
pub(crate) fn start_kernel_mode(vm: &Vm, rip: u64) -> Result<()> {
    let end = vm.ram().bytes() + (1 << 30);
    let cr3 = write_identity_map(vm.ram(), end, Privilege::Kernel).map_err(BootError::Memory)?;
    let sregs = vm.on_vcpu(0, move |vcpu| {
        let fd = vcpu.fd();
        let mut sregs = fd.get_sregs().vcpu_call(0, "KVM_GET_SREGS")?;
        enter_long_mode(&mut sregs, cr3, Privilege::Kernel, Xsave::Absent);
        fd.set_sregs(&sregs).vcpu_call(0, "KVM_SET_SREGS")?;
        let regs = kvm_bindings::kvm_regs { rip, rflags: 2, ..Default::default() };
        fd.set_regs(&regs).vcpu_call(0, "KVM_SET_REGS")?;
        Ok::<_, crate::Error>(sregs)
    })?;
    Ok(write_descriptors(vm.ram(), &sregs?).map_err(BootError::Memory)?)
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_cpuid_entry2;

    use super::vector_states;

    #[test]
    fn no_state_is_switched_on_without_xsave() {
        let leaf =
            |function, eax, ecx| kvm_cpuid_entry2 { function, eax, ecx, ..Default::default() };
        let states = leaf(0xd, 0x6_02e7, 0);
        assert_eq!(vector_states(&[leaf(1, 0, 1 << 26), states]), Some(0xe7));
        assert_eq!(vector_states(&[leaf(1, 0, !(1 << 26)), states]), None, "x86-64-v2");
        assert_eq!(vector_states(&[leaf(1, 0, 1 << 26)]), None);
        assert_eq!(vector_states(&[states]), None);
    }
}
