//! Devices on the PCI bus, on real KVM: a guest that drives one with its own instructions, its
//! interrupts, its way to another VM, and guests that put nonsense everywhere.

use std::collections::BTreeMap;
use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::boot::start_protected_mode;
use crate::snapshot::{self, DiskCopies};
use crate::testing::*;
use crate::virtio::balloon::FreePages;
use crate::virtio::testing::{Driver, WRITABLE};
use crate::{DeviceConfig, MachineKind, VmEvent, VmState};

mod hot_plug;

/// Where the VMM puts the registers of the first device, and where a test moves them.
const BAR: u32 = 0xc000_8000;
const ELSEWHERE: u32 = 0xd123_0000;
/// Configuration space of the first device.
const CONFIG: u32 = 0xe800_8000;

/// Offsets in the BAR.
const STATUS: u32 = 0x14;
const NOTIFY: u32 = 0x3000;
const TABLE: u32 = 0x4000;

/// Address of the requests' data.
const BUFFER: u64 = 0x30_0000;
/// Vector of the processor that the queue's interrupts raise.
const VECTOR: u32 = 0x51;

/// A write by the guest: an address, and what is written in so many bytes.
type Write = (u32, u32, usize);

/// A paused guest with these devices that only spins, and whose local APIC takes interrupts.
fn vm_on_pci(devices: Vec<DeviceConfig>) -> Vm {
    let shape = VmShape { devices, machine: MachineKind::Pci, ..shape(16, 1) };
    let vm = Vm::create(&shape, Box::new(std::io::sink())).unwrap();
    vm.ram().write(CODE, &[0xeb, 0xfe]).unwrap(); // jmp $
    start_protected_mode(&vm, CODE).unwrap();
    let enable = |vcpu: &mut Vcpu| {
        const SPURIOUS: usize = 0xf0;
        let mut lapic = vcpu.fd().get_lapic().unwrap();
        lapic.regs[SPURIOUS] = 0xff_u8.cast_signed();
        lapic.regs[SPURIOUS + 1] = 1;
        vcpu.fd().set_lapic(&lapic).unwrap();
    };
    vm.on_vcpu(0, enable).unwrap();
    vm
}

/// Whether the interrupt of the queue waits in the local APIC: the guest runs with interrupts off.
fn has_interrupt(vm: &Vm) -> bool {
    let requested = |vcpu: &mut Vcpu| {
        const REQUESTS: u32 = 0x200;
        let lapic = vcpu.fd().get_lapic().unwrap();
        let byte = REQUESTS + VECTOR / 32 * 0x10 + VECTOR % 32 / 8;
        lapic.regs[byte as usize].cast_unsigned() >> (VECTOR % 8) & 1 == 1
    };
    vm.on_vcpu(0, requested).unwrap()
}

/// Waits until the interrupt has come; KVM may deliver it a little later than it was raised.
fn await_interrupt(vm: &Vm) {
    let deadline = Instant::now() + PATIENCE;
    while !has_interrupt(vm) {
        assert!(Instant::now() < deadline, "no interrupt");
        std::thread::yield_now();
    }
}

/// Writes by which a driver sets up a device with one queue at `bar`, with MSI-X vector 1 for it.
fn handshake(vm: &Vm, bar: u32) -> Vec<Write> {
    let queue = Driver::new(vm.ram().memory(), 0).registers();
    let entry = bar + TABLE + 16;
    vec![
        (bar + STATUS, 1, 1),
        (bar + STATUS, 3, 1),
        (bar + 8, 1, 4),
        (bar + 0xc, 1, 4),
        (bar + STATUS, 0xb, 1),
        (CONFIG + 0x42, 0x8000, 2),
        (entry, 0xfee0_0000, 4),
        (entry + 4, 0, 4),
        (entry + 8, VECTOR, 4),
        (entry + 12, 0, 4),
        (bar + 0x16, 0, 2),
        (bar + 0x18, queue.size.into(), 2),
        (bar + 0x1a, 1, 2),
        (bar + 0x20, queue.descriptors as u32, 4),
        (bar + 0x28, queue.available as u32, 4),
        (bar + 0x30, queue.used as u32, 4),
        (bar + 0x1c, 1, 2),
        (bar + STATUS, 0xf, 1),
    ]
}

/// A program in 32-bit mode that does this, rings the doorbell and spins.
fn program(writes: &[Write]) -> Vec<u8> {
    let mut code = Vec::new();
    for (address, value, bytes) in writes {
        // mov byte, word or dword [address], value
        code.extend(match bytes {
            1 => &[0xc6, 0x05][..],
            2 => &[0x66, 0xc7, 0x05],
            _ => &[0xc7, 0x05],
        });
        code.extend(address.to_le_bytes());
        code.extend(&value.to_le_bytes()[..*bytes]);
    }
    code.extend([0x66, 0xba, 0xc0, 0x04]); // mov dx, DOORBELL_PORT
    code.extend([0xb8, 1, 0, 0, 0, 0xef]); // mov eax, 1; out dx, eax
    code.extend([0xeb, 0xfe]); // jmp $
    code
}

