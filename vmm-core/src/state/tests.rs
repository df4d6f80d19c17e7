//! Saving and loading on real KVM: the loaded state equals the saved one, and the guest continues.

use kvm_bindings::kvm_irqchip;

use super::msrs::{TSC, TSC_DEADLINE};
use super::*;
use crate::codec;
use crate::cpuid::MsrValue;
use crate::cpuid::msr::msr_list;
use crate::testing::*;
use crate::{Error, VmEvent};

/// Registers that keep counting while the guest is paused.
const TICKING_MSRS: [u32; 2] = [TSC, TSC_DEADLINE];
/// The local APIC's current count, which keeps counting too.
const LAPIC_CURRENT_COUNT: usize = 0x390;

/// Sets whatever counts to 0, so that two states can be compared.
fn without_time(mut state: VmState) -> VmState {
    state.clock = Default::default();
    for vcpu in &mut state.vcpus {
        vcpu.tsc = None;
        vcpu.lapic.regs[LAPIC_CURRENT_COUNT..][..4].fill(0);
        for msr in vcpu.msrs.iter_mut().filter(|msr| TICKING_MSRS.contains(&msr.index)) {
            msr.value = 0;
        }
    }
    for channel in &mut state.irqchip.pit.channels {
        channel.count_load_time = 0;
    }
    state
}

fn chip_bytes(chip: &kvm_irqchip) -> Vec<u8> {
    codec::encode(chip).unwrap()
}

/// Compares field by field, so that a failure names the field.
fn assert_same(left: VmState, right: VmState) {
    let (left, right) = (without_time(left), without_time(right));
    for (left, right) in left.vcpus.iter().zip(&right.vcpus) {
        assert_eq!(left.mp_state, right.mp_state);
        assert_eq!(left.regs, right.regs);
        assert_eq!(left.sregs, right.sregs);
        assert_eq!(left.xsave, right.xsave);
        assert_eq!(left.xcrs, right.xcrs);
        assert_eq!(left.debug_regs, right.debug_regs);
        assert_eq!(left.lapic, right.lapic);
        for (left, right) in left.msrs.iter().zip(&right.msrs) {
            assert_eq!(left, right, "msr {:#x}", left.index);
        }
        assert_eq!(left.msrs.len(), right.msrs.len());
        assert_eq!(left.tsc_khz, right.tsc_khz);
        assert_eq!(left.events, right.events);
    }
    assert_eq!(left.vcpus.len(), right.vcpus.len());
    assert_eq!(chip_bytes(&left.irqchip.pic_master), chip_bytes(&right.irqchip.pic_master));
    assert_eq!(chip_bytes(&left.irqchip.pic_slave), chip_bytes(&right.irqchip.pic_slave));
    assert_eq!(chip_bytes(&left.irqchip.ioapic), chip_bytes(&right.irqchip.ioapic));
    assert_eq!(left.irqchip.pit, right.irqchip.pit);
    assert_eq!(left.serial, right.serial);
}

/// Encodes and decodes a state.
fn sent(state: &VmState) -> VmState {
    VmState::from_bytes(&state.to_bytes().unwrap()).unwrap()
}

/// A paused VM with two vCPUs that have run.
fn vm_that_ran() -> crate::Vm {
    let vm = vm_with(16, COUNT_IN_MEMORY, &[[DATA, 0], [DATA + 4096, 0]]);
    vm.resume().unwrap();
    wait_for_more(&vm, DATA, 1000);
    wait_for_more(&vm, DATA + 4096, 1000);
    vm.pause().unwrap();
    vm
}

#[test]
fn state_saved_again_before_the_first_run_is_the_same_field_by_field() {
    let source = vm_that_ran();
    // Set values other than the initial ones where a test can.
    source
        .on_vcpu(1, |vcpu| {
            let mut debug = vcpu.fd().get_debug_regs().unwrap();
            debug.db = [0x1000, 0x2000, 0x3000, 0x4000];
            vcpu.fd().set_debug_regs(&debug).unwrap();
        })
        .unwrap();
    assert_eq!(source.console_input(b"typed while paused"), 18);
    let saved = source.save_state().unwrap();
    assert_eq!(saved.vcpus[1].debug_regs.db[3], 0x4000);
    assert_eq!(saved.serial.backlog, b"typed while paused");

    let destination = empty_vm(16, 2);
    destination.load_state(&sent(&saved)).unwrap();
    assert_same(saved, destination.save_state().unwrap());
}

