//! The VM's public interface, on real KVM.

use std::sync::Arc;

use super::*;
use crate::memory::HugePages;
use crate::testing::*;
use crate::{DirtyLog, StopReason, VmEvent};

const RING: VmEvent = VmEvent::Doorbell { vcpu: 0, value: 1 };

fn stop_reason_of(vm: &Vm) -> StopReason {
    vm.resume().unwrap();
    let VmEvent::Stopped(reason) = event(vm) else { panic!("another event") };
    assert_eq!(vm.run_state(), RunState::Stopped);
    assert_eq!(vm.machine.stopped(), Some(&reason));
    reason
}

#[test]
fn a_program_runs_in_user_mode_on_every_vcpu() {
    let vm = vm_with(16, TOUCH_PAGES, &[[DATA, 3], [DATA + 0x10_0000, 2]]);
    assert_eq!(vm.run_state(), RunState::Paused);
    vm.resume().unwrap();
    assert_eq!(vm.run_state(), RunState::Running);
    for page in 0..3 {
        wait_for_more(&vm, DATA + page * 4096, 0);
    }
    wait_for_more(&vm, DATA + 0x10_1000, 0);
    vm.pause().unwrap();
    assert_eq!(word(&vm, DATA + 3 * 4096), 0);
}

#[test]
fn a_guest_is_paused_and_resumed_a_thousand_times() {
    let second = DATA + 4096;
    let vm = vm_with(16, COUNT_IN_MEMORY, &[[DATA, 0], [second, 0]]);
    for turn in 0..1000 {
        vm.resume().unwrap();
        if turn % 100 == 0 {
            let (a, b) = (word(&vm, DATA), word(&vm, second));
            wait_for_more(&vm, DATA, a);
            wait_for_more(&vm, second, b);
        }
        vm.pause().unwrap();
        let before = (word(&vm, DATA), word(&vm, second));
        std::thread::yield_now();
        assert_eq!(before, (word(&vm, DATA), word(&vm, second)), "turn {turn}");
    }
    let (counted, vector) = (word(&vm, DATA), word(&vm, DATA + 8));
    assert!(vector - counted <= 1, "xmm0 counted {vector}, memory {counted}");
}

#[test]
fn no_port_write_is_lost_or_doubled_by_pausing() {
    let vm = vm_with(16, COUNT_ALOUD, &[[0, 0]]);
    let mut expected = 0;
    for _ in 0..200 {
        vm.resume().unwrap();
        let VmEvent::Doorbell { value, .. } = event(&vm) else { panic!("another event") };
        vm.pause().unwrap();
        // There may be more rings than the queue holds; the last ones must be without gaps.
        let mut last = value;
        while let Some(VmEvent::Doorbell { value, .. }) = vm.events().take(Default::default()) {
            assert!(value == last + 1 || value > expected + crate::DOORBELLS_MAX as u32);
            last = value;
        }
        expected = last + 1;
        let rax = vm.on_vcpu(0, |vcpu| vcpu.fd().get_regs().unwrap().rax).unwrap();
        assert!(
            rax == u64::from(expected) || rax == u64::from(last),
            "rax {rax} after ringing {last}"
        );
    }
}

#[test]
fn a_halted_vcpu_can_be_paused() {
    let vm = empty_vm(16, 1);
    vm.ram().write(CODE, &[0xf4, 0xeb, 0xfd]).unwrap(); // halt: hlt; jmp halt
    crate::boot::start_kernel_mode(&vm, CODE).unwrap();
    vm.resume().unwrap();
    let halted = || {
        vm.pause().unwrap();
        let state = vm.save_state().unwrap();
        vm.resume().unwrap();
        state.vcpus[0].mp_state.mp_state == kvm_bindings::KVM_MP_STATE_HALTED
    };
    while !halted() {}
    vm.pause().unwrap();
    assert_eq!(vm.run_state(), RunState::Paused);
}

#[test]
fn the_ways_in_which_a_guest_ends() {
    let port = |port: u16, value| vm_with(16, WRITE_PORT, &[[port.into(), value]]);
    assert_eq!(stop_reason_of(&port(0x64, 0xfe)), StopReason::Reset);
    assert_eq!(stop_reason_of(&port(crate::devices::POWER_OFF_PORT, 0)), StopReason::PowerOff);
    let fault = stop_reason_of(&vm_with(16, FAULT, &[[0, 0]]));
    assert!(matches!(fault, StopReason::TripleFault { vcpu: 0, .. }), "{fault}");
}

