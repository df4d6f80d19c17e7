//! A function as its driver sees it, and that no sequence of accesses breaks a rule.

use kvm_ioctls::Kvm;
use proptest::prelude::*;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::function::PciFunction;
use super::layout::{BAR_BYTES, NOTIFY, TABLE};
use super::messages::NO_VECTOR;
use super::*;
use crate::pci::{MsixEntry, MsixState};
use crate::sys::kvm::create_vm;
use crate::virtio::Signals;
use crate::virtio::device::DeviceKind;
use crate::virtio::registers::{Effect, is_possible_status};
use crate::virtio::signals::{Cause, ConfigSpace, Unacknowledged};

const V1: u64 = 1 << VIRTIO_F_VERSION_1;
const OFFERED: u64 = V1 | 1 << 29 | 1 << 5;

const COMMAND: usize = 4;
const BAR: usize = 0x10;
const MSIX_CONTROL: usize = 0x42;
/// Where the capability is through which the BAR is reached.
const ACCESS: usize = 0x90;

const STATUS: u64 = 0x14;
const CONFIG_VECTOR: u64 = 0x10;
const QUEUE_SELECT: u64 = 0x16;
const QUEUE_SIZE: u64 = 0x18;
const QUEUE_VECTOR: u64 = 0x1a;
const QUEUE_ENABLE: u64 = 0x1c;

fn function() -> (PciFunction, Arc<Messages>) {
    let config = ConfigSpace::with_writable(vec![0xab; 16], 8..16);
    let signals = Arc::new(Signals::new(config));
    let registers = Registers::new(DeviceKind::Block, OFFERED, &[256, 128], signals);
    let messages = Arc::new(Messages::new(2).unwrap());
    (PciFunction::new(3, registers, Arc::clone(&messages), None), messages)
}

fn read16(function: &PciFunction, offset: u64) -> u16 {
    let mut bytes = [0xee; 2];
    function.read(offset, &mut bytes);
    u16::from_le_bytes(bytes)
}

fn status(function: &PciFunction) -> u8 {
    let mut byte = [0xee];
    function.read(STATUS, &mut byte);
    byte[0]
}

fn write16(function: &mut PciFunction, offset: u64, value: u16) {
    assert_eq!(function.write(offset, &value.to_le_bytes()), Effect::None);
}

fn write32(function: &mut PciFunction, offset: u64, value: u32) {
    function.write(offset, &value.to_le_bytes());
}

/// Offers the device's features by halves, accepts VERSION_1, and sets up queue 0.
fn negotiated() -> (PciFunction, Arc<Messages>) {
    let (mut function, messages) = function();
    for status in [1, 3] {
        function.write(STATUS, &[status]);
    }
    for (page, features) in [(0, 0), (1, (V1 >> 32) as u32)] {
        write32(&mut function, 8, page);
        write32(&mut function, 0xc, features);
    }
    function.write(STATUS, &[0xb]);
    write16(&mut function, CONFIG_VECTOR, 0);
    write16(&mut function, QUEUE_SELECT, 0);
    write16(&mut function, QUEUE_SIZE, 64);
    write16(&mut function, QUEUE_VECTOR, 1);
    for (offset, value) in [(0x20, 0x1000), (0x24, 7), (0x28, 0x2000), (0x30, 0x3000)] {
        write32(&mut function, offset, value);
    }
    write16(&mut function, QUEUE_ENABLE, 1);
    (function, messages)
}

fn active() -> (PciFunction, Arc<Messages>) {
    let (mut function, messages) = negotiated();
    assert_eq!(function.write(STATUS, &[0xf]), Effect::Activate);
    (function, messages)
}

/// Writes an unmasked message for `vector`.
fn set_message(function: &mut PciFunction, vector: usize, data: u32) {
    let entry = (TABLE.start + vector * 16) as u64;
    for (offset, value) in [(0, 0xfee0_0000), (4, 0), (8, data), (12, 0)] {
        write32(function, entry + offset, value);
    }
}

