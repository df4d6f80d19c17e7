//! Each rule of the registers, and that no sequence of accesses breaks them.

use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;

use super::*;
use crate::virtio::Signals;
use crate::virtio::device::DeviceKind;
use crate::virtio::registers::{TransportState, is_possible_status};
use crate::virtio::signals::{Cause, ConfigSpace};

const OFFERED: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << 29 | 1 << 5;
const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const FEATURES_OK: u32 = 8;

const STATUS: u64 = 0x70;
const READY: u64 = 0x44;

fn transport() -> Mmio {
    let config = ConfigSpace::with_writable(vec![0xab; 16], 8..16);
    let signals = Arc::new(Signals::new(config));
    let registers = Registers::new(DeviceKind::Block, OFFERED, &[256, 128], signals);
    Mmio::new(slots(1).next().unwrap(), registers)
}

fn read(transport: &Mmio, offset: u64) -> u32 {
    let mut word = [0xee; 4];
    transport.read(offset, &mut word);
    u32::from_le_bytes(word)
}

fn write(transport: &mut Mmio, offset: u64, value: u32) -> Effect {
    transport.write(offset, &value.to_le_bytes())
}

fn accept(transport: &mut Mmio, features: u64) {
    for page in [0, 1] {
        write(transport, 0x24, page);
        write(transport, 0x20, (features >> (page * 32)) as u32);
    }
}

fn set_up_queue(transport: &mut Mmio, queue: u32) {
    write(transport, 0x30, queue);
    write(transport, 0x38, 64);
    for (register, value) in [(0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000)] {
        write(transport, register, value);
    }
    write(transport, READY, 1);
}

/// Registers with agreed features and one ready queue.
fn negotiated() -> Mmio {
    let mut transport = transport();
    write(&mut transport, STATUS, 1);
    write(&mut transport, STATUS, 3);
    accept(&mut transport, V1);
    write(&mut transport, STATUS, 0xb);
    set_up_queue(&mut transport, 0);
    transport
}

fn active() -> Mmio {
    let mut transport = negotiated();
    assert_eq!(write(&mut transport, STATUS, 0xf), Effect::Activate);
    transport
}

#[test]
fn a_device_introduces_itself() {
    let transport = transport();
    assert_eq!(read(&transport, 0), u32::from_le_bytes(*b"virt"));
    assert_eq!((read(&transport, 4), read(&transport, 8)), (2, 2));
    assert_eq!(read(&transport, 0x0c), u32::from_le_bytes(*b"LGHT"));
    assert_eq!(read(&transport, 0xb0), u32::MAX, "no shared memory");
}

#[test]
fn features_are_shown_by_page() {
    let mut transport = transport();
    assert_eq!(read(&transport, 0x10), 1 << 29 | 1 << 5);
    write(&mut transport, 0x14, 1);
    assert_eq!(read(&transport, 0x10), 1);
    write(&mut transport, 0x14, 2);
    assert_eq!(read(&transport, 0x10), 0);
}

#[test]
fn the_handshake_leads_to_an_active_device_once() {
    let mut transport = active();
    assert_eq!(read(&transport, STATUS), 0xf);
    assert_eq!(transport.registers.features(), V1);
    assert_eq!(write(&mut transport, STATUS, 0xf), Effect::None);
    assert_eq!(transport.registers.queues()[0].size, 64);
}

#[test]
fn steps_cannot_be_skipped() {
    let mut transport = transport();
    for value in [2, 8, 4, 0xe] {
        assert_eq!(write(&mut transport, STATUS, value), Effect::None);
        assert_eq!(read(&transport, STATUS), 0, "{value}");
    }
    write(&mut transport, STATUS, 5);
    assert_eq!(read(&transport, STATUS), 1, "ready without features");
}

#[test]
fn bits_are_taken_back_by_a_reset_only() {
    let mut transport = active();
    write(&mut transport, STATUS, 3);
    assert_eq!(read(&transport, STATUS), 0xf);
    assert_eq!(write(&mut transport, STATUS, 0), Effect::Reset);
    assert_eq!(read(&transport, STATUS), 0);
    assert_eq!(transport.registers.features(), 0);
    assert!(!transport.registers.queues()[0].ready);
    assert_eq!(transport.registers.queues()[0].size, 256);
}

#[test]
fn features_that_are_not_offered_or_not_modern_are_refused() {
    for features in [V1 | 1, 1 << 5, 0, V1 | 1 << 60] {
        let mut transport = transport();
        write(&mut transport, STATUS, 3);
        accept(&mut transport, features);
        write(&mut transport, STATUS, 0xb);
        assert_eq!(read(&transport, STATUS), 3, "{features:#x}");
    }
}