#[test]
fn an_instruction_that_kvm_cannot_fetch_is_an_internal_error() {
    let vm = empty_vm(16, 1);
    // The page tables map this address, but there is no memory behind it.
    crate::boot::start_kernel_mode(&vm, vm.ram().bytes() + 0x1000).unwrap();
    let reason = stop_reason_of(&vm);
    assert!(!reason.is_orderly(), "{reason}");
}

#[test]
fn one_vcpu_that_ends_the_guest_ends_it_for_all() {
    let vm = empty_vm(16, 2);
    vm.ram().write(CODE, COUNT_IN_MEMORY).unwrap();
    vm.ram().write(CODE + 0x1000, FAULT).unwrap();
    let entry = |rip| crate::boot::UserEntry { rip, rsp: 0, args: [DATA, 0] };
    crate::boot::start_user_mode(&vm, &[entry(CODE), entry(CODE + 0x1000)]).unwrap();

    let reason = stop_reason_of(&vm);
    assert!(matches!(reason, StopReason::TripleFault { vcpu: 1, .. }), "{reason}");
    for result in [vm.resume(), vm.pause(), vm.save_state().map(drop)] {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::WrongState { state: RunState::Stopped, .. }), "{error}");
    }
    // The other vCPU parks soon after; stopping waits for it.
    vm.stop();
    let counted = word(&vm, DATA);
    assert_eq!(counted, word(&vm, DATA));
}

#[test]
fn calls_that_do_not_fit_the_state_are_refused() {
    let vm = vm_with(16, COUNT_IN_MEMORY, &[[DATA, 0]]);
    vm.pause().unwrap();
    vm.resume().unwrap();
    vm.resume().unwrap();
    let error = vm.save_state().unwrap_err().to_string();
    assert_eq!(error, "cannot save: the guest is running");
    vm.stop();
    vm.stop();
    assert_eq!(vm.resume().unwrap_err().to_string(), "cannot resume: the guest is stopped");
    assert_eq!(vm.events().take(PATIENCE), Some(VmEvent::Stopped(StopReason::Asked)));
}

#[test]
fn a_guest_that_the_host_cannot_back_is_not_created() {
    let shape = shape(200 << 10, 1);
    let error = Vm::create(&shape, Box::new(std::io::sink())).unwrap_err().to_string();
    assert!(error.contains("the host cannot back a guest of 204800 MiB"), "{error}");
}

/// Each kind of dirty log; the shortest ring is full every few hundred pages.
const LOGS: [DirtyLog; 3] =
    [DirtyLog::Bitmap, DirtyLog::Ring { entries: 1024 }, DirtyLog::Ring { entries: 65_536 }];

#[test]
fn the_dirty_log_reports_every_page_and_no_other() {
    for log in LOGS {
        let vm = vm_by(log, 64, &touch_pages_once(), &[[DATA + 3 * 4096, 1000]]);
        dirty_log_is_exact(&vm);
        vm.stop();
        let again = vm_by(log, 64, &touch_pages_once(), &[[DATA + 3 * 4096, 1000]]);
        again.start_dirty_log().unwrap();
        again.stop_dirty_log().unwrap();
        dirty_log_is_exact(&again);
    }
}

#[test]
fn the_dirty_log_counts_pages_of_4_kib_under_huge_ones_too() {
    let _pool = pool_of_2m(32);
    let mut shape = shape(64, 1);
    shape.memory.huge_pages = HugePages::Pool2M;
    for log in LOGS {
        let vm = vm_of(&shape, log, &touch_pages_once(), &[[DATA + 3 * 4096, 1000]]);
        dirty_log_is_exact(&vm);
    }
}

/// Runs a guest that writes 1000 pages from page 515 on, and checks what the log reports.
pub(crate) fn dirty_log_is_exact(vm: &Vm) {
    let chunks = vm.ram().chunks();
    vm.start_dirty_log().unwrap();
    let mut words = vec![0; chunks];
    vm.collect_dirty(&mut words).unwrap();
    assert_eq!(words, vec![!0; chunks], "at first every page counts as dirty");
    vm.rearm_dirty(0, &words).unwrap();
    words.fill(0);
    vm.collect_dirty(&mut words).unwrap();
    assert_eq!(words, vec![0; chunks], "nothing ran, nothing was written");

    vm.resume().unwrap();
    assert_eq!(event(vm), RING);
    vm.pause().unwrap();
    vm.ram().write(40 << 20, &[1]).unwrap();
    vm.ram().write_log().note(41 << 20);
    vm.collect_dirty(&mut words).unwrap();
    let written = |page: usize| (515..1515).contains(&page) || [40 << 8, 41 << 8].contains(&page);
    // Where KVM shadows the guest's page tables, a read through a writable entry that is marked
    // dirty, as ours are, may count as a write: this concerns the page that contains the program.
    let program = (CODE / 4096) as usize;
    for page in (0..chunks * 64).filter(|page| *page != program) {
        assert_eq!(words[page / 64] >> (page % 64) & 1 == 1, written(page), "page {page}");
    }

    vm.rearm_dirty(0, &words).unwrap();
    words.fill(0);
    vm.collect_dirty(&mut words).unwrap();
    assert_eq!(words, vec![0; chunks], "re-armed and not written since");
    vm.stop_dirty_log().unwrap();
}