/// A guest that moves the registers of its entropy device, sets it up there and notifies it.
fn driving_vm() -> Vm {
    let vm = vm_on_pci(vec![DeviceConfig::Rng]);
    let mut writes = vec![(CONFIG + 4, 0, 2), (CONFIG + 0x10, ELSEWHERE, 4), (CONFIG + 4, 6, 2)];
    writes.extend(handshake(&vm, ELSEWHERE));
    writes.push((ELSEWHERE + NOTIFY, 0, 2));
    vm.ram().write(CODE, &program(&writes)).unwrap();
    vm
}

fn offer_entropy(vm: &Vm) {
    Driver::new(vm.ram().memory(), 0).offer(&[(BUFFER, 64, WRITABLE)]);
}

fn wait_for_used(vm: &Vm, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while Driver::new(vm.ram().memory(), 0).used().len() < count {
        assert!(Instant::now() < deadline, "no answer");
        std::thread::yield_now();
    }
}

/// Writes from the VMM, as if a vCPU had written.
fn drive(vm: &Vm, writes: &[Write]) {
    for (address, value, bytes) in writes {
        vm.machine.bus.write((*address).into(), &value.to_le_bytes()[..*bytes]);
    }
}

fn read(vm: &Vm, address: u32) -> u32 {
    let mut word = [0; 4];
    vm.machine.bus.read(address.into(), &mut word);
    u32::from_le_bytes(word)
}

/// A running guest has moved its device, got entropy and been interrupted.
fn vm_that_ran() -> Vm {
    let vm = driving_vm();
    offer_entropy(&vm);
    vm.resume().unwrap();
    assert_eq!(event(&vm), VmEvent::Doorbell { vcpu: 0, value: 1 });
    wait_for_used(&vm, 1);
    vm.pause().unwrap();
    vm
}

#[test]
fn a_guest_moves_a_device_and_gets_entropy_and_interrupts() {
    let vm = vm_that_ran();
    await_interrupt(&vm);
    assert_ne!(word(&vm, BUFFER), 0);
    assert_eq!(read(&vm, ELSEWHERE + STATUS) & 0xff, 0xf);
    assert_eq!(read(&vm, BAR + STATUS), u32::MAX, "nothing is left where it was");
}

#[test]
fn a_device_continues_in_another_vm_at_its_address() {
    let vm = vm_that_ran();
    offer_entropy(&vm);
    let state = vm.save_state().unwrap();
    let next = vm_on_pci(vec![DeviceConfig::Rng]);
    copy_memory(&vm, &next);
    let sent = VmState::from_bytes(&state.to_bytes().unwrap()).unwrap();
    next.load_state(&sent).unwrap();
    let loaded = next.save_state().unwrap();
    assert_eq!((loaded.devices, loaded.pci), (state.devices, state.pci));
    next.resume().unwrap();
    wait_for_used(&next, 2);
    assert_eq!(read(&next, ELSEWHERE + STATUS) & 0xff, 0xf);

    // Its driver's notifications arrive at the new address too: notify: mov word [address], 0;
    // jmp notify.
    next.pause().unwrap();
    let [a0, a1, a2, a3] = (ELSEWHERE + NOTIFY).to_le_bytes();
    let notify = [0x66, 0xc7, 0x05, a0, a1, a2, a3, 0, 0, 0xeb, 0xf5];
    next.ram().write(CODE, &notify).unwrap();
    start_protected_mode(&next, CODE).unwrap();
    next.resume().unwrap();
    offer_entropy(&next);
    wait_for_used(&next, 3);
}

#[test]
fn an_interrupt_that_was_lost_on_the_way_comes_again() {
    let vm = vm_that_ran();
    let forget = |vcpu: &mut Vcpu| {
        let mut lapic = vcpu.fd().get_lapic().unwrap();
        lapic.regs[0x200..0x280].fill(0);
        vcpu.fd().set_lapic(&lapic).unwrap();
    };
    await_interrupt(&vm);
    vm.on_vcpu(0, forget).unwrap();
    assert!(!has_interrupt(&vm));
    vm.resume().unwrap();
    vm.pause().unwrap();
    await_interrupt(&vm);
}