#[test]
fn features_are_fixed_once_negotiated() {
    let mut transport = negotiated();
    accept(&mut transport, OFFERED);
    assert_eq!(transport.registers.features(), V1);
}

#[test]
fn queues_wait_for_features_and_are_fixed_once_the_driver_is_ready() {
    let mut early = transport();
    write(&mut early, STATUS, 3);
    set_up_queue(&mut early, 0);
    assert!(!early.registers.queues()[0].ready);

    let mut late = active();
    set_up_queue(&mut late, 1);
    assert!(!late.registers.queues()[1].ready);
    write(&mut late, 0x30, 0);
    write(&mut late, READY, 0);
    assert_eq!(read(&late, READY), 1);
}

#[test]
fn a_ready_queue_cannot_be_changed_but_taken_back() {
    let mut transport = negotiated();
    write(&mut transport, 0x80, 0x9000);
    write(&mut transport, 0x38, 32);
    assert_eq!(
        (transport.registers.queues()[0].descriptors, transport.registers.queues()[0].size),
        (0x1000, 64)
    );
    write(&mut transport, READY, 0);
    write(&mut transport, 0x84, 7);
    assert_eq!(transport.registers.queues()[0].descriptors, 0x7_0000_1000);
}

#[test]
fn nonsensical_queues_do_not_become_ready() {
    for (register, value) in [(0x80, 0x1008), (0x90, 0x2001), (0xa0, 0x3002), (0xa0, 0)] {
        let mut transport = negotiated();
        write(&mut transport, READY, 0);
        write(&mut transport, register, value);
        write(&mut transport, READY, 1);
        assert_eq!(read(&transport, READY), 0, "{register:#x} {value:#x}");
    }
    let mut transport = negotiated();
    write(&mut transport, READY, 0);
    for size in [0, 3, 512, 0x1_0040, u32::MAX] {
        write(&mut transport, 0x38, size);
        assert_eq!(transport.registers.queues()[0].size, 64, "{size}");
    }
}

#[test]
fn a_queue_that_does_not_exist_has_no_size() {
    let mut transport = negotiated();
    assert_eq!(read(&transport, 0x34), 256);
    write(&mut transport, 0x30, 2);
    assert_eq!((read(&transport, 0x34), read(&transport, READY)), (0, 0));
    write(&mut transport, READY, 1);
    write(&mut transport, 0x30, u32::MAX);
    assert_eq!(read(&transport, 0x34), 0);
}

#[test]
fn only_ready_queues_of_an_active_device_are_notified() {
    assert_eq!(write(&mut negotiated(), 0x50, 0), Effect::None);
    let mut transport = active();
    assert_eq!(write(&mut transport, 0x50, 0), Effect::Notify(0));
    assert_eq!(write(&mut transport, 0x50, 1), Effect::None);
    assert_eq!(write(&mut transport, 0x50, u32::MAX), Effect::None);
}

#[test]
fn interrupt_reasons_are_acknowledged_bit_by_bit() {
    let mut transport = active();
    transport.registers.signals().add(Cause::Used(0));
    transport.registers.signals().add(Cause::Config);
    assert_eq!(read(&transport, 0x60), 3);
    write(&mut transport, 0x64, 2);
    assert_eq!(read(&transport, 0x60), 1);
}

#[test]
fn needs_reset_shows_and_is_not_the_drivers_to_set() {
    let mut transport = negotiated();
    write(&mut transport, STATUS, 0x4b);
    assert_eq!(read(&transport, STATUS), 0xb);
    transport.registers.signals().set_needs_reset();
    assert_eq!(read(&transport, STATUS), 0x4b);
    assert_eq!(write(&mut transport, STATUS, 0x4f), Effect::Activate, "written back as read");
    write(&mut transport, STATUS, 0);
    assert_eq!(read(&transport, STATUS), 0);
}

#[test]
fn a_failed_driver_has_no_device_until_a_reset() {
    let mut transport = active();
    assert_eq!(write(&mut transport, STATUS, 0x8f), Effect::Abandon);
    assert_eq!(write(&mut transport, STATUS, 0x8f), Effect::None);
    assert!(!transport.registers.is_active());
    assert_eq!(write(&mut transport, 0x50, 0), Effect::None);
    assert_eq!(transport.write(0x108, &[1]), Effect::None);
    assert_eq!(write(&mut transport, STATUS, 0), Effect::Reset);
}

