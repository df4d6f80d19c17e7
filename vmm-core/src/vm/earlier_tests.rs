//! Guests as earlier releases wrote them, which had virtio-mmio only: they arrive as the guests
//! that they were.
//!
//! | file | contents |
//! |---|---|
//! | `saved.txt` | a saved guest in the first format: shape of version 6, state of version 3, memory |
//! | `shape.txt`, `state.txt` | what a source sent of a guest with labels: version 7, version 3 |
//!
//! Both guests have a device of each type that there was, each with a driver that has set up its
//! queues. The source of entropy has answered one request, the balloon has a target, and `typed`
//! waits at the console. The files are hexadecimal, without rows of zeros.

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

use super::device_tests::{drive, register};
use super::net_tests::on_a_bridge;
use super::*;
use crate::devices::mmio::WINDOW_START;
use crate::snapshot::{self, SavedDisks};
use crate::testing::*;
use crate::virtio::balloon::FreePages;
use crate::virtio::block::Access;
use crate::virtio::testing::{Driver, WRITABLE};
use crate::{DeviceConfig, Labels};

/// Address of the requests' data.
const BUFFER: u64 = 0x50_0000;
/// First queue of the disk, among those of all devices.
const DISK_QUEUE: usize = 1;

/// Returns the bytes that a file has as text: its length, then rows with their offsets.
fn bytes(text: &str) -> Vec<u8> {
    let number = |digits: &str| usize::from_str_radix(digits, 16).unwrap();
    let mut lines = text.lines();
    let mut bytes = vec![0; number(lines.next().unwrap())];
    for (at, row) in lines.map(|line| line.split_once(' ').unwrap()) {
        for (index, digits) in row.as_bytes().chunks(2).enumerate() {
            bytes[number(at) + index] = number(std::str::from_utf8(digits).unwrap()) as u8;
        }
    }
    bytes
}

/// The parts of a saved guest: the bytes of its shape, of its state, and its memory as it is in the
/// file.
fn saved() -> [Vec<u8>; 3] {
    let file = bytes(include_str!("earlier_tests/saved.txt"));
    assert_eq!(file[..12], *b"LIGHTER\n\x01\0\0\0");
    let section = |at: usize| {
        let bytes = u32::from_le_bytes(*file[at..].first_chunk().unwrap()) as usize;
        file[at + 4..][..bytes].to_vec()
    };
    let shape = section(12);
    let state = section(16 + shape.len());
    let memory = file[20 + shape.len() + state.len() + 8..].to_vec();
    [shape, state, memory]
}

/// The bytes of the shape and of the state that a source sent.
fn sent() -> [Vec<u8>; 2] {
    let files = [include_str!("earlier_tests/shape.txt"), include_str!("earlier_tests/state.txt")];
    files.map(bytes)
}

/// Checks that the shape is that of the guest that was saved or sent.
fn expect_shape(shape: &VmShape, labels: &Labels) {
    assert_eq!((shape.memory_bytes, shape.vcpus, shape.machine), (16 << 20, 1, MachineKind::Mmio));
    assert_eq!(shape.labels, *labels);
    let [rng, block, balloon, vsock, net] = &shape.devices[..] else { panic!("{shape:?}") };
    assert_eq!(*rng, DeviceConfig::Rng);
    assert_eq!(*balloon, DeviceConfig::Balloon(FreePages::Reported));
    assert_eq!(*vsock, DeviceConfig::Vsock { cid: 3 });
    let (DeviceConfig::Block(disk), DeviceConfig::Net(net)) = (block, net) else {
        panic!("{shape:?}")
    };
    assert_eq!((disk.path(), disk.access()), (Path::new("/tmp/web.raw"), Access::ReadWrite));
    assert_eq!((disk.serial(), disk.bytes(), disk.queues()), ("serial-1", 1 << 20, 2));
    assert_eq!((net.link().to_string(), net.mtu()), ("bridge br0".to_owned(), 1500));
    assert_eq!((net.mac().to_string(), net.queue_pairs()), ("02:00:00:00:00:01".to_owned(), 1));
}

#[test]
fn the_first_format_of_a_saved_guest_is_read_and_its_parts_are_written_unchanged() {
    let file = file_with(&bytes(include_str!("earlier_tests/saved.txt")));
    let (shape, state) = snapshot::read_guest(file.path()).unwrap();
    expect_shape(&shape, &Labels::new());
    assert!(state.pci.is_none() && state.boot.is_none());
    assert_eq!(state.serial.fifo, b"typed");
    let [shape_bytes, state_bytes, _] = saved();
    assert!(shape.to_bytes().unwrap() == shape_bytes, "earlier releases would not take it back");
    assert!(state.to_bytes().unwrap() == state_bytes, "earlier releases would not take it back");
}