#[test]
fn kvm_takes_a_followed_signal_while_its_vector_delivers() {
    let vm = Arc::new(create_vm(&Kvm::new().unwrap()).unwrap());
    vm.create_irq_chip().unwrap();
    let routes = Arc::new(MsiRoutes::new(Arc::clone(&vm)));
    let messages = Arc::new(Messages::new(2).unwrap().routed_by(&vm, &routes, 0).unwrap());
    let config = ConfigSpace::read_only(Vec::new());
    let signals = Arc::new(Signals::new(config));
    let registers = Registers::new(DeviceKind::Net, OFFERED, &[256, 256], signals);
    let mut function = PciFunction::new(0, registers, Arc::clone(&messages), None);
    let signal = EventFd::new(EFD_NONBLOCK).unwrap();
    messages.follow(0, signal.try_clone().unwrap());
    let is_left = || {
        signal.write(1).unwrap();
        signal.read().is_ok()
    };
    let mask = |function: &mut PciFunction, vector: usize, masked: u32| {
        write32(function, (TABLE.start + vector * 16 + 12) as u64, masked);
    };
    assert!(is_left(), "MSI-X is off");
    function.write_config(MSIX_CONTROL, &0x8000_u16.to_le_bytes());
    set_message(&mut function, 1, 0x41);
    assert!(is_left(), "the queue has no vector");
    messages.set_queue_vector(0, 1);
    assert!(!is_left());
    mask(&mut function, 1, 1);
    assert!(is_left(), "it has to become a pending bit");
    mask(&mut function, 1, 0);
    assert!(!is_left());
    function.write_config(MSIX_CONTROL, &0xc000_u16.to_le_bytes());
    assert!(is_left(), "all are masked");
    function.write_config(MSIX_CONTROL, &0x8000_u16.to_le_bytes());
    assert!(!is_left());
    messages.set_queue_vector(0, 2);
    assert!(is_left(), "that vector is masked");
    messages.set_queue_vector(0, 1);
    let state = messages.save();
    messages.forget_vectors();
    assert!(is_left());
    messages.load(&state, 0x8000).unwrap();
    assert!(!is_left());
    // A signal that came while the vector was masked stays with the device's thread.
    mask(&mut function, 1, 1);
    signal.write(1).unwrap();
    assert!(messages.take(0, &signal));
    assert!(!messages.take(0, &signal), "it was taken");
    mask(&mut function, 1, 0);
    signal.write(1).unwrap();
    assert!(!messages.take(0, &signal), "KVM has it");
}