#[test]
fn a_guest_continues_in_another_vm_with_its_memory_and_registers() {
    let mut vm = vm_that_ran();
    for _ in 0..10 {
        let next = empty_vm(16, 2);
        let state = vm.save_state().unwrap();
        copy_memory(&vm, &next);
        next.load_state(&sent(&state)).unwrap();
        let before = (word(&next, DATA), word(&next, DATA + 4096));
        next.resume().unwrap();
        wait_for_more(&next, DATA, before.0);
        wait_for_more(&next, DATA + 4096, before.1);
        next.pause().unwrap();
        vm = next;
        for data in [DATA, DATA + 4096] {
            let (memory, vector) = (word(&vm, data), word(&vm, data + 8));
            assert!(vector - memory <= 1, "xmm0 has {vector}, memory {memory}");
        }
    }
}

#[test]
fn a_guest_in_early_boot_moves_with_the_processors_it_has_not_started() {
    let vm = empty_vm(16, 2);
    // In 32-bit mode: inc dword [0x200000]; jmp back
    vm.ram().write(CODE, &[0xff, 0x05, 0, 0, 0x20, 0, 0xeb, 0xf8]).unwrap();
    crate::boot::start_protected_mode(&vm, CODE).unwrap();
    vm.resume().unwrap();
    wait_for_more(&vm, DATA, 100);
    vm.pause().unwrap();

    let state = vm.save_state().unwrap();
    let unstarted = kvm_bindings::KVM_MP_STATE_UNINITIALIZED;
    assert_eq!(state.vcpus[1].mp_state.mp_state, unstarted);
    let next = empty_vm(16, 2);
    copy_memory(&vm, &next);
    next.load_state(&sent(&state)).unwrap();
    assert_same(state, next.save_state().unwrap());
    next.resume().unwrap();
    wait_for_more(&next, DATA, word(&vm, DATA) + 100);
    next.pause().unwrap();
    let state = next.save_state().unwrap();
    assert_eq!(state.vcpus[1].mp_state.mp_state, unstarted);
}

#[test]
fn no_port_write_is_lost_or_doubled_by_moving() {
    let mut vm = vm_with(16, COUNT_ALOUD, &[[1, 0]]);
    let mut last = 0;
    for _ in 0..20 {
        vm.resume().unwrap();
        assert!(matches!(event(&vm), VmEvent::Doorbell { .. }));
        vm.pause().unwrap();
        let state = vm.save_state().unwrap();
        let first_left = std::iter::from_fn(|| vm.events().take(Default::default())).last();
        if let Some(VmEvent::Doorbell { value, .. }) = first_left {
            // RAX is the value to ring next, or the one just rung if the pause came before the INC.
            let rax = state.vcpus[0].regs.rax as u32;
            assert!(rax == value || rax == value + 1, "{rax} after {value}");
            assert!(value > last);
            last = value;
        }
        let next = empty_vm(16, 1);
        copy_memory(&vm, &next);
        next.load_state(&sent(&state)).unwrap();
        next.resume().unwrap();
        let VmEvent::Doorbell { value, .. } = event(&next) else { panic!("another event") };
        next.pause().unwrap();
        let waiting = std::iter::from_fn(|| next.events().take(Default::default())).count();
        let rip_after_out = CODE + 7;
        let rung = state.vcpus[0].regs.rip == rip_after_out;
        let expected = state.vcpus[0].regs.rax as u32 + u32::from(rung);
        // The queue keeps only the last rings, so the first one is lost when it is full.
        if waiting + 1 < crate::DOORBELLS_MAX {
            assert_eq!(value, expected, "the first ring after the move");
        }
        assert!(value >= expected, "{value} rung again after {expected}");
        vm = next;
    }
}

