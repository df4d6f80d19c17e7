//! The workload guest on real KVM: it runs, accepts control, detects damage, and can be verified
//! from outside.

#![allow(clippy::unwrap_used)] // all of it is test

use std::io;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};
use vmm_core::workload::{
    Control, Doorbell, FaultKind, Order, Pattern, Phase, Report, WorkloadParams, verify_image,
};
use vmm_core::{BootSource, RunState, StopReason, Vm, VmEvent, VmShape};

const PATIENCE: Duration = Duration::from_secs(60);
/// A page in the middle of the working memory, beyond everything at the start of the layout.
const SOME_GPA: u64 = 32 << 20;

/// Starts a guest and waits until it has filled its memory.
fn working(vcpus: u8, params: WorkloadParams) -> Vm {
    let shape = VmShape::for_host(64 << 20, vcpus).unwrap();
    let vm = Vm::create(&shape, Box::new(io::sink())).unwrap();
    vm.boot(&BootSource::Workload(params)).unwrap();
    vm.resume().unwrap();
    wait_for(&vm, vcpus, |bell| matches!(bell, Doorbell::Filled { .. }));
    vm
}

/// Waits until `count` doorbells for which `wanted` holds have rung.
fn wait_for(vm: &Vm, count: u8, wanted: impl Fn(Doorbell) -> bool) {
    let mut heard = 0;
    while heard < count {
        match vm.events().take(PATIENCE) {
            Some(VmEvent::Doorbell { value, .. }) => {
                heard += u8::from(Doorbell::decode(value).is_some_and(&wanted));
            }
            other => panic!("instead of a doorbell: {other:?}"),
        }
    }
}

/// Has the guest check all its memory, and returns its report afterwards.
fn verified(vm: &Vm) -> Report {
    let control = Control::new(vm.ram().memory()).unwrap();
    let epoch = control.request_verification().unwrap();
    wait_for(vm, vm.shape().vcpus, |bell| matches!(bell, Doorbell::Verified { .. }));
    let report = report(vm);
    assert_eq!(report.verified_epoch(), epoch);
    report
}

fn report(vm: &Vm) -> Report {
    Report::read(vm.ram().memory()).unwrap()
}

/// Waits until `wanted` holds for the report, or panics after a time limit.
fn wait_until(vm: &Vm, wanted: impl Fn(&Report) -> bool) -> Report {
    let start = Instant::now();
    loop {
        let report = report(vm);
        if wanted(&report) {
            return report;
        }
        assert!(start.elapsed() < PATIENCE, "{report:?}");
        std::thread::yield_now();
    }
}

#[test]
fn works_and_finds_its_memory_intact_with_every_pattern_and_order() {
    for pattern in [Pattern::Random, Pattern::Zero, Pattern::Text, Pattern::MIXED] {
        for order in [Order::Sequential, Order::Random, Order::Hot] {
            let params = WorkloadParams {
                pattern,
                order,
                zeroing_percent: 20,
                working_set_bytes: 4 << 20,
                dirty_rate_pages_per_second: 100_000,
                ..Default::default()
            };
            let vm = working(1, params);
            wait_until(&vm, |report| report.pages_written() > 5_000);
            let report = verified(&vm);
            assert!(report.is_intact(), "{pattern:?} {order:?}: {report:?}");
            assert_eq!(report.phase(), Phase::Working);
        }
    }
}

#[test]
fn clones_of_an_image_have_its_pages_in_runs_and_find_their_own_intact() {
    let params = |own_seed| WorkloadParams {
        pattern: Pattern::MIXED,
        image_percent: 40,
        run_pages: 256,
        own_seed,
        order: Order::Random,
        working_set_bytes: 1 << 20,
        ..Default::default()
    };
    let clones = [working(1, params(5)), working(2, params(6))];
    for vm in &clones {
        wait_until(vm, |report| report.pages_written() > 100);
        assert!(verified(vm).is_intact());
        vm.pause().unwrap();
        assert_eq!(verify_image(vm.ram().memory()).unwrap().faults, 0);
    }
    // Beyond the working set; both clones have their pages at the same addresses.
    let page = |vm: &Vm, gpa: u64| {
        let mut bytes = vec![0_u8; 4096];
        vm.ram().memory().read_slice(&mut bytes, GuestAddress(gpa)).unwrap();
        bytes
    };
    let pages: Vec<_> = ((8 << 20)..(60_u64 << 20)).step_by(4096).collect();
    let zero = |gpa: &u64| page(&clones[0], *gpa).iter().all(|byte| *byte == 0);
    let alike = |gpa: &u64| page(&clones[0], *gpa) == page(&clones[1], *gpa);
    let count = |wanted: &dyn Fn(&u64) -> bool| pages.iter().filter(|gpa| wanted(gpa)).count();
    let percent = |count: usize| count * 100 / pages.len();
    assert!((20..=30).contains(&percent(count(&zero))), "a quarter: {}", count(&zero));
    assert!((58..=72).contains(&percent(count(&alike))), "and 40 %: {}", count(&alike));
    let changes = pages.windows(2).filter(|pair| alike(&pair[0]) != alike(&pair[1])).count();
    assert!(changes < 100, "in runs of 1 MiB, not page by page: {changes} of {}", pages.len());
}

