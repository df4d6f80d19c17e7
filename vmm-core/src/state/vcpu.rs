//! A vCPU's state, and the order in which it is read and written.
//!
//! | step | reason |
//! |---|---|
//! | saved first: MP_STATE | reading it may change the local APIC (pending INIT and SIPI) |
//! | saved last: VCPU_EVENTS | the reads before it may inject what was pending |
//! | loaded: SREGS before LAPIC | the APIC's base is in SREGS |
//! | loaded: LAPIC before MSRs | the TSC deadline needs the timer's mode |
//! | loaded: TSC before TSC_DEADLINE | the deadline is compared with it when it is written |
//! | loaded: REGS before VCPU_EVENTS | writing REGS clears pending exceptions |

use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs, kvm_sregs,
    kvm_vcpu_events, kvm_xcrs,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::msrs::{TSC, TSC_DEADLINE, read};
use super::{ClockPair, StateError, TscCarry};
use crate::cpuid::MsrValue;
use crate::cpuid::msr::msr_list;
use crate::error::{KvmContext, Result};
use crate::shape::{self, TscScale};
use crate::sys::kvm;
use crate::vcpu::Vcpu;

/// State of a vCPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VcpuState {
    /// Whether the vCPU is runnable, halted, or waiting to be started.
    pub mp_state: kvm_mp_state,
    /// General-purpose registers, RIP and RFLAGS.
    pub regs: kvm_regs,
    /// Segment, control and descriptor-table registers.
    pub sregs: kvm_sregs,
    /// The XSAVE area: x87, SSE, AVX and all other extended state of the processor.
    pub xsave: Vec<u8>,
    /// XCR0.
    pub xcrs: kvm_xcrs,
    /// Debug registers DR0 to DR3, DR6 and DR7.
    pub debug_regs: kvm_debugregs,
    /// The local APIC's registers.
    pub lapic: kvm_lapic_state,
    /// Model-specific registers, the TSC first and its deadline last.
    pub msrs: Vec<MsrValue>,
    /// The guest's TSC frequency, in kHz.
    pub tsc_khz: u32,
    /// The guest's TSC when [`VmState::clock`](super::VmState::clock) was read; `None` if the
    /// host's KVM does not report it.
    pub tsc: Option<u64>,
    /// Pending exceptions, interrupts and NMIs.
    pub events: kvm_vcpu_events,
}

/// Reads the state of a parked vCPU, in the order that the module's table explains. `clock` was
/// read while the vCPU was parked.
pub(crate) fn save_vcpu(vcpu: &mut Vcpu, clock: Option<ClockPair>) -> Result<VcpuState> {
    let (index, xsave_bytes) = (vcpu.index(), vcpu.xsave_bytes);
    let fd = vcpu.fd();
    let mp_state = fd.get_mp_state().vcpu_call(index, "KVM_GET_MP_STATE")?;
    let regs = fd.get_regs().vcpu_call(index, "KVM_GET_REGS")?;
    let sregs = fd.get_sregs().vcpu_call(index, "KVM_GET_SREGS")?;
    if let Some(register) = nested_in_use(&sregs) {
        return Err(StateError::Nested { vcpu: index, register }.into());
    }
    let xsave = kvm::get_xsave(fd, xsave_bytes).vcpu_call(index, "KVM_GET_XSAVE2")?;
    let xcrs = fd.get_xcrs().vcpu_call(index, "KVM_GET_XCRS")?;
    let debug_regs = fd.get_debug_regs().vcpu_call(index, "KVM_GET_DEBUGREGS")?;
    let lapic = fd.get_lapic().vcpu_call(index, "KVM_GET_LAPIC")?;
    let tsc_khz = fd.get_tsc_khz().vcpu_call(index, "KVM_GET_TSC_KHZ")?;
    let scale = TscScale::of_this_host(tsc_khz)?;
    let tsc = clock.zip(kvm::tsc_offset(fd).ok());
    let tsc = tsc.map(|(clock, offset)| scale.guest_tsc(clock.host_tsc, offset));
    let mut msrs = save_msrs(vcpu)?;
    keep_lost_deadline(&mut msrs, &lapic);
    let events = vcpu.fd().get_vcpu_events().vcpu_call(index, "KVM_GET_VCPU_EVENTS")?;
    Ok(VcpuState {
        mp_state,
        regs,
        sregs,
        xsave,
        xcrs,
        debug_regs,
        lapic,
        msrs,
        tsc_khz,
        tsc,
        events,
    })
}