#[test]
fn what_an_earlier_source_sends_is_read_and_would_be_sent_back_unchanged() {
    let [shape_bytes, state_bytes] = sent();
    assert_eq!((shape_bytes[0], state_bytes[4]), (7, 3));
    let shape = VmShape::from_bytes(&shape_bytes).unwrap();
    expect_shape(&shape, &[("team".to_owned(), "shop".to_owned())].into());
    let state = VmState::from_bytes(&state_bytes).unwrap();
    assert_eq!(state.serial.fifo, b"typed");
    assert!(shape.to_bytes().unwrap() == shape_bytes && state.to_bytes().unwrap() == state_bytes);
}

/// Writes the guest as a saved one for this host: its processor is this host's, whatever it was.
fn for_this_host(shape: &VmShape, state: VmState, disk: &Path, memory: &[u8]) -> Vec<u8> {
    let mut devices = shape.devices.clone();
    for device in &mut devices {
        if let DeviceConfig::Block(config) = device {
            *config = config.at(disk);
        }
    }
    let own = VmShape { devices, labels: shape.labels.clone(), ..crate::testing::shape(16, 1) };
    let spinning = vm_of(&own, DirtyLog::Auto, &[0xeb, 0xfe], &[[0; 2]]); // jmp $
    let VmState { vcpus, irqchip, clock, .. } = spinning.save_state().unwrap();
    let state = VmState { vcpus, irqchip, clock, ..state };
    let mut file = b"LIGHTER\n\x01\0\0\0".to_vec();
    for section in [own.to_bytes().unwrap(), state.to_bytes().unwrap()] {
        file.extend((section.len() as u32).to_le_bytes());
        file.extend(section);
    }
    file.extend(xxh3_64(&file).to_le_bytes());
    file.extend(memory);
    file
}

fn status(vm: &Vm, slot: u64) -> u32 {
    let mut word = [0; 4];
    vm.machine.bus.read(WINDOW_START + slot * 4096 + u64::from(register::STATUS), &mut word);
    u32::from_le_bytes(word)
}

/// Has the device in a slot answer the request that its driver has put into a queue, of which the
/// first answers are `known`.
fn answer(vm: &Vm, slot: u64, queue: usize, known: usize) {
    drive(vm, slot, &[(register::QUEUE_NOTIFY, 0)]);
    let deadline = std::time::Instant::now() + PATIENCE;
    while Driver::new(vm.ram().memory(), queue).used().len() <= known {
        assert!(std::time::Instant::now() < deadline, "no answer; status {:#x}", status(vm, slot));
        std::thread::yield_now();
    }
}

#[test]
fn its_devices_serve_the_drivers_that_they_had() {
    on_a_bridge(|| {
        let [shape, state, memory] = saved();
        for [shape, state] in [[shape, state], sent()] {
            let [shape, state] = [&shape, &state];
            let shape = VmShape::from_bytes(shape).unwrap();
            let state = VmState::from_bytes(state).unwrap();
            let disk = file_with(&[7; 1 << 20]);
            let file = file_with(&for_this_host(&shape, state.clone(), disk.path(), &memory));
            let (options, sink) = (VmOptions::default(), Box::new(std::io::sink()));
            let restored = snapshot::restore(file.path(), SavedDisks::Vouched, &options, sink);
            let vm = restored.unwrap();
            assert_eq!(vm.save_state().unwrap().devices, state.devices);
            vm.resume().unwrap();
            assert_eq!([0, 1, 2, 3, 4].map(|slot| status(&vm, slot)), [0xf; 5]);
            assert_eq!(vm.balloon().unwrap().target_bytes, 8 << 20);

            Driver::new(vm.ram().memory(), 0).offer(&[(BUFFER, 64, WRITABLE)]);
            answer(&vm, 0, 0, 1);
            assert_ne!(word(&vm, BUFFER), 0);
            let (header, data, status) = (BUFFER + 0x1000, BUFFER + 0x2000, BUFFER + 0x3000);
            let read = [(header, 16, 0), (data, 512, WRITABLE), (status, 1, WRITABLE)];
            Driver::new(vm.ram().memory(), DISK_QUEUE).offer(&read);
            answer(&vm, 1, DISK_QUEUE, 0);
            assert_eq!(word(&vm, data), 0x0707_0707_0707_0707);
        }
    });
}
