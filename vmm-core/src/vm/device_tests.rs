//! Virtio devices on real KVM: a guest that drives them with its own instructions, saving, dirty
//! pages, locks, and guests that break the rules.

use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::boot::start_protected_mode;
use crate::devices::mmio::WINDOW_START;
use crate::testing::*;
use crate::virtio::balloon::FreePages;
use crate::virtio::block::{Access, BlockConfig};
use crate::virtio::testing::{Driver, WRITABLE};
use crate::{DeviceConfig, DeviceError, VmEvent, VmState};

/// Registers of virtio-mmio.
pub(super) mod register {
    pub(in crate::vm) const DRIVER_FEATURES: u32 = 0x20;
    pub(in crate::vm) const DRIVER_FEATURES_SEL: u32 = 0x24;
    pub(in crate::vm) const QUEUE_SEL: u32 = 0x30;
    pub(in crate::vm) const QUEUE_NUM: u32 = 0x38;
    pub(in crate::vm) const QUEUE_READY: u32 = 0x44;
    pub(in crate::vm) const QUEUE_NOTIFY: u32 = 0x50;
    #[cfg(feature = "vhost-tests")]
    pub(in crate::vm) const INTERRUPT_STATUS: u32 = 0x60;
    #[cfg(feature = "vhost-tests")]
    pub(in crate::vm) const INTERRUPT_ACK: u32 = 0x64;
    pub(in crate::vm) const STATUS: u32 = 0x70;
    pub(in crate::vm) const QUEUE_DESC: u32 = 0x80;
    pub(in crate::vm) const QUEUE_DRIVER: u32 = 0x90;
    pub(in crate::vm) const QUEUE_DEVICE: u32 = 0xa0;
    pub(in crate::vm) const CONFIG: u32 = 0x100;
}

/// Address of the requests' data.
const BUFFER: u64 = 0x30_0000;

/// A paused guest that only spins.
fn vm_with_devices(devices: Vec<DeviceConfig>) -> Vm {
    let shape = VmShape { devices, ..shape(16, 1) };
    let vm = Vm::create(&shape, Box::new(std::io::sink())).unwrap();
    vm.ram().write(CODE, &[0xeb, 0xfe]).unwrap(); // jmp $
    start_protected_mode(&vm, CODE).unwrap();
    vm
}

fn disk(path: &Path) -> DeviceConfig {
    DeviceConfig::Block(BlockConfig::new(path, Access::ReadWrite, "").unwrap())
}

fn disk_file() -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(1 << 20).unwrap();
    file
}

/// Register writes by which a driver sets up a device with one queue.
fn handshake(vm: &Vm) -> Vec<(u32, u32)> {
    handshake_for(vm, 0, 1)
}

/// Register writes by which a driver sets up a device with `features` of its type, and `queues`
/// queues.
pub(super) fn handshake_for(vm: &Vm, features: u32, queues: usize) -> Vec<(u32, u32)> {
    let mut writes = vec![
        (register::STATUS, 1),
        (register::STATUS, 3),
        (register::DRIVER_FEATURES_SEL, 0),
        (register::DRIVER_FEATURES, features),
        (register::DRIVER_FEATURES_SEL, 1),
        (register::DRIVER_FEATURES, 1),
        (register::STATUS, 0xb),
    ];
    for index in 0..queues {
        let queue = Driver::new(vm.ram().memory(), index).registers();
        writes.extend([
            (register::QUEUE_SEL, index as u32),
            (register::QUEUE_NUM, queue.size.into()),
            (register::QUEUE_DESC, queue.descriptors as u32),
            (register::QUEUE_DRIVER, queue.available as u32),
            (register::QUEUE_DEVICE, queue.used as u32),
            (register::QUEUE_READY, 1),
        ]);
    }
    writes.push((register::STATUS, 0xf));
    writes
}

/// A program in 32-bit mode that writes to registers of slot 0, rings the doorbell and spins.
fn program(writes: &[(u32, u32)]) -> Vec<u8> {
    let mut code = stores(writes);
    code.extend([0x66, 0xba, 0xc0, 0x04]); // mov dx, DOORBELL_PORT
    code.extend([0xb8, 1, 0, 0, 0, 0xef]); // mov eax, 1; out dx, eax
    code.extend([0xeb, 0xfe]); // jmp $
    code
}

/// Instructions that write to registers of slot 0.
pub(super) fn stores(writes: &[(u32, u32)]) -> Vec<u8> {
    let mut code = Vec::new();
    for (register, value) in writes {
        code.extend([0xc7, 0x05]); // mov dword [address], value
        code.extend((WINDOW_START as u32 + register).to_le_bytes());
        code.extend(value.to_le_bytes());
    }
    code
}

/// A guest that sets up the device in slot 0 and notifies its queue.
fn driving_vm(devices: Vec<DeviceConfig>) -> Vm {
    let vm = vm_with_devices(devices);
    let mut writes = handshake(&vm);
    writes.push((register::QUEUE_NOTIFY, 0));
    vm.ram().write(CODE, &program(&writes)).unwrap();
    vm
}