/// Returns the bit by which the guest has enabled nested virtualization, if it is set (Intel SDM
/// volume 3, 24.7; AMD APM volume 2, 15.4).
fn nested_in_use(sregs: &kvm_sregs) -> Option<&'static str> {
    const VMXE: u64 = 1 << 13;
    const SVME: u64 = 1 << 12;
    let bits = [(sregs.cr4 & VMXE, "CR4.VMXE"), (sregs.efer & SVME, "EFER.SVME")];
    bits.into_iter().find(|(bit, _)| *bit != 0).map(|(_, name)| name)
}

fn save_msrs(vcpu: &mut Vcpu) -> Result<Vec<MsrValue>> {
    let index = vcpu.index();
    let (fd, msrs) = vcpu.fd_and_msrs();
    let count = fd.get_msrs(msrs).vcpu_call(index, "KVM_GET_MSRS")?;
    if let Some(unread) = msrs.as_slice().get(count) {
        return Err(StateError::ReadMsr { vcpu: index, index: unread.index }.into());
    }
    let values = msrs.as_slice().iter();
    Ok(values.map(|entry| MsrValue { index: entry.index, value: entry.data }).collect())
}

/// Keeps the interrupt of an expired deadline. A deadline that has expired but whose interrupt has
/// not been delivered reads as 0. Loading 0 would disarm the timer, and the guest would wait for
/// ever; a deadline of "now" delivers the interrupt.
fn keep_lost_deadline(msrs: &mut [MsrValue], lapic: &kvm_lapic_state) {
    let Some(tsc) = msrs.iter().find(|msr| msr.index == TSC).map(|msr| msr.value) else { return };
    for msr in msrs.iter_mut().filter(|msr| msr.index == TSC_DEADLINE && msr.value == 0) {
        if uses_deadline(lapic) {
            msr.value = tsc;
        }
    }
}

/// Whether the local APIC's timer is unmasked and in TSC-deadline mode (Intel SDM volume 3,
/// 11.5.4).
fn uses_deadline(lapic: &kvm_lapic_state) -> bool {
    const LVT_TIMER: usize = 0x320;
    const MASKED: u32 = 1 << 16;
    const MODE: u32 = 3 << 17;
    const MODE_DEADLINE: u32 = 2 << 17;
    let bytes = [0, 1, 2, 3].map(|byte| lapic.regs[LVT_TIMER + byte] as u8);
    let lvt = u32::from_le_bytes(bytes);
    lvt & MASKED == 0 && lvt & MODE == MODE_DEADLINE
}

/// Loads the state of a parked vCPU. `carry` is given if the clocks of both hosts are known.
pub(crate) fn load_vcpu(vcpu: &mut Vcpu, state: &VcpuState, carry: Option<TscCarry>) -> Result<()> {
    let (index, xsave_bytes) = (vcpu.index(), vcpu.xsave_bytes);
    let fd = vcpu.fd();
    load_tsc_khz(fd, index, state.tsc_khz)?;
    fd.set_mp_state(state.mp_state).vcpu_call(index, "KVM_SET_MP_STATE")?;
    fd.set_regs(&state.regs).vcpu_call(index, "KVM_SET_REGS")?;
    fd.set_sregs(&state.sregs).vcpu_call(index, "KVM_SET_SREGS")?;
    kvm::set_xsave(fd, &state.xsave, xsave_bytes).vcpu_call(index, "KVM_SET_XSAVE")?;
    fd.set_xcrs(&state.xcrs).vcpu_call(index, "KVM_SET_XCRS")?;
    fd.set_debug_regs(&state.debug_regs).vcpu_call(index, "KVM_SET_DEBUGREGS")?;
    fd.set_lapic(&state.lapic).vcpu_call(index, "KVM_SET_LAPIC")?;
    let carried = carry.zip(state.tsc);
    // Not both: KVM would count the vCPU as one whose TSC differs from the others'. Then it has no
    // clock for all of them, and Linux reads its time by a system call each time.
    let is_early = |msr: &&MsrValue| match msr.index {
        TSC => carried.is_none(),
        index => index != TSC_DEADLINE,
    };
    let early: Vec<MsrValue> = state.msrs.iter().filter(is_early).copied().collect();
    load_msrs(fd, index, &early)?;
    if let Some((carry, tsc)) = carried {
        let offset = carry.offset(tsc, state.tsc_khz, TscScale::of_this_host(state.tsc_khz)?);
        kvm::set_tsc_offset(fd, offset).vcpu_call(index, "KVM_SET_DEVICE_ATTR (TSC offset)")?;
    }
    let is_deadline = |msr: &&MsrValue| msr.index == TSC_DEADLINE;
    let late: Vec<MsrValue> = state.msrs.iter().filter(is_deadline).copied().collect();
    load_msrs(fd, index, &late)?;
    fd.set_vcpu_events(&state.events).vcpu_call(index, "KVM_SET_VCPU_EVENTS")
}