#[test]
fn a_page_is_reported_until_it_is_rearmed_and_again_when_written() {
    LOGS.into_iter().for_each(pages_are_reported_until_rearmed_by);
}

fn pages_are_reported_until_rearmed_by(log: DirtyLog) {
    let vm = vm_by(log, 16, TOUCH_PAGES, &[[DATA, 2]]);
    vm.start_dirty_log().unwrap();
    let mut words = vec![0; vm.ram().chunks()];
    vm.collect_dirty(&mut words).unwrap();
    vm.rearm_dirty(0, &words).unwrap();
    let chunk = DATA as usize >> 18;
    for _ in 0..3 {
        vm.resume().unwrap();
        let before = word(&vm, DATA + 4096);
        wait_for_more(&vm, DATA + 4096, before + 1);
        vm.pause().unwrap();
        words.fill(0);
        vm.collect_dirty(&mut words).unwrap();
        assert_eq!(words[chunk], 0b11);
        vm.rearm_dirty(chunk, &[0b10]).unwrap();
        words.fill(0);
        vm.collect_dirty(&mut words).unwrap();
        assert_eq!(words[chunk], 0b01, "only the re-armed page is clean");
        vm.rearm_dirty(chunk, &[0b01]).unwrap();
    }
}

#[test]
fn dirty_tracking_continues_by_chunks_above_the_hole() {
    LOGS.into_iter().for_each(chunks_count_on_above_the_hole_by);
}

fn chunks_count_on_above_the_hole_by(log: DirtyLog) {
    let vm = vm_by(log, 3 * 1024 + 1, TOUCH_PAGES, &[[DATA, 1]]);
    vm.start_dirty_log().unwrap();
    let mut words = vec![0; vm.ram().chunks()];
    vm.collect_dirty(&mut words).unwrap();
    assert_eq!((words.len(), words[12291]), (12292, !0));
    vm.rearm_dirty(12287, &[!0, !0]).unwrap();
    vm.ram().write(4 << 30, &[1]).unwrap();
    words.fill(0);
    vm.collect_dirty(&mut words).unwrap();
    assert_eq!(words[12286..12290], [!0, 0, 1, !0]);
}

#[test]
fn misuse_of_the_dirty_log_is_refused() {
    LOGS.into_iter().for_each(misuse_is_refused_by);
}

fn misuse_is_refused_by(log: DirtyLog) {
    let vm = vm_by(log, 16, TOUCH_PAGES, &[[DATA, 1]]);
    let mut words = vec![0; vm.ram().chunks()];
    assert!(matches!(vm.collect_dirty(&mut words), Err(Error::DirtyTracking(_))));
    vm.stop_dirty_log().unwrap();
    vm.start_dirty_log().unwrap();
    assert!(matches!(vm.start_dirty_log(), Err(Error::DirtyTracking(_))));
    assert!(matches!(vm.collect_dirty(&mut words[1..]), Err(Error::DirtyRange { .. })));
    assert!(matches!(vm.rearm_dirty(60, &[1; 5]), Err(Error::DirtyRange { .. })));
    assert!(matches!(vm.rearm_dirty(usize::MAX, &[1; 5]), Err(Error::DirtyRange { .. })));
    vm.stop_dirty_log().unwrap();
    vm.start_dirty_log().unwrap();
}

#[test]
fn memory_outlives_the_vm_while_referenced() {
    let vm = vm_with(16, TOUCH_PAGES, &[[DATA, 1]]);
    vm.resume().unwrap();
    wait_for_more(&vm, DATA, 5);
    let ram = Arc::clone(vm.ram());
    drop(vm);
    let mut bytes = [0; 8];
    ram.read(DATA, &mut bytes).unwrap();
    assert!(u64::from_le_bytes(bytes) > 5);
}