#[test]
fn the_guests_tsc_and_clock_continue_and_equal_offsets_stay_equal() {
    let source = vm_that_ran();
    let saved = source.save_state().unwrap();
    let destination = empty_vm(16, 2);
    destination.load_state(&sent(&saved)).unwrap();
    let after = destination.save_state().unwrap();

    let tsc = |state: &VmState, vcpu: usize| state.vcpus[vcpu].msrs[0];
    assert_eq!(tsc(&saved, 0).index, TSC);
    assert!(after.clock.clock > saved.clock.clock, "the clock goes on");
    let seconds = (after.clock.clock - saved.clock.clock) as f64 / 1e9;
    assert!(seconds < 60.0, "by the time that has passed, not by {seconds} s");
    for vcpu in 0..2 {
        let passed = tsc(&after, vcpu).value.wrapping_sub(tsc(&saved, vcpu).value);
        let hz = f64::from(saved.vcpus[vcpu].tsc_khz) * 1e3;
        let difference = (passed as f64 / hz - seconds).abs();
        assert!(difference < 0.1, "tsc and clock differ by {difference} s");
    }
    let tsc = |state: &VmState, vcpu: usize| state.vcpus[vcpu].tsc;
    assert_eq!(
        tsc(&saved, 0) == tsc(&saved, 1),
        tsc(&after, 0) == tsc(&after, 1),
        "{saved:?} {after:?}"
    );
}

#[test]
fn a_timer_that_ran_out_while_paused_still_interrupts() {
    let source = empty_vm(16, 1);
    source
        .on_vcpu(0, |vcpu| {
            let fd = vcpu.fd();
            let mut lapic = fd.get_lapic().unwrap();
            let set = |lapic: &mut kvm_bindings::kvm_lapic_state, register: usize, value: u32| {
                for (byte, value) in value.to_le_bytes().into_iter().enumerate() {
                    lapic.regs[register + byte] = value as _;
                }
            };
            set(&mut lapic, 0xf0, 0x1ff); // spurious vector register: software enable
            set(&mut lapic, 0x320, 2 << 17 | 0xec); // timer: TSC deadline, vector 0xec
            fd.set_lapic(&lapic).unwrap();
            let mut deadline = msr_list(&[TSC_DEADLINE]).unwrap();
            deadline.as_mut_slice()[0].data = 1; // long ago
            assert_eq!(fd.set_msrs(&deadline).unwrap(), 1);
        })
        .unwrap();
    let saved = source.save_state().unwrap();
    let deadline = saved.vcpus[0].msrs.last().unwrap();
    assert_eq!(deadline.index, TSC_DEADLINE, "the deadline is written last");
    assert_ne!(deadline.value, 0, "the timer must be armed again");
}

#[test]
fn a_state_for_another_number_of_vcpus_is_refused() {
    let state = vm_that_ran().save_state().unwrap();
    let error = empty_vm(16, 1).load_state(&state).unwrap_err();
    assert!(matches!(error, Error::State(StateError::VcpuCount { state: 2, vm: 1 })), "{error}");
}

#[test]
fn an_msr_that_kvm_does_not_take_is_named() {
    let mut state = vm_that_ran().save_state().unwrap();
    state.vcpus[1].msrs.insert(1, MsrValue { index: 0x1234_5678, value: 0 });
    empty_vm(16, 2).load_state(&state).unwrap();
    state.vcpus[1].msrs[1].value = 5;
    let error = empty_vm(16, 2).load_state(&state).unwrap_err().to_string();
    assert_eq!(error, "the host's kvm does not take 0x5 for msr 0x12345678 of vcpu 1");
}

/// Registers that CPUID may hide from a guest: IA32_ARCH_CAPABILITIES and IA32_PERF_CAPABILITIES.
const HIDEABLE_MSRS: [u32; 2] = [0x10a, 0x345];

/// Returns those registers in `listed` that are neither `saved` nor hidden from the guest.
fn lost_msrs(listed: &[u32], saved: &[u32], is_hidden: impl Fn(u32) -> bool) -> Vec<String> {
    let is_hidden = |index: u32| HIDEABLE_MSRS.contains(&index) && is_hidden(index);
    let unsaved = listed.iter().filter(|index| !saved.contains(index));
    unsaved.filter(|index| !is_hidden(**index)).map(|index| format!("{index:#x}")).collect()
}

