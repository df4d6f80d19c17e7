//! Resets, restarts and the power button, on real KVM.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use super::*;
use crate::boot::{Acpi, KernelSource};
use crate::testing::*;
use crate::{BootSource, VmEvent, VmState};

/// Rings the doorbell with the word at DATA, writes 7 there, and then runs `end`. Kernel mode may
/// be emulated here, so these are plain instructions.
fn program(end: &[u8]) -> Vec<u8> {
    let mut code = vec![
        0x8b, 0x04, 0x25, 0, 0, 0x20, 0, // mov eax, [DATA]
        0x66, 0xba, 0xc0, 4,    // mov dx, DOORBELL_PORT
        0xef, // out dx, eax
        0xc7, 0x04, 0x25, 0, 0, 0x20, 0, 7, 0, 0, 0, // mov dword [DATA], 7
    ];
    code.extend(end);
    code
}

/// Pulls the reset line: mov al, 0xfe; out 0x64, al; jmp $.
const PULL_RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe];
/// Writes to the reset register: mov dx, 0xcf9; mov al, 6; out dx, al; jmp $.
const RESET_REGISTER: &[u8] = &[0x66, 0xba, 0xf9, 0x0c, 0xb0, 6, 0xee, 0xeb, 0xfe];
/// Soft-off: mov dx, 0x604; mov ax, 0x3400; out dx, ax; jmp $.
const SOFT_OFF: &[u8] = &[0x66, 0xba, 4, 6, 0x66, 0xb8, 0, 0x34, 0x66, 0xef, 0xeb, 0xfe];
/// Loops forever: jmp $.
const SPIN: &[u8] = &[0xeb, 0xfe];

const RING: VmEvent = VmEvent::Doorbell { vcpu: 0, value: 0 };
const MINUTE: Duration = Duration::from_secs(60);

/// A file with a kernel that runs `program(end)`.
fn kernel(end: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&elf(CODE, &program(end))).unwrap();
    file
}

fn booted(kernel: &Path, vcpus: u8) -> Vm {
    let vm = empty_vm(16, vcpus);
    let (kernel, cmdline) = (kernel.to_path_buf(), String::new());
    let source = KernelSource { kernel, initrd: None, cmdline, acpi: Acpi::On };
    vm.boot(&BootSource::Kernel(source)).unwrap();
    vm.set_on_reboot(OnReboot::Restart);
    vm
}

#[test]
fn a_guest_that_resets_itself_starts_over_with_empty_memory() {
    for (end, vcpus) in [(PULL_RESET, 1), (RESET_REGISTER, 2)] {
        let kernel = kernel(end);
        let vm = booted(kernel.path(), vcpus);
        vm.resume().unwrap();
        for turn in 0..50 {
            assert_eq!(event(&vm), RING, "turn {turn}");
            assert_eq!(event(&vm), VmEvent::Reset(StopReason::Reset));
            assert_eq!(vm.run_state(), RunState::Running);
            assert_eq!(vm.restarts().count, turn);
            vm.start_over();
        }
        assert_eq!(vm.restarts().last, Some(StopReason::Reset));
    }
}

#[test]
fn without_the_policy_a_reset_ends_the_guest() {
    let kernel = kernel(PULL_RESET);
    let vm = booted(kernel.path(), 1);
    vm.set_on_reboot(OnReboot::Stop);
    vm.resume().unwrap();
    assert_eq!(event(&vm), RING);
    assert_eq!(event(&vm), VmEvent::Stopped(StopReason::Reset));
    vm.start_over();
    assert_eq!(vm.run_state(), RunState::Stopped);
}

#[test]
fn a_triple_fault_starts_over_too() {
    let kernel = kernel(FAULT);
    let vm = booted(kernel.path(), 1);
    vm.resume().unwrap();
    for _ in 0..3 {
        assert_eq!(event(&vm), RING);
        let fault = event(&vm);
        assert!(matches!(fault, VmEvent::Reset(StopReason::TripleFault { .. })), "{fault:?}");
        vm.start_over();
    }
}

#[test]
fn a_guest_that_switches_itself_off_ends_unless_it_was_to_reboot() {
    let kernel = kernel(SOFT_OFF);
    let vm = booted(kernel.path(), 1);
    vm.restart_on_power_off(Some(Instant::now() + MINUTE));
    vm.resume().unwrap();
    assert_eq!(event(&vm), RING);
    assert_eq!(event(&vm), VmEvent::Reset(StopReason::PowerOff));
    vm.start_over();
    assert_eq!(event(&vm), RING);
    assert_eq!(event(&vm), VmEvent::Stopped(StopReason::PowerOff), "once is enough");
}