#[test]
fn configuration_space_is_reached_by_memory_and_by_ports() {
    let vm = vm_on_pci(vec![DeviceConfig::Rng, DeviceConfig::Rng]);
    assert_eq!(read(&vm, CONFIG), 0x1044_1af4);
    assert_eq!(read(&vm, CONFIG + 0x8000 + 0x10), BAR + 0x8000);
    for absent in [CONFIG + 0x1000, CONFIG + 0x1_0000, 0xe80f_f000] {
        assert_eq!(read(&vm, absent), u32::MAX, "{absent:#x}");
    }
    let by_ports = |device: u32| {
        let bus = &vm.machine.bus;
        let selected = bus.write_port(0xcf8, &(1 << 31 | device << 11).to_le_bytes());
        assert_eq!(selected, crate::virtio::BusWrite::Done);
        let mut word = [0; 4];
        assert!(bus.read_port(0xcfc, &mut word));
        u32::from_le_bytes(word)
    };
    assert_eq!([0, 1, 2, 3].map(by_ports), [0x0d57_8086, 0x1044_1af4, 0x1044_1af4, u32::MAX]);
    let mut byte = [0];
    assert!(!vm.machine.bus.read_port(0xcf9, &mut byte), "the reset register");
}

#[test]
fn a_state_of_another_machine_is_refused() {
    let state = vm_on_pci(vec![DeviceConfig::Rng]).save_state().unwrap();
    let shape = VmShape { devices: vec![DeviceConfig::Rng], ..shape(16, 1) };
    let mmio = Vm::create(&shape, Box::new(std::io::sink())).unwrap();
    let refused = mmio.load_state(&state).unwrap_err().to_string();
    assert!(refused.contains("its pci bus is not that of the virtual machine"), "{refused}");
    let state = mmio.save_state().unwrap();
    assert_eq!(state.to_bytes().unwrap()[4..6], [3, 0], "as of earlier releases");
    let refused = vm_on_pci(vec![DeviceConfig::Rng]).load_state(&state).unwrap_err().to_string();
    assert!(refused.contains("its pci bus is not that of the virtual machine"), "{refused}");
}

#[test]
fn a_saved_guest_keeps_its_bus() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest");
    let vm = vm_that_ran();
    let copies = DiskCopies { paths: BTreeMap::new(), modified_unix_s: 0 };
    snapshot::save(&vm, &path, &copies).unwrap();
    let restored = restore_from(&path).unwrap();
    assert_eq!(restored.shape(), vm.shape());
    assert_eq!(restored.save_state().unwrap().pci, vm.save_state().unwrap().pci);
    assert_eq!(read(&restored, ELSEWHERE + STATUS) & 0xff, 0xf);
}

#[test]
fn devices_that_a_guest_lays_over_each_other_harm_nothing_else() {
    let vm = vm_on_pci(vec![DeviceConfig::Rng, DeviceConfig::Rng, DeviceConfig::Rng]);
    vm.resume().unwrap();
    for place in [BAR + 2 * 0x8000, 0x0010_0000, 0xfee0_0000, 0xfec0_0000, 0xe800_0000, 0xffff_8000]
    {
        for device in [0, 1] {
            drive(&vm, &[(CONFIG + device * 0x8000 + 0x10, place, 4)]);
        }
        assert_eq!(read(&vm, CONFIG + 0x10), place);
    }
    drive(&vm, &[(CONFIG + 0x10, BAR, 4)]);
    drive(&vm, &handshake(&vm, BAR));
    offer_entropy(&vm);
    drive(&vm, &[(BAR + NOTIFY, 0, 2)]);
    wait_for_used(&vm, 1);
    vm.pause().unwrap();
    await_interrupt(&vm);
}

#[test]
fn a_reset_puts_devices_back() {
    let vm = vm_that_ran();
    let pristine = vm.pristine.clone().unwrap();
    vm.load_state(&pristine).unwrap();
    assert_eq!(read(&vm, CONFIG + 0x10), BAR);
    assert_eq!(read(&vm, BAR + STATUS) & 0xff, 0);
    assert_eq!(read(&vm, ELSEWHERE), u32::MAX);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Nonsense in configuration space, registers and MSI-X tables, in any order: the devices
    /// survive, and can be saved.
    #[test]
    fn no_guest_breaks_the_vmm(
        writes in prop::collection::vec((0..3u32, 0..3u8, 0..0x5100u32, any::<u32>(), 0..3usize), 0..60),
    ) {
        let devices = || vec![DeviceConfig::Rng, DeviceConfig::Balloon(FreePages::Reported), DeviceConfig::Rng];
        let vm = vm_on_pci(devices());
        vm.resume().unwrap();
        drive(&vm, &handshake(&vm, BAR));
        for (device, what, offset, value, width) in writes {
            let bytes = [1, 2, 4][width];
            let address = match what {
                0 => CONFIG + device * 0x8000 + offset % 0x100,
                1 => BAR + device * 0x8000 + offset % 0x40,
                _ => BAR + device * 0x8000 + offset,
            };
            drive(&vm, &[(address, value, bytes)]);
        }
        vm.pause().unwrap();
        let state = vm.save_state().unwrap();
        let next = vm_on_pci(devices());
        copy_memory(&vm, &next);
        next.load_state(&state).unwrap();
        let loaded = next.save_state().unwrap();
        prop_assert_eq!((loaded.devices, loaded.pci), (state.devices, state.pci));
    }
}