#[test]
fn a_driver_finds_the_device_and_all_its_parts() {
    let (function, _) = function();
    let mut config = [0; 256];
    function.read_config(0, &mut config);
    assert_eq!(config[..4], [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(config[8..12], [1, 0, 0x80, 1]);
    assert_eq!(function.window(), Some(0xc002_0000..0xc002_8000));
    let (mut at, mut found) = (usize::from(config[0x34]), Vec::new());
    while at != 0 {
        found.push((config[at], if config[at] == 9 { config[at + 3] } else { 0 }, at));
        at = config[at + 1].into();
    }
    let expected =
        [(0x11, 0, 0x40), (9, 1, 0x4c), (9, 3, 0x5c), (9, 4, 0x6c), (9, 2, 0x7c), (9, 5, ACCESS)];
    assert_eq!(found, expected);
    assert_eq!(config[0x7c + 8..0x90], [0, 0x30, 0, 0, 64, 0, 0, 0, 4, 0, 0, 0], "notify");
    assert_eq!(config[0x42..0x4c], [2, 0, 0, 0x40, 0, 0, 0, 0x50, 0, 0], "MSI-X");
}

#[test]
fn every_type_of_device_has_the_id_of_the_specification() {
    for (kind, device) in [(DeviceKind::Net, 0x1041), (DeviceKind::Vsock, 0x1053)] {
        let config = layout::layout(0, kind, 2).config;
        assert_eq!(config.double_word(0), device << 16 | 0x1af4);
    }
}

#[test]
fn the_handshake_leads_to_an_active_device() {
    let (mut function, _) = active();
    assert_eq!(status(&function), 0xf);
    assert_eq!(function.registers().features(), V1);
    let queue = function.registers().queues()[0];
    let places = (queue.descriptors, queue.available, queue.used);
    assert_eq!(places, (0x7_0000_1000, 0x2000, 0x3000));
    assert_eq!((queue.size, queue.ready), (64, true));
    let notify = NOTIFY.start as u64;
    assert_eq!(function.write(notify, &[0, 0]), Effect::Notify(0));
    assert_eq!(function.write(notify + 4, &[1, 0]), Effect::None, "it is not set up");
    assert_eq!(function.write(notify + 2, &[0, 0]), Effect::None);
    assert_eq!(function.write(STATUS, &[0]), Effect::Reset);
    assert_eq!(read16(&function, CONFIG_VECTOR), NO_VECTOR);
    assert_eq!(read16(&function, QUEUE_VECTOR), NO_VECTOR);
}

#[test]
fn queues_are_enabled_and_not_disabled() {
    let (mut function, _) = negotiated();
    write16(&mut function, QUEUE_ENABLE, 0);
    write16(&mut function, QUEUE_SIZE, 32);
    function.write(0x20, &[0; 8]);
    let queue = function.registers().queues()[0];
    assert_eq!((queue.ready, queue.size, queue.descriptors), (true, 64, 0x7_0000_1000));
    write16(&mut function, QUEUE_SELECT, 1);
    assert_eq!((read16(&function, QUEUE_SIZE), read16(&function, 0x1e)), (128, 1));
    function.write(0x20, &0x9_0000_4000u64.to_le_bytes());
    assert_eq!(function.registers().queues()[1].descriptors, 0x9_0000_4000);
    write16(&mut function, QUEUE_SELECT, 2);
    assert_eq!((read16(&function, QUEUE_SIZE), read16(&function, 0x12)), (0, 2));
}

#[test]
fn a_vector_that_does_not_exist_reads_as_none() {
    let (mut function, _) = negotiated();
    for (offset, vector) in [(CONFIG_VECTOR, 3), (QUEUE_VECTOR, 0xfffe)] {
        write16(&mut function, offset, vector);
        assert_eq!(read16(&function, offset), NO_VECTOR);
        write16(&mut function, offset, 2);
        assert_eq!(read16(&function, offset), 2);
    }
}

#[test]
fn interrupts_take_the_vector_of_their_cause_once_msix_is_on() {
    let (mut function, messages) = active();
    messages.raise(Cause::Used(0));
    messages.raise(Cause::Config);
    function.write_config(MSIX_CONTROL, &[0, 0x80]);
    assert_eq!(messages.sent(), [0, 0, 0], "nothing was remembered");
    set_message(&mut function, 1, 0x41);
    messages.raise(Cause::Used(0));
    messages.raise(Cause::Used(1));
    messages.raise(Cause::Config);
    assert_eq!(messages.sent(), [0, 1, 0], "vector 0 is masked, queue 1 has none");
    set_message(&mut function, 0, 0x40);
    assert_eq!(messages.sent(), [1, 0, 0], "it was pending");
    messages.repeat(Unacknowledged { used: false, config: false });
    assert_eq!(messages.sent(), [0, 1, 0], "used buffers may have been lost");
    messages.repeat(Unacknowledged { used: true, config: true });
    assert_eq!(messages.sent(), [1, 1, 0]);
}

#[test]
fn a_changed_configuration_is_unacknowledged_until_the_driver_reads_it() {
    let (function, _) = active();
    let signals = function.registers().signals();
    signals.add(Cause::Config);
    signals.add(Cause::Used(0));
    assert_eq!(signals.unacknowledged(), Unacknowledged { used: true, config: true });
    function.read(0x2000, &mut [0; 4]);
    assert_eq!(signals.unacknowledged(), Unacknowledged { used: true, config: false });
}

#[test]
fn the_isr_is_cleared_by_reading_it() {
    let (function, _) = active();
    function.registers().signals().add(Cause::Config);
    let mut bytes = [0xee; 2];
    function.read(0x1000, &mut bytes);
    assert_eq!(bytes, [2, 0]);
    function.read(0x1000, &mut bytes);
    assert_eq!(bytes, [0, 0]);
}

#[test]
fn the_device_moves_with_its_bar_and_can_be_switched_off() {
    let (mut function, _) = function();
    function.write_config(BAR, &0xd123_4567u32.to_le_bytes());
    assert_eq!(function.window(), Some(0xd123_0000..0xd123_8000));
    function.write_config(BAR, &[0xff; 4]);
    assert_eq!(function.window(), Some(0xffff_8000..0x1_0000_0000));
    function.write_config(COMMAND, &[0]);
    assert_eq!(function.window(), None);
}

#[test]
fn registers_are_reached_through_configuration_space() {
    let (mut function, _) = negotiated();
    let choose = |function: &mut PciFunction, offset: u32, length: u32| {
        function.write_config(ACCESS + 8, &offset.to_le_bytes());
        function.write_config(ACCESS + 12, &length.to_le_bytes());
    };
    let data = |function: &PciFunction| {
        let mut word = [0; 4];
        function.read_config(ACCESS + 16, &mut word);
        u32::from_le_bytes(word)
    };
    choose(&mut function, STATUS as u32, 1);
    assert_eq!(data(&function) & 0xff, 0xb);
    assert_eq!(function.write_config(ACCESS + 16, &[0xf, 9, 9, 9]), Effect::Activate);
    assert_eq!(data(&function) & 0xff, 0xf);
    choose(&mut function, NOTIFY.start as u32, 2);
    assert_eq!(function.write_config(ACCESS + 16, &[0, 0]), Effect::Notify(0));
    for (offset, length) in [(0x14, 3), (0x12, 4), (BAR_BYTES, 4), (u32::MAX, 1), (0x12, 0)] {
        choose(&mut function, offset, length);
        assert_eq!(function.write_config(ACCESS + 16, &[0; 4]), Effect::None);
    }
    choose(&mut function, STATUS as u32, 1);
    function.write_config(ACCESS + 4, &[1]);
    assert_eq!(function.write_config(ACCESS + 16, &[0; 4]), Effect::None, "there is one BAR");
    assert_eq!(status(&function), 0xf);
}

#[test]
fn a_function_survives_saving() {
    let (mut source, messages) = active();
    source.write_config(MSIX_CONTROL, &[0, 0x80]);
    source.write_config(BAR, &0xd123_0000u32.to_le_bytes());
    set_message(&mut source, 1, 0x41);
    messages.raise(Cause::Config);
    let (mut destination, arrived) = function();
    destination.registers_mut().load(&source.registers().save()).unwrap();
    destination.load(&source.save().unwrap()).unwrap();
    assert_eq!(destination.save(), source.save());
    assert_eq!(destination.window(), source.window());
    arrived.raise(Cause::Used(0));
    set_message(&mut destination, 0, 0x40);
    assert_eq!(arrived.sent(), [1, 1, 0], "what was pending is still due");
}

#[test]
fn functions_that_no_driver_could_make_are_refused() {
    let (source, _) = active();
    let good = source.save().unwrap();
    let refused = |spoil: &dyn Fn(&mut FunctionState)| {
        let mut state = good.clone();
        spoil(&mut state);
        function().0.load(&state).unwrap_err()
    };
    assert!(refused(&|state| state.config[2] = 0x41).contains("byte 0x2"));
    assert!(refused(&|state| state.config.truncate(64)).contains("64 bytes"));
    assert!(refused(&|state| state.interrupts.config_vector = 3).contains("vectors"));
    assert!(refused(&|state| state.interrupts.queue_vectors[0] = 0xfffe).contains("vectors"));
    assert!(refused(&|state| state.interrupts.queue_vectors.truncate(1)).contains("vectors"));
    assert!(refused(&|state| state.interrupts.msix.entries.truncate(1)).contains("vectors"));
    assert!(refused(&|state| state.interrupts.msix.pending = 8).contains("vectors"));
}

#[test]
fn what_is_saved_has_the_form_of_state_version_4() {
    let entries = vec![MsixEntry { address: 0xfee0_1000, data: 0x41, masked: true }];
    let msix = MsixState { entries, pending: 1 };
    let interrupts = Interrupts { msix, config_vector: 0, queue_vectors: vec![NO_VECTOR] };
    let functions = vec![FunctionState { config: vec![7, 8], interrupts }];
    let state =
        PciState { config_address: 0x8000_0810, functions, cmos_index: 0x0d, ..Default::default() };
    let one = [1, 0, 0, 0, 0, 0, 0, 0];
    let expected = [
        &[0x10, 8, 0, 0x80][..],
        &one,
        &[2, 0, 0, 0, 0, 0, 0, 0, 7, 8],
        &one,
        &[0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, 1],
        &one,
        &[0, 0],
        &one,
        &[0xff, 0xff],
        &[0x0d],
    ];
    assert_eq!(crate::codec::encode(&state).unwrap(), expected.concat());
    assert_eq!(crate::codec::decode::<PciState>(&expected.concat()).unwrap(), state);
}

/// Any access that a guest can make, mostly to registers that exist.
fn access() -> impl Strategy<Value = (bool, u64, Vec<u8>)> {
    let place = prop_oneof![
        4 => 0..0x38u64,
        2 => 0x4000..0x4040u64,
        1 => 0x3000..0x3010u64,
        1 => 0..u64::from(BAR_BYTES) + 0x10,
    ];
    let config = prop_oneof![3 => 0..0x100u64, 1 => 0..0x1010u64];
    let bytes = prop_oneof![
        3 => prop::sample::select(vec![1usize, 2, 4, 8])
            .prop_flat_map(|bytes| prop::collection::vec(prop::sample::select(vec![0u8, 1, 2, 3, 8, 0xb, 0xf, 0x10, 0x80, 0xff]), bytes)),
        1 => prop::collection::vec(any::<u8>(), 0..17),
    ];
    prop_oneof![
        3 => (Just(false), place, bytes.clone()),
        1 => (Just(true), config, bytes),
    ]
}

proptest! {
    #[test]
    fn no_sequence_of_accesses_breaks_a_rule(
        accesses in prop::collection::vec(access(), 0..200),
        is_up in any::<bool>(),
    ) {
        let (mut function, messages) = if is_up { active() } else { super::tests::function() };
        let mut driver_ok = is_up;
        for (is_config, offset, data) in accesses {
            let mut answer = data.clone();
            let effect = if is_config {
                function.read_config(offset as usize, &mut answer);
                function.write_config(offset as usize, &data)
            } else {
                function.read(offset, &mut answer);
                function.write(offset, &data)
            };
            let registers = function.registers();
            prop_assert!(is_possible_status(registers.status()));
            match effect {
                Effect::Activate => prop_assert!(!std::mem::replace(&mut driver_ok, true)),
                Effect::Reset => driver_ok = false,
                Effect::Notify(queue) => prop_assert!(driver_ok && registers.queues()[queue].ready),
                Effect::Abandon => prop_assert!(driver_ok && !registers.is_active()),
                Effect::ConfigWritten | Effect::None => {}
            }
            messages.raise(Cause::Used(0));
            messages.raise(Cause::Config);
            if let Some(window) = function.window() {
                prop_assert!(window.start.is_multiple_of(BAR_BYTES.into()) && window.end <= 1 << 32);
            }
            let (mut next, _) = super::tests::function();
            prop_assert!(next.registers_mut().load(&registers.save()).is_ok());
            let state = function.save().unwrap();
            prop_assert!(next.load(&state).is_ok(), "{state:?}");
            prop_assert_eq!(next.save(), Some(state));
        }
    }
}
