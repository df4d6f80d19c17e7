//! The balloon on real KVM: a guest that gives up memory with its own instructions, what the host
//! regains, and what a migration under way sees of it.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use vm_memory::{GuestMemoryRegion, MemoryRegionAddress};

use super::*;
use crate::boot::{Acpi, KernelSource, start_protected_mode};
use crate::testing::*;
use crate::virtio::balloon::{FreePages, SetBy};
use crate::virtio::testing::{Driver, WRITABLE};
use crate::vm::device_tests::{drive, handshake_for, register, stores};
use crate::{BootSource, DeviceConfig, DirtyLog, VmEvent, VmOptions, VmShape, VmState};

/// Statistics, deflate-on-oom and free page reporting.
const FEATURES: u32 = 1 << 1 | 1 << 2 | 1 << 5;
/// Inflate, deflate, statistics, reporting.
const QUEUES: usize = 4;
/// Memory that is given up: address and size, 4 MiB from 8 MiB on.
const PAGES: u64 = 8 << 20;
const BYTES: u64 = 4 << 20;
/// Pages named in one request.
const PFNS: u64 = 256;
const REQUESTS: u64 = BYTES / 4096 / PFNS;
/// Address of the requests.
const REQUEST: u64 = 0x30_0000;

/// A paused guest of 16 MiB with a balloon, whose pages at [`PAGES`] are full of sevens.
fn guest() -> Vm {
    guest_with(DeviceConfig::Balloon(FreePages::Reported), DirtyLog::Auto)
}

/// As `guest`, with this balloon and this dirty log.
fn guest_with(balloon: DeviceConfig, dirty_log: DirtyLog) -> Vm {
    let shape = VmShape { devices: vec![balloon], ..shape(16, 1) };
    let options = VmOptions { dirty_log, ..VmOptions::default() };
    let vm = Vm::create_with(&shape, &options, Box::new(std::io::sink())).unwrap();
    vm.ram().write(CODE, &[0xeb, 0xfe]).unwrap(); // jmp $
    start_protected_mode(&vm, CODE).unwrap();
    vm.ram().write(PAGES, &vec![7; BYTES as usize]).unwrap();
    vm
}

/// Makes the guest set up its balloon, inflate it by all pages at [`PAGES`], wait for the answers,
/// ring the doorbell with the content of the first page, and write there.
fn inflate_all(vm: &Vm) {
    let driver = Driver::new(vm.ram().memory(), 0);
    for request in 0..REQUESTS {
        let first = PAGES / 4096 + request * PFNS;
        let pfns: Vec<u8> =
            (first..first + PFNS).flat_map(|pfn| (pfn as u32).to_le_bytes()).collect();
        let at = REQUEST + request * 4096;
        vm.ram().write(at, &pfns).unwrap();
        driver.offer(&[(at, pfns.len() as u32, 0)]);
    }
    let mut writes = handshake_for(vm, FEATURES, QUEUES);
    writes.push((register::QUEUE_NOTIFY, 0));
    let mut code = stores(&writes);
    let used_index = driver.registers().used as u32 + 2;
    code.extend([0x66, 0x83, 0x3d]); // wait: cmp word [used_index], REQUESTS
    code.extend(used_index.to_le_bytes());
    code.push(REQUESTS as u8);
    code.extend([0x75, 0xf6]); // jne wait
    code.push(0xa1); // mov eax, [PAGES]
    code.extend((PAGES as u32).to_le_bytes());
    code.extend([0xc7, 0x05]); // mov dword [PAGES], 5
    code.extend((PAGES as u32).to_le_bytes());
    code.extend(5u32.to_le_bytes());
    code.extend([0x66, 0xba, 0xc0, 0x04, 0xef]); // mov dx, DOORBELL_PORT; out dx, eax
    code.extend([0xeb, 0xfe]); // jmp $
    vm.ram().write(CODE, &code).unwrap();
}

/// The hint queue of a driver that has no other optional queues.
const HINTS: usize = 2;
/// Address of a word that becomes 1 when the guest may continue.
const GO: u64 = 0x38_0000;