#[test]
fn registers_are_32_bits_wide_and_configuration_is_not() {
    let mut transport = active();
    let mut two = [1; 2];
    transport.read(0, &mut two);
    assert_eq!(two, [0; 2]);
    assert_eq!(transport.write(STATUS, &[0]), Effect::None);
    assert_eq!(read(&transport, STATUS), 0xf);
    assert_eq!(read(&transport, 1), 0);

    assert_eq!(transport.write(0x109, &[5]), Effect::ConfigWritten);
    transport.read(0x108, &mut two);
    assert_eq!(two, [0xab, 5]);
    assert_eq!(transport.write(0x100, &[5]), Effect::None);
    let generation = read(&transport, 0xfc);
    transport.registers.signals().change_config(|bytes| bytes[0] = 1);
    assert_ne!(read(&transport, 0xfc), generation);
}

#[test]
fn registers_survive_saving() {
    let source = active();
    source.registers.signals().add(Cause::Used(0));
    let state = source.registers.save();
    let mut destination = transport();
    destination.registers.load(&state).unwrap();
    assert_eq!(destination.registers.save(), state);
    assert!(destination.registers.is_active());
    assert_eq!(read(&destination, 0x60), 1);
}

#[test]
fn registers_that_no_driver_could_set_are_refused() {
    let good = active().registers.save();
    let spoilt = |spoil: &dyn Fn(&mut TransportState)| {
        let mut state = good.clone();
        spoil(&mut state);
        transport().registers.load(&state).unwrap_err()
    };
    assert!(spoilt(&|state| state.device_id = 4).contains("id 4"));
    assert!(spoilt(&|state| state.offered |= 1).contains("do not exist here"));
    assert!(spoilt(&|state| state.driver_features |= 1).contains("its driver uses features"));
    assert!(spoilt(&|state| state.driver_features = 0).contains("its driver uses features"));
    assert!(spoilt(&|state| state.status = 0xd).contains("status 0xd"));
    assert!(spoilt(&|state| state.status = 0x10).contains("status 0x10"));
    assert!(spoilt(&|state| state.status = 3).contains("before it has features"));
    assert!(spoilt(&|state| state.queues.truncate(1)).contains("queues"));
    for size in [0, 3, 512] {
        assert!(spoilt(&|state| state.queues[0].size = size).contains("queues"));
    }
    assert!(spoilt(&|state| state.queues[0].available = 1).contains("queues"));
}

/// Any access that a guest can make to the register page, mostly to registers that exist.
fn access() -> impl Strategy<Value = (u64, Vec<u8>)> {
    let register = prop_oneof![
        4 => prop::sample::select(vec![
            0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4,
        ]),
        1 => 0..0x1000u64,
    ];
    let value = prop_oneof![
        3 => prop::sample::select(vec![0u32, 1, 2, 3, 4, 8, 0xb, 0xf, 0x40, 0x80, 0x1000, u32::MAX])
            .prop_map(|value| value.to_le_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..9),
    ];
    (register, value)
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_breaks_a_rule(accesses in prop::collection::vec(access(), 0..200)) {
        let mut transport = transport();
        let mut driver_ok = false;
        for (offset, data) in accesses {
            let effect = transport.write(offset, &data);
            let mut answer = data.clone();
            transport.read(offset, &mut answer);

            prop_assert!(is_possible_status(transport.registers.status()));
            if transport.registers.status() & FEATURES_OK != 0 {
                prop_assert_eq!(transport.registers.features() & !OFFERED, 0);
                prop_assert_ne!(transport.registers.features() & V1, 0);
            }
            for queue in transport.registers.queues() {
                prop_assert!(queue.size.is_power_of_two() && queue.size <= queue.size_max);
                prop_assert!(!queue.ready || transport.registers.status() & FEATURES_OK != 0);
            }
            match effect {
                Effect::Activate => prop_assert!(!std::mem::replace(&mut driver_ok, true)),
                Effect::Reset => driver_ok = false,
                Effect::Notify(queue) => prop_assert!(driver_ok && transport.registers.queues()[queue].ready),
                Effect::Abandon => prop_assert!(driver_ok && !transport.registers.is_active()),
                Effect::ConfigWritten | Effect::None => {}
            }
            let state = transport.registers.save();
            prop_assert!(super::tests::transport().registers.load(&state).is_ok(), "{state:?}");
        }
    }
}
