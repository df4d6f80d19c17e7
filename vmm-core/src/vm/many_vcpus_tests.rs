//! Guests with many vCPUs, on real KVM.

use std::io::sink;

use kvm_bindings::KVM_CLOCK_TSC_STABLE;

use super::*;
use crate::state::{ClockPair, TscCarry};
use crate::testing::*;
use crate::{VcpuLimits, snapshot};

/// The local APIC's ID register (Intel SDM volume 3, table 11-1).
const LAPIC_ID: usize = 0x20;

/// Returns the ID in bits 31 to 24 of the register, where xAPICs have it.
fn lapic_id(state: &VmState, vcpu: usize) -> u8 {
    state.vcpus[vcpu].lapic.regs[LAPIC_ID + 3] as u8
}

#[test]
fn sixteen_vcpus_run_and_continue_in_another_vm() {
    let counters: Vec<u64> = (0..16).map(|vcpu| DATA + vcpu * 4096).collect();
    let args: Vec<[u64; 2]> = counters.iter().map(|counter| [*counter, 0]).collect();
    let vm = vm_with(16, COUNT_IN_MEMORY, &args);
    vm.resume().unwrap();
    for counter in &counters {
        wait_for_more(&vm, *counter, 100);
    }
    vm.pause().unwrap();
    let state = VmState::from_bytes(&vm.save_state().unwrap().to_bytes().unwrap()).unwrap();

    let next = empty_vm(16, 16);
    copy_memory(&vm, &next);
    next.load_state(&state).unwrap();
    let before: Vec<u64> = counters.iter().map(|counter| word(&next, *counter)).collect();
    next.resume().unwrap();

    for (counter, before) in counters.iter().zip(before) {
        wait_for_more(&next, *counter, before);
    }
    next.pause().unwrap();
    assert!((0..16).all(|vcpu| lapic_id(&state, vcpu) == vcpu as u8));
}

/// KVM gives its vCPUs one clock, which Linux reads without a system call, if it knows that their
/// TSCs are equal.
#[test]
fn vcpus_that_are_loaded_one_after_the_other_keep_one_clock() {
    let counters = [0, 1, 2, 3].map(|vcpu| DATA + vcpu * 4096);
    let vm = vm_with(4, COUNT_IN_MEMORY, &counters.map(|counter| [counter, 0]));
    let flags_after_a_run = |vm: &Vm| {
        let before = counters.map(|counter| word(vm, counter));
        vm.resume().unwrap();
        counters.iter().zip(before).for_each(|(counter, before)| {
            wait_for_more(vm, *counter, before);
        });
        vm.pause().unwrap();
        vm.machine.vm.get_clock().unwrap().flags & KVM_CLOCK_TSC_STABLE
    };
    let before = flags_after_a_run(&vm);
    let state = vm.save_state().unwrap();
    let next = empty_vm(16, 4);
    copy_memory(&vm, &next);
    // As hours after the guest was saved. KVM takes TSCs that differ by less than a second for
    // equal.
    let saved_ns = ClockPair::of(&state.clock).unwrap().guest_ns;
    let mut now = ClockPair::of(&state::save_clock(&next.machine.vm).unwrap()).unwrap();
    now.guest_ns = saved_ns + 10_000_000_000_000;
    let carry = Some(TscCarry { saved_ns, now });
    for (index, vcpu) in (0..).zip(state.vcpus.clone()) {
        next.on_vcpu(index, move |it| state::load_vcpu(it, &vcpu, carry)).unwrap().unwrap();
    }
    assert_eq!(flags_after_a_run(&next), before);
}

#[test]
fn as_many_vcpus_as_this_host_has_are_saved_to_a_file_and_restored() {
    let count = VcpuLimits::of_host().unwrap().max;
    let vm = empty_vm(16, count);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest");
    snapshot::save(&vm, &path, &snapshot::DiskCopies::default()).unwrap();

    let restored = restore_from(&path).unwrap();

    let state = restored.save_state().unwrap();
    assert_eq!(state.vcpus.len(), usize::from(count));
    for vcpu in 0..count {
        assert_eq!(lapic_id(&state, vcpu.into()), vcpu);
    }
    let last = count - 1;
    let levels = restored.on_vcpu(last, |vcpu| {
        let table = vcpu.fd().get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES).unwrap();
        let levels = table.as_slice().iter().filter(|entry| entry.function == 0xb);
        levels.map(|entry| (entry.index, entry.ebx, entry.edx)).collect::<Vec<_>>()
    });
    let (cores, id) = (u32::from(count), u32::from(last));
    assert_eq!(levels.unwrap(), [(0, 1, id), (1, cores, id)]);
}

/// As in Linux, which switches to x2APICs as soon as it starts a processor.
#[test]
fn x2apics_keep_their_ids_in_another_vm() {
    const X2APIC_ENABLED: u64 = 1 << 10;
    let count = VcpuLimits::of_host().unwrap().max;
    let vm = empty_vm(16, count);
    for index in 0..count {
        let enable = move |vcpu: &mut Vcpu| {
            let mut sregs = vcpu.fd().get_sregs().unwrap();
            sregs.apic_base |= X2APIC_ENABLED;
            vcpu.fd().set_sregs(&sregs).unwrap();
        };
        vm.on_vcpu(index, enable).unwrap();
    }
    let state = VmState::from_bytes(&vm.save_state().unwrap().to_bytes().unwrap()).unwrap();

    let next = empty_vm(16, count);
    next.load_state(&state).unwrap();

    let loaded = next.save_state().unwrap();
    for index in 0..usize::from(count) {
        let (saved, loaded) = (&state.vcpus[index], &loaded.vcpus[index]);
        assert_eq!(loaded.sregs.apic_base & X2APIC_ENABLED, X2APIC_ENABLED);
        assert_eq!(loaded.lapic, saved.lapic, "vcpu {index}");
    }
    assert!((0..count).all(|vcpu| lapic_id(&loaded, vcpu.into()) == vcpu));
}

#[test]
fn a_guest_of_the_most_vcpus_has_a_dirty_ring_for_each() {
    let count = VcpuLimits::of_host().unwrap().max;
    let options = VmOptions { dirty_log: DirtyLog::Ring { entries: 1024 }, ..VmOptions::default() };
    let vm = Vm::create_with(&shape(16, count), &options, Box::new(sink())).unwrap();
    let mut words = vec![0; vm.ram().chunks()];

    vm.start_dirty_log().unwrap();
    vm.collect_dirty(&mut words).unwrap();
    vm.rearm_dirty(0, &words).unwrap();

    words.fill(0);
    vm.collect_dirty(&mut words).unwrap();
    assert!(words.iter().all(|word| *word == 0), "nothing ran");
}