/// Makes the guest set up its balloon, wait, notify its hint queue, and write the second page at
/// [`PAGES`].
fn write_what_is_hinted(vm: &Vm) {
    let doorbell = [0x66, 0xba, 0xc0, 0x04, 0xef]; // mov dx, DOORBELL_PORT; out dx, eax
    let mut code = stores(&handshake_for(vm, 1 << 3, HINTS + 1));
    code.extend(doorbell);
    code.extend([0x80, 0x3d]); // wait: cmp byte [GO], 1
    code.extend((GO as u32).to_le_bytes());
    code.push(1);
    code.extend([0x75, 0xf7]); // jne wait
    code.extend(stores(&[(register::QUEUE_NOTIFY, HINTS as u32)]));
    code.extend([0xc7, 0x05]); // mov dword [PAGES + 4096], 5
    code.extend((PAGES as u32 + 4096).to_le_bytes());
    code.extend(5u32.to_le_bytes());
    code.extend(doorbell);
    code.extend([0xeb, 0xfe]); // jmp $
    vm.ram().write(CODE, &code).unwrap();
}

/// Lists all pages at [`PAGES`] as free, in answer to the first command.
fn hint_all(vm: &Vm) {
    let driver = Driver::new(vm.ram().memory(), HINTS);
    let words = [1u32 << 31, 0]; // The least id that there is, and "no more".
    for (at, word) in [REQUEST, REQUEST + 4].into_iter().zip(words) {
        vm.ram().write(at, &word.to_le_bytes()).unwrap();
    }
    driver.offer(&[(REQUEST, 4, 0)]);
    driver.offer(&[(PAGES, BYTES as u32, WRITABLE)]);
    driver.offer(&[(REQUEST + 4, 4, 0)]);
}

#[test]
fn a_hinted_page_that_is_taken_back_at_once_is_in_either_log() {
    for dirty_log in [DirtyLog::Bitmap, DirtyLog::Ring { entries: 1024 }] {
        let vm = guest_with(DeviceConfig::Balloon(FreePages::Hinted), dirty_log);
        write_what_is_hinted(&vm);
        vm.resume().unwrap();
        assert!(matches!(event(&vm), VmEvent::Doorbell { .. }), "the driver is ready");
        assert!(vm.balloon().unwrap().gives_hints);
        vm.start_dirty_log().unwrap();
        let mut words = vec![0; vm.ram().chunks()];
        vm.collect_dirty(&mut words).unwrap();
        vm.rearm_dirty(0, &vec![!0; vm.ram().chunks()]).unwrap();
        vm.begin_hints().unwrap();
        hint_all(&vm);
        vm.ram().write(GO, &[1]).unwrap();
        assert!(matches!(event(&vm), VmEvent::Doorbell { .. }), "it has written the page");
        let deadline = Instant::now() + PATIENCE;
        while !vm.hint_progress().unwrap().complete {
            assert!(Instant::now() < deadline, "no answer");
            std::thread::yield_now();
        }

        let mut free = vm.end_hints().unwrap();
        words.fill(0);
        vm.collect_dirty(&mut words).unwrap();
        free.iter_mut().zip(&words).for_each(|(free, written)| *free &= !written);
        let inside = (PAGES >> 18) as usize..((PAGES + BYTES) >> 18) as usize;
        let mut expected = vec![0; vm.ram().chunks()];
        expected[inside.clone()].fill(!0);
        expected[inside.start] &= !(1 << 1);
        assert_eq!(free, expected, "{dirty_log}: all but the one that was written");
        assert_eq!(word(&vm, PAGES + 8192), 0x0707_0707_0707_0707, "nothing is dropped");
    }
}

/// Counts the host's pages that back `bytes` of guest memory from `gpa` on.
fn resident_pages(vm: &Vm, gpa: u64, bytes: u64) -> usize {
    let region = vm.ram().mappings().next().unwrap();
    let address = region.get_host_address(MemoryRegionAddress(gpa)).unwrap() as u64;
    let mut entries = vec![0; bytes as usize / 4096 * 8];
    // A word for each page, in which bit 63 is "present"
    // (Documentation/admin-guide/mm/pagemap.rst).
    File::open("/proc/self/pagemap")
        .unwrap()
        .read_exact_at(&mut entries, address / 4096 * 8)
        .unwrap();
    entries.chunks(8).filter(|entry| entry[7] >> 7 == 1).count()
}

fn wait_for_used(vm: &Vm, queue: usize, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while Driver::new(vm.ram().memory(), queue).used().len() < count {
        assert!(Instant::now() < deadline, "no answer");
        std::thread::yield_now();
    }
}