#[test]
fn a_shuffled_guest_that_reads_is_intact() {
    let params = WorkloadParams {
        run_pages: 64,
        piece_pages: 16,
        read_pages_per_second: 1_000_000,
        ..Default::default()
    };
    let vm = working(2, params);
    wait_until(&vm, |report| report.pages_read() > 100_000 && report.pages_written() > 100);
    assert!(verified(&vm).is_intact());
    vm.pause().unwrap();
    assert_eq!(verify_image(vm.ram().memory()).unwrap().faults, 0);
}

#[test]
fn vcpus_share_the_work() {
    let vm = working(2, WorkloadParams::default());
    let report = verified(&vm);
    assert_eq!(report.vcpus.len(), 2);
    assert!(report.vcpus.iter().all(|vcpu| vcpu.pages_checked > 5_000), "{report:?}");
    assert!(report.is_intact());
}

#[test]
fn finds_a_page_that_was_damaged_from_outside() {
    let params =
        WorkloadParams { pattern: Pattern::Random, working_set_bytes: 0, ..Default::default() };
    let vm = working(1, params);
    let ram = vm.ram().memory();
    let byte: u8 = ram.read_obj(GuestAddress(SOME_GPA)).unwrap();
    ram.write_obj(byte ^ 1, GuestAddress(SOME_GPA)).unwrap();
    wait_for_fault_and_verification(&vm);
    let report = report(&vm);
    assert!(!report.is_intact());
    assert_eq!(report.first_fault().map(|fault| fault.kind), Some(FaultKind::Corrupt));
}

fn wait_for_fault_and_verification(vm: &Vm) {
    Control::new(vm.ram().memory()).unwrap().request_verification().unwrap();
    wait_for(vm, 1, |bell| matches!(bell, Doorbell::Fault { .. }));
    wait_for(vm, 1, |bell| matches!(bell, Doorbell::Verified { .. }));
}

#[test]
fn a_paused_guest_can_be_checked_from_outside() {
    let params = WorkloadParams { dirty_rate_pages_per_second: 200_000, ..Default::default() };
    let vm = working(2, params);
    wait_until(&vm, |report| report.pages_written() > 1_000);
    vm.pause().unwrap();
    let verdict = verify_image(vm.ram().memory()).unwrap();
    assert_eq!(verdict.faults, 0, "{verdict:?}");
    assert!(verdict.skipped <= 2 && verdict.pages > 15_000, "{verdict:?}");
}

#[test]
fn a_pause_is_the_longest_stall_until_reset() {
    let vm = working(1, WorkloadParams::default());
    let pause = Duration::from_millis(300);
    // The guest starts to measure stalls when it starts to write, just after its doorbell rings.
    wait_until(&vm, |report| report.pages_written() > 0);
    vm.pause().unwrap();
    std::thread::sleep(pause);
    vm.resume().unwrap();
    let stalled = wait_until(&vm, |report| report.longest_stall() >= pause);
    assert!(stalled.is_intact());
    let epoch = Control::new(vm.ram().memory()).unwrap().reset_stall().unwrap();
    let report = wait_until(&vm, |report| report.stall_epoch() == epoch);
    assert!(report.longest_stall() < pause, "{report:?}");
}

#[test]
fn writes_at_the_requested_rate() {
    let vm = working(1, WorkloadParams { dirty_rate_pages_per_second: 0, ..Default::default() });
    assert_eq!(verified(&vm).pages_written(), 0);
    Control::new(vm.ram().memory()).unwrap().set_dirty_rate(10_000).unwrap();
    let start = Instant::now();
    wait_until(&vm, |report| report.pages_written() >= 5_000);
    assert!(start.elapsed() >= Duration::from_millis(350), "{:?}", start.elapsed());
}

#[test]
fn stops_on_request() {
    let vm = working(2, WorkloadParams::default());
    Control::new(vm.ram().memory()).unwrap().stop().unwrap();
    wait_for(&vm, 2, |bell| matches!(bell, Doorbell::Stopped { .. }));
    assert_eq!(report(&vm).phase(), Phase::Stopped);
    assert_eq!(vm.run_state(), RunState::Running, "the vCPUs still spin");
    vm.stop();
    assert_eq!(vm.events().take(Duration::ZERO), Some(VmEvent::Stopped(StopReason::Asked)));
}

#[test]
fn a_reset_guest_starts_over_on_every_vcpu_without_old_state() {
    let vm = working(2, WorkloadParams::default());
    for turn in 1..=5 {
        vm.reset().unwrap();
        assert_eq!(vm.restarts().count, turn);
        wait_for(&vm, 2, |bell| matches!(bell, Doorbell::Filled { .. }));
        let report = verified(&vm);
        assert!(report.is_intact(), "{report:?}");
    }
}