#[test]
fn every_register_that_kvm_lists_is_saved_or_hidden() {
    let vm = empty_vm(16, 1);
    let state = vm.save_state().unwrap();
    let saved: Vec<u32> = state.vcpus[0].msrs.iter().map(|msr| msr.index).collect();
    let listed = kvm_ioctls::Kvm::new().unwrap().get_msr_index_list().unwrap();
    assert!(listed.as_slice().len() > 20);
    let cpuid = shape(16, 1).cpuid;
    let lost = lost_msrs(listed.as_slice(), &saved, |index| !crate::cpuid::has_msr(&cpuid, index));
    assert!(lost.is_empty(), "neither saved nor hidden from the guest: msr {}", lost.join(", "));
    let others =
        vm.on_vcpu(0, |vcpu| crate::sys::kvm::listed_registers(vcpu.fd())).unwrap().unwrap();
    assert_eq!(others, 0, "no register of KVM_GET_REG_LIST is saved");
}

#[test]
fn a_register_that_is_neither_saved_nor_hidden_is_named() {
    let listed = [0x10, 0x174, 0x10a, 0x345, 0x4b56_4dff];
    let lost = lost_msrs(&listed, &[0x10, 0x174, 0x345], |_| true);
    assert_eq!(lost, ["0x4b564dff"]);
    let lost = lost_msrs(&listed, &[0x10, 0x345, 0x4b56_4dff], |_| false);
    assert_eq!(lost, ["0x174", "0x10a"]);
}

/// A state of `count` vCPUs, each of the largest size on a real host.
fn large_state(count: usize) -> VmState {
    /// `KVM_CAP_XSAVE2` of a host with AMX.
    const XSAVE_BYTES: usize = 11_008;
    let mut state = vm_that_ran().save_state().unwrap();
    let vcpu = &mut state.vcpus[0];
    vcpu.xsave = vec![0x5a; XSAVE_BYTES];
    vcpu.msrs.resize(kvm_bindings::KVM_MAX_MSR_ENTRIES, MsrValue { index: 1, value: 2 });
    state.vcpus = vec![state.vcpus[0].clone(); count];
    state
}

#[test]
fn a_state_of_the_most_vcpus_with_the_largest_registers_is_within_the_limit() {
    let state = large_state(VCPUS_MAX.into());
    let bytes = state.to_bytes().unwrap();
    assert!(bytes.len() <= STATE_BYTES_MAX / 2, "{} bytes", bytes.len());
    assert_eq!(VmState::from_bytes(&bytes).unwrap().vcpus, state.vcpus);
}

#[test]
fn more_vcpus_than_there_can_be_are_refused_whatever_follows() {
    let count = usize::from(VCPUS_MAX) + 1;
    let bytes = large_state(count).to_bytes().unwrap();
    let refused = VmState::from_bytes(&bytes).unwrap_err().to_string();
    assert!(refused.contains("256") && refused.contains("at most 255 vcpus"), "{refused}");

    let mut hostile = bytes[..64].to_vec();
    hostile[8..16].copy_from_slice(&(1u64 << 60).to_le_bytes());
    let refused = VmState::from_bytes(&hostile).unwrap_err().to_string();
    assert!(refused.contains("at most 255 vcpus"), "{refused}");

    let endless = [&bytes[..8], &vec![0; STATE_BYTES_MAX + 1]].concat();
    assert!(matches!(VmState::from_bytes(&endless), Err(StateError::Malformed(_))));
}

#[test]
fn hostile_states_are_refused_and_never_panic() {
    let good = vm_that_ran().save_state().unwrap().to_bytes().unwrap();
    assert!(VmState::from_bytes(&good).is_ok());
    for cut in (0..good.len()).step_by(97).chain(0..16) {
        assert!(VmState::from_bytes(&good[..cut]).is_err(), "cut at {cut}");
    }
    let with = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        VmState::from_bytes(&bytes)
    };
    assert!(matches!(with(0, b'X'), Err(StateError::Malformed(_))));
    assert!(matches!(with(4, 9), Err(StateError::Version { found: 9 })));
    assert!(matches!(with(6, 0), Err(StateError::Architecture(0x8600))));
    // Any length in it may be wrong: a decoded state must load or fail, in bounded memory.
    let vm = empty_vm(16, 2);
    for at in (8..good.len()).step_by(61) {
        if let Ok(state) = with(at, 0xff) {
            let _ = vm.load_state(&state);
        }
    }
}