#[test]
fn a_pause_does_the_reset_that_is_due_so_that_nothing_else_is_ever_saved() {
    let kernel = kernel(PULL_RESET);
    let vm = booted(kernel.path(), 1);
    vm.resume().unwrap();
    assert_eq!(event(&vm), RING);
    assert_eq!(event(&vm), VmEvent::Reset(StopReason::Reset));
    vm.pause().unwrap();
    assert_eq!((vm.run_state(), vm.restarts().count), (RunState::Paused, 1));
    vm.start_over();
    assert_eq!(vm.restarts().count, 1, "nothing is due any more");
    vm.save_state().unwrap();
    vm.resume().unwrap();
    assert_eq!(event(&vm), RING);
}

#[test]
fn every_page_is_dirty_after_a_reset() {
    let kernel = kernel(SPIN);
    let vm = booted(kernel.path(), 1);
    vm.resume().unwrap();
    assert_eq!(event(&vm), RING);
    vm.start_dirty_log().unwrap();
    let mut words = vec![0; vm.ram().chunks()];
    vm.collect_dirty(&mut words).unwrap();
    vm.rearm_dirty(0, &words).unwrap();
    words.fill(0);
    vm.collect_dirty(&mut words).unwrap();
    assert!(words.iter().all(|word| *word == 0), "a guest that spins writes nothing");

    vm.reset().unwrap();
    assert_eq!(event(&vm), RING, "the memory was empty");
    words.fill(0);
    vm.collect_dirty(&mut words).unwrap();
    assert!(words.iter().all(|word| *word == !0), "{words:x?}");
}

#[test]
fn a_reset_is_for_a_guest_that_runs() {
    let kernel = kernel(SPIN);
    let vm = booted(kernel.path(), 1);
    let refused = vm.reset().unwrap_err().to_string();
    assert_eq!(refused, "cannot reset: the guest is paused");
    vm.stop();
    assert!(matches!(vm.reset(), Err(Error::WrongState { state: RunState::Stopped, .. })));
}

/// Creates another VM in the state of `vm`, as after a migration.
fn moved(vm: &Vm) -> Vm {
    let state = VmState::from_bytes(&vm.save_state().unwrap().to_bytes().unwrap()).unwrap();
    let other = empty_vm(16, vm.shape().vcpus);
    copy_memory(vm, &other);
    other.load_state(&state).unwrap();
    other
}

#[test]
fn a_guest_that_has_moved_starts_over_from_the_same_file() {
    let kernel = kernel(PULL_RESET);
    let vm = booted(kernel.path(), 1);
    let other = moved(&vm);
    drop(vm);
    other.resume().unwrap();
    for _ in 0..3 {
        assert_eq!(event(&other), RING);
        assert_eq!(event(&other), VmEvent::Reset(StopReason::Reset));
        other.start_over();
    }
}

#[test]
fn a_guest_that_cannot_be_rebooted_ends_with_the_reason() {
    let kernel = kernel(PULL_RESET);
    let vm = booted(kernel.path(), 1);
    let other = moved(&vm);
    drop(kernel);
    other.resume().unwrap();
    assert_eq!(event(&other), RING);
    assert_eq!(event(&other), VmEvent::Reset(StopReason::Reset));
    other.start_over();
    let VmEvent::Stopped(reason) = event(&other) else { panic!("another event") };
    let text = reason.to_string();
    let expected =
        "the guest asked for a reset, and the guest cannot be booted again: cannot read kernel";
    assert!(text.starts_with(expected), "{text}");
    assert!(!reason.is_orderly());
}

#[test]
fn the_power_button_and_its_listener_state_move_with_the_guest() {
    const ENABLE: u16 = 0x602;
    let kernel = kernel(SPIN);
    let vm = booted(kernel.path(), 1);
    let refused = vm.press_power_button().unwrap_err().to_string();
    assert_eq!(refused, "cannot press the power button: the guest is paused");
    vm.resume().unwrap();
    assert_eq!(vm.press_power_button().unwrap(), ButtonPress::Ignored);
    vm.machine.ports.write(ENABLE, &[0, 1]);
    assert_eq!(vm.press_power_button().unwrap(), ButtonPress::Delivered);
    vm.pause().unwrap();
    let other = moved(&vm);
    assert_eq!(other.machine.ports.power().save(), vm.machine.ports.power().save());
    other.resume().unwrap();
    assert_eq!(other.press_power_button().unwrap(), ButtonPress::Delivered);
    other.reset().unwrap();
    assert_eq!(other.machine.ports.power().save(), Default::default(), "as a new machine has it");
}