/// Sets the TSC frequency if it differs. If that fails, the frequencies must be within the
/// tolerance, as the check of the guest's shape requires too.
fn load_tsc_khz(fd: &VcpuFd, index: u8, khz: u32) -> Result<()> {
    let host = fd.get_tsc_khz().vcpu_call(index, "KVM_GET_TSC_KHZ")?;
    if host == khz || fd.set_tsc_khz(khz).is_ok() {
        return Ok(());
    }
    shape::check_tsc(khz, host, false)?;
    Ok(())
}

/// Writes registers in the given order. A register that refuses its value is skipped if it has that
/// value already (it is read-only), or if this host lacks it and the value is 0 (it was never
/// used).
pub(crate) fn load_msrs(fd: &VcpuFd, index: u8, msrs: &[MsrValue]) -> Result<()> {
    let mut rest = msrs;
    while !rest.is_empty() {
        let written = write_msrs(fd, index, rest)?;
        let Some(refused) = rest.get(written) else { break };
        let harmless = match read(fd, refused.index) {
            Some(value) => value == refused.value,
            None => refused.value == 0,
        };
        if !harmless {
            let MsrValue { index: msr, value } = *refused;
            return Err(StateError::WriteMsr { vcpu: index, index: msr, value }.into());
        }
        rest = &rest[written + 1..];
    }
    Ok(())
}

/// Writes as many of `msrs` as KVM accepts; returns how many.
fn write_msrs(fd: &VcpuFd, index: u8, msrs: &[MsrValue]) -> Result<usize> {
    let indices: Vec<u32> = msrs.iter().map(|msr| msr.index).collect();
    let mut list =
        msr_list(&indices).ok_or_else(|| StateError::Malformed(format!("{} msrs", msrs.len())))?;
    for (entry, msr) in list.as_mut_slice().iter_mut().zip(msrs) {
        *entry = kvm_msr_entry { index: msr.index, data: msr.value, ..Default::default() };
    }
    fd.set_msrs(&list).vcpu_call(index, "KVM_SET_MSRS")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lapic_with_timer(lvt: u32) -> kvm_lapic_state {
        let mut lapic = kvm_lapic_state::default();
        for (byte, value) in lvt.to_le_bytes().into_iter().enumerate() {
            lapic.regs[0x320 + byte] = value as _;
        }
        lapic
    }

    fn deadline_after_saving(deadline: u64, lvt: u32) -> u64 {
        let mut msrs = [
            MsrValue { index: TSC, value: 5_000 },
            MsrValue { index: TSC_DEADLINE, value: deadline },
        ];
        keep_lost_deadline(&mut msrs, &lapic_with_timer(lvt));
        msrs[1].value
    }

    #[test]
    fn a_guest_that_uses_nested_virtualization_is_recognized_by_the_bit() {
        let sregs = |cr4, efer| kvm_sregs { cr4, efer, ..Default::default() };
        assert_eq!(nested_in_use(&sregs(0x20, 0xd01)), None);
        assert_eq!(nested_in_use(&sregs(0x2020, 0xd01)), Some("CR4.VMXE"));
        assert_eq!(nested_in_use(&sregs(0x20, 0x1d01)), Some("EFER.SVME"));
    }

    #[test]
    fn a_deadline_lost_while_saving_becomes_now() {
        assert_eq!(deadline_after_saving(0, 2 << 17 | 0xec), 5_000);
    }

    #[test]
    fn a_deadline_that_is_armed_or_not_in_use_stays() {
        assert_eq!(deadline_after_saving(7_000, 2 << 17 | 0xec), 7_000);
        assert_eq!(deadline_after_saving(0, 1 << 17 | 0xec), 0, "periodic timer");
        assert_eq!(deadline_after_saving(0, 2 << 17 | 1 << 16), 0, "masked timer");
    }
}