#[test]
fn memory_in_the_balloon_goes_back_to_the_host_and_comes_back_as_zeros() {
    let vm = guest();
    inflate_all(&vm);
    assert_eq!(resident_pages(&vm, PAGES, BYTES), 1024);
    vm.resume().unwrap();
    assert_eq!(event(&vm), VmEvent::Doorbell { vcpu: 0, value: 0 }, "a page that was used again");
    vm.pause().unwrap();
    // The page that the guest used may be part of a huge one.
    let huge = 2 << 20;
    assert_eq!(resident_pages(&vm, PAGES + huge, BYTES - huge), 0);
    assert_eq!(word(&vm, PAGES), 5, "what was written since");
    assert_eq!(word(&vm, PAGES + 8192), 0);
    assert_eq!(word(&vm, PAGES - 8), 0);
    let balloon = vm.balloon().unwrap();
    assert_eq!(balloon.discarded.inflated_bytes, BYTES);
    assert!(balloon.has_driver && balloon.reporting && balloon.sends_statistics);
}

#[test]
fn a_migration_under_way_never_keeps_what_was_in_the_balloon() {
    let vm = guest();
    inflate_all(&vm);
    vm.start_dirty_log().unwrap();
    let mut words = vec![0; vm.ram().chunks()];
    vm.collect_dirty(&mut words).unwrap();
    vm.rearm_dirty(0, &words).unwrap();
    let destination = guest();
    copy_memory(&vm, &destination);
    assert_eq!(destination.ram().bytes(), vm.ram().bytes());

    words.fill(0);
    vm.resume().unwrap();
    assert_eq!(event(&vm), VmEvent::Doorbell { vcpu: 0, value: 0 });
    vm.pause().unwrap();
    vm.collect_dirty(&mut words).unwrap();
    let inside = (PAGES >> 18) as usize..((PAGES + BYTES) >> 18) as usize;
    assert!(words[inside.clone()].iter().all(|word| *word == !0), "all of them are to be sent");
    assert!(words[inside.end..].iter().all(|word| *word == 0), "and nothing behind them");
    send_dirty(&vm, &destination, &words);
    assert_same_memory(&vm, &destination);
    assert_eq!(word(&destination, PAGES + 4096), 0);
}

/// Copies the pages whose bits are set in `words`.
fn send_dirty(from: &Vm, to: &Vm, words: &[u64]) {
    let mut page = [0; 4096];
    for (chunk, word) in words.iter().enumerate() {
        for index in (0..64).filter(|index| word >> index & 1 == 1) {
            from.ram().copy_out(chunk, index, &mut page).unwrap();
            to.ram().copy_in(chunk, index, &page).unwrap();
        }
    }
}

fn assert_same_memory(one: &Vm, other: &Vm) {
    let [mut here, mut there] = [(); 2].map(|()| vec![0; crate::memory::CHUNK_BYTES]);
    for chunk in 0..one.ram().chunks() {
        one.ram().copy_out(chunk, 0, &mut here).unwrap();
        other.ram().copy_out(chunk, 0, &mut there).unwrap();
        assert!(here == there, "chunk {chunk}");
    }
}

#[test]
fn reported_memory_goes_back_to_the_host() {
    let vm = guest();
    // The device may process the buffers before it is notified.
    assert_eq!(resident_pages(&vm, PAGES, BYTES), 1024);
    vm.resume().unwrap();
    drive(&vm, 0, &handshake_for(&vm, FEATURES, QUEUES));
    let (queue, half) = (3, (BYTES / 2) as u32);
    Driver::new(vm.ram().memory(), queue)
        .offer(&[(PAGES, half, WRITABLE), (PAGES + u64::from(half), half, WRITABLE)]);
    drive(&vm, 0, &[(register::QUEUE_NOTIFY, queue as u32)]);
    wait_for_used(&vm, queue, 1);
    assert_eq!(resident_pages(&vm, PAGES, BYTES), 0);
    assert_eq!(vm.balloon().unwrap().discarded.reported_bytes, BYTES);
    assert_eq!(word(&vm, PAGES), 0);
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let vm = guest();
    vm.resume().unwrap();
    drive(&vm, 0, &handshake_for(&vm, FEATURES, QUEUES));
    let driver = Driver::new(vm.ram().memory(), 2);
    vm.ram().write(REQUEST, &[6, 0, 1, 2, 0, 0, 0, 0, 0, 0]).unwrap();
    driver.offer(&[(REQUEST, 10, 0)]);
    drive(&vm, 0, &[(register::QUEUE_NOTIFY, 2)]);
    let deadline = Instant::now() + PATIENCE;
    let statistics = loop {
        match vm.balloon().unwrap().statistics {
            Some((statistics, _)) => break statistics,
            None => assert!(Instant::now() < deadline, "no statistics"),
        }
    };
    assert_eq!(statistics, Statistics { available_bytes: Some(513), ..Statistics::default() });
    assert_eq!(driver.used(), []);
    vm.ask_balloon_statistics().unwrap();
    wait_for_used(&vm, 2, 1);
}