/// Writes registers from the VMM, as if a vCPU had written them.
pub(super) fn drive(vm: &Vm, slot: u64, writes: &[(u32, u32)]) {
    for (register, value) in writes {
        let address = WINDOW_START + slot * 4096 + u64::from(*register);
        vm.machine.bus.write(address, &value.to_le_bytes());
    }
}

/// Returns a register of the device in `slot`.
pub(super) fn read(vm: &Vm, slot: u64, register: u32) -> u32 {
    let mut word = [0; 4];
    vm.machine.bus.read(WINDOW_START + slot * 4096 + u64::from(register), &mut word);
    u32::from_le_bytes(word)
}

fn status(vm: &Vm, slot: u64) -> u32 {
    read(vm, slot, register::STATUS)
}

fn wait_for_used(vm: &Vm, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while Driver::new(vm.ram().memory(), 0).used().len() < count {
        assert!(Instant::now() < deadline, "no answer; status {:#x}", status(vm, 0));
        std::thread::yield_now();
    }
}

fn offer_entropy(vm: &Vm) {
    Driver::new(vm.ram().memory(), 0).offer(&[(BUFFER, 64, WRITABLE)]);
}

#[test]
fn a_guest_is_restored_with_the_size_that_its_disk_has_got() {
    let file = disk_file();
    let vm = vm_with_devices(vec![disk(file.path())]);
    vm.take_over().unwrap();
    let other = Path::new("/no/disk");
    assert!(matches!(vm.grow_disk(other, None), Err(Error::Device(DeviceError::NoDisk))));
    assert_eq!(vm.grow_disk(file.path(), Some(3 << 20)).unwrap(), 3 << 20);
    let sizes = |vm: &Vm| {
        let in_shape = vm.shape().disks().next().map(BlockConfig::bytes);
        (in_shape, vm.disks().first().map(|(_, disk)| disk.bytes()))
    };
    assert_eq!(sizes(&vm), (Some(3 << 20), Some(3 << 20)));
    let state = vm.save_state().unwrap();
    let shape = vm.shape();
    drop(vm);
    let restored = Vm::create(&shape, Box::new(std::io::sink())).unwrap();
    restored.load_state(&state).unwrap();
    assert_eq!(sizes(&restored), (Some(3 << 20), Some(3 << 20)));
}

#[test]
fn a_guest_gets_entropy_by_its_own_instructions() {
    let vm = driving_vm(vec![DeviceConfig::Rng]);
    offer_entropy(&vm);
    vm.resume().unwrap();
    assert_eq!(event(&vm), VmEvent::Doorbell { vcpu: 0, value: 1 });
    wait_for_used(&vm, 1);
    assert_ne!(word(&vm, BUFFER), 0);
    assert_eq!(status(&vm, 0), 0xf);
}

#[test]
fn what_a_device_writes_is_dirty_memory() {
    let vm = driving_vm(vec![DeviceConfig::Rng]);
    offer_entropy(&vm);
    vm.start_dirty_log().unwrap();
    let mut words = vec![0; vm.ram().chunks()];
    vm.collect_dirty(&mut words).unwrap();
    vm.rearm_dirty(0, &words).unwrap();
    words.fill(0);

    vm.resume().unwrap();
    wait_for_used(&vm, 1);
    vm.pause().unwrap();
    vm.collect_dirty(&mut words).unwrap();
    let dirty = |gpa: u64| words[(gpa >> 18) as usize] >> (gpa >> 12 & 63) & 1 == 1;
    let used = Driver::new(vm.ram().memory(), 0).registers().used;
    assert!(dirty(used), "the used ring");
    assert!(dirty(BUFFER), "the entropy");
    assert!(!dirty(BUFFER + 4096));
}

#[test]
fn a_device_continues_in_another_vm_without_another_notification() {
    let vm = driving_vm(vec![DeviceConfig::Rng]);
    offer_entropy(&vm);
    vm.resume().unwrap();
    wait_for_used(&vm, 1);
    vm.pause().unwrap();
    offer_entropy(&vm);
    let state = vm.save_state().unwrap();

    let next = vm_with_devices(vec![DeviceConfig::Rng]);
    copy_memory(&vm, &next);
    next.load_state(&VmState::from_bytes(&state.to_bytes().unwrap()).unwrap()).unwrap();
    assert_eq!(next.save_state().unwrap().devices, state.devices);
    next.resume().unwrap();
    wait_for_used(&next, 2);
    assert_eq!(status(&next, 0), 0xf);
}

#[test]
fn nothing_happens_while_paused() {
    let vm = driving_vm(vec![DeviceConfig::Rng]);
    vm.resume().unwrap();
    assert_eq!(event(&vm), VmEvent::Doorbell { vcpu: 0, value: 1 });
    vm.pause().unwrap();
    offer_entropy(&vm);
    drive(&vm, 0, &[(register::QUEUE_NOTIFY, 0)]);
    // The thread has been through its loop once it has answered a job.
    vm.machine.bus.pause().unwrap();
    vm.machine.bus.pause().unwrap();
    assert_eq!(Driver::new(vm.ram().memory(), 0).used(), []);
    vm.resume().unwrap();
    wait_for_used(&vm, 1);
}