#[test]
fn the_target_is_shown_as_memory_kept_and_moves_with_the_guest() {
    let vm = guest();
    let all = vm.ram().bytes();
    let before = vm.balloon().unwrap();
    assert_eq!((before.target_bytes, before.actual_bytes, before.has_driver), (all, all, false));
    vm.set_balloon_target(all - 8192 - 1, SetBy::Optimizer).unwrap();
    assert_eq!(vm.balloon().unwrap().target_bytes, all - 3 * 4096);

    drive(&vm, 0, &handshake_for(&vm, FEATURES, QUEUES));
    let actual = register::CONFIG + 4;
    drive(&vm, 0, &[(actual, 2)]);
    assert_eq!(vm.balloon().unwrap().actual_bytes, all - 8192);
    drive(&vm, 0, &[(actual, u32::MAX)]);
    assert_eq!(vm.balloon().unwrap().actual_bytes, 0, "a driver may say what it likes");

    let state = vm.save_state().unwrap();
    let next = guest();
    copy_memory(&vm, &next);
    next.load_state(&VmState::from_bytes(&state.to_bytes().unwrap()).unwrap()).unwrap();
    assert_eq!(next.save_state().unwrap().devices, state.devices);
    assert_eq!(next.balloon().unwrap(), vm.balloon().unwrap());
}

#[test]
fn the_target_outlives_the_guests_system() {
    let mut kernel = tempfile::NamedTempFile::new().unwrap();
    kernel.write_all(&elf(CODE, &[0xeb, 0xfe])).unwrap(); // jmp $
    let shape =
        VmShape { devices: vec![DeviceConfig::Balloon(FreePages::Reported)], ..shape(16, 1) };
    let vm = Vm::create(&shape, Box::new(std::io::sink())).unwrap();
    let (kernel, cmdline) = (kernel.path().to_path_buf(), String::new());
    let source = KernelSource { kernel, initrd: None, cmdline, acpi: Acpi::On };
    vm.boot(&BootSource::Kernel(source)).unwrap();
    vm.resume().unwrap();
    drive(&vm, 0, &handshake_for(&vm, FEATURES, QUEUES));
    drive(&vm, 0, &[(register::CONFIG + 4, 9)]);
    vm.set_balloon_target(12 << 20, SetBy::Optimizer).unwrap();
    vm.reset().unwrap();
    let balloon = vm.balloon().unwrap();
    assert_eq!((balloon.target_bytes, balloon.actual_bytes), (12 << 20, 16 << 20));
    assert_eq!(balloon.set_by, SetBy::Optimizer);
    assert!(!balloon.has_driver);
}

#[test]
fn impossible_targets_and_missing_balloons_are_reported() {
    let vm = guest();
    for bytes in [0, MEMORY_BYTES_MIN - 1, (16 << 20) + 1, u64::MAX] {
        let error = vm.set_balloon_target(bytes, SetBy::Operator).unwrap_err();
        assert!(matches!(error, Error::Device(DeviceError::BalloonTarget { .. })), "{error}");
    }
    assert_eq!(
        vm.set_balloon_target(0, SetBy::Operator).unwrap_err().to_string(),
        "a balloon leaves the guest between 4 MiB and its 16 MiB, not 0 bytes"
    );
    let without = empty_vm(16, 1);
    assert_eq!(without.balloon().unwrap_err().to_string(), "this guest has no balloon");
    assert!(without.set_balloon_target(8 << 20, SetBy::Operator).is_err());
    assert!(without.ask_balloon_statistics().is_err());
    vm.stop();
    assert!(matches!(
        vm.set_balloon_target(8 << 20, SetBy::Operator),
        Err(Error::WrongState { .. })
    ));
}