#[test]
fn a_state_of_other_devices_is_refused() {
    let state = vm_with_devices(vec![DeviceConfig::Rng]).save_state().unwrap();
    let refusal = |devices| vm_with_devices(devices).load_state(&state).unwrap_err().to_string();
    assert!(
        refusal(Vec::new()).contains("1 virtio devices in the state, 0 in the virtual machine")
    );
    let file = disk_file();
    assert!(refusal(vec![disk(file.path())]).contains("disk: it has id 4, not 2"));
}

#[test]
fn one_running_guest_has_a_disk() {
    let file = disk_file();
    let [first, second] = [(), ()].map(|()| vm_with_devices(vec![disk(file.path())]));
    first.resume().unwrap();
    let refused = second.resume().unwrap_err();
    assert!(matches!(refused, Error::Device(DeviceError::DiskInUse { .. })), "{refused}");
    assert_eq!(second.run_state(), RunState::Paused);

    first.pause().unwrap();
    assert!(second.resume().is_err(), "a paused guest keeps its disk");
    first.release().unwrap();
    second.resume().unwrap();
    assert!(first.resume().is_err());
    assert!(matches!(second.release(), Err(Error::WrongState { .. })));
    drop(second);
    let refused = first.resume().unwrap_err();
    assert!(matches!(refused, Error::Device(DeviceError::DiskWritten { .. })), "{refused}");
    first.trust_disks().unwrap();
    first.resume().unwrap();
}

#[test]
fn a_host_without_the_disk_is_detected_before_anything_is_created() {
    let file = disk_file();
    let shape = VmShape { devices: vec![disk(file.path())], ..shape(16, 1) };
    let sent = VmShape::from_bytes(&shape.to_bytes().unwrap()).unwrap();
    sent.check_host().unwrap();
    let path = file.path().display().to_string();
    drop(file);
    let error = sent.check_host().unwrap_err().to_string();
    assert!(error.starts_with(&format!("cannot use disk {path}: No such file")), "{error}");
}

#[test]
fn a_guest_that_breaks_one_device_keeps_the_others() {
    let vm = vm_with_devices(vec![DeviceConfig::Rng, DeviceConfig::Rng]);
    vm.resume().unwrap();
    let mut nonsense = handshake(&vm);
    for (register, value) in &mut nonsense {
        if *register == register::QUEUE_DEVICE {
            *value = 0xf000_0000;
        }
    }
    drive(&vm, 1, &nonsense);
    assert_eq!(status(&vm, 1), 0x4f, "it needs a reset");
    drive(&vm, 0, &handshake(&vm));
    offer_entropy(&vm);
    for _ in 0..1000 {
        drive(&vm, 0, &[(register::QUEUE_NOTIFY, 0)]);
        drive(&vm, 1, &[(register::QUEUE_NOTIFY, 0)]);
    }
    wait_for_used(&vm, 1);
    drive(&vm, 1, &[(register::STATUS, 0)]);
    assert_eq!(status(&vm, 1), 0);
}

#[test]
fn memory_without_a_device_reads_as_ones() {
    let vm = vm_with_devices(vec![DeviceConfig::Rng]);
    for address in [WINDOW_START + 4096, WINDOW_START - 4, 0xe000_0000] {
        let mut word = [0; 4];
        vm.machine.bus.read(address, &mut word);
        assert_eq!(word, [0xff; 4], "{address:#x}");
        vm.machine.bus.write(address, &word);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Nonsense in registers and rings, in any order: the devices survive, and can be saved.
    #[test]
    fn no_guest_breaks_the_vmm(
        rings in prop::collection::vec(any::<u8>(), 0x1000),
        writes in prop::collection::vec((0..3u64, 0..0x110u32, any::<u32>()), 0..100),
    ) {
        let file = disk_file();
        let devices = || vec![disk(file.path()), DeviceConfig::Rng, DeviceConfig::Balloon(FreePages::Reported)];
        let vm = vm_with_devices(devices());
        vm.resume().unwrap();
        let registers = Driver::new(vm.ram().memory(), 0).registers();
        vm.ram().write(registers.descriptors, &rings).unwrap();
        for slot in [0, 1, 2] {
            drive(&vm, slot, &handshake(&vm));
            drive(&vm, slot, &[(register::QUEUE_NOTIFY, 0)]);
        }
        for (slot, register, value) in writes {
            drive(&vm, slot, &[(register & !3, value), (register, value)]);
        }
        let patience = Instant::now();
        vm.pause().unwrap();
        prop_assert!(patience.elapsed() < Duration::from_secs(60));
        let state = vm.save_state().unwrap();
        let next = vm_with_devices(devices());
        copy_memory(&vm, &next);
        vm.release().unwrap();
        next.load_state(&state).unwrap();
        prop_assert_eq!(next.save_state().unwrap().devices, state.devices);
    }
}
