//! Pausing, resetting, breaking and saving, with a device that echoes.

use super::*;
use crate::memory::RamMap;
use crate::virtio::device::DeviceKind;
use crate::virtio::signals::ConfigSpace;
use crate::virtio::testing::{Bench, WRITABLE};

/// Answers each request with its own first byte; two requests at a time.
#[derive(Debug, Default)]
struct Echo {
    resets: usize,
    drains: usize,
    ready: usize,
}

impl Echo {
    fn answer(chain: crate::virtio::queue::Chain, memory: &RamMap) -> Result<u32, QueueError> {
        let (mut readable, mut writable) = (chain.readable, chain.writable);
        let mut byte = [0];
        let from = readable.take_front(1).ok_or(QueueError::Request)?;
        from.read(memory, &mut byte).map_err(|_| QueueError::Buffer)?;
        let to = writable.take_front(1).ok_or(QueueError::Request)?;
        to.write(memory, &byte).map_err(|_| QueueError::Buffer)?;
        Ok(1)
    }
}

impl Device for Echo {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Rng
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 256]
    }

    fn config(&self) -> ConfigSpace {
        ConfigSpace::with_writable(vec![0; 2], 0..1)
    }

    fn process(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        rings.serve(index, 2, Self::answer)
    }

    fn config_written(&mut self, rings: &mut Rings<'_>) {
        rings.change_config(|bytes| bytes[1] = bytes[0]);
    }

    fn ready(&mut self, _index: usize, _rings: &mut Rings<'_>) -> Result<(), QueueError> {
        self.ready += 1;
        Ok(())
    }

    fn reset(&mut self) {
        self.resets += 1;
    }

    fn drain(&mut self, _rings: &mut Rings<'_>) -> Result<(), QueueError> {
        self.drains += 1;
        Ok(())
    }

    fn save(&mut self) -> Result<Vec<u8>, DeviceError> {
        Ok(vec![7])
    }

    fn load(&mut self, state: &[u8]) -> Result<(), String> {
        if state == [7] { Ok(()) } else { Err("not a seven".to_owned()) }
    }
}

fn bench() -> Bench {
    Bench::new(Box::<Echo>::default())
}

fn ask(bench: &Bench, queue: usize, byte: u8) {
    bench.ram.write(0x8000, &[byte]).unwrap();
    bench.driver(queue).offer(&[(0x8000, 1, 0), (0x9000, 1, WRITABLE)]);
}

#[test]
fn requests_are_answered_in_batches_and_the_driver_is_interrupted() {
    let mut bench = bench();
    for _ in 0..5 {
        ask(&bench, 0, 42);
    }
    bench.kick(0);
    assert_eq!(bench.driver(0).used().len(), 5);
    assert_eq!(bench.bytes(0x9000, 1), [42]);
    assert_eq!(bench.signals.interrupt_status(), 1);
    assert_eq!(bench.backend.idle_for(Instant::now()), None);
}

#[test]
fn requests_made_while_paused_wait_for_the_resume_even_without_a_notification() {
    let mut bench = bench();
    bench.run();
    bench.backend.pause();
    ask(&bench, 1, 1);
    bench.backend.notify(1);
    bench.backend.ready(0);
    bench.backend.work(Instant::now());
    assert_eq!(bench.backend.idle_for(Instant::now()), None);
    assert_eq!(bench.driver(1).used(), []);

    ask(&bench, 0, 2);
    bench.backend.resume();
    bench.run();
    assert_eq!((bench.driver(0).used().len(), bench.driver(1).used().len()), (1, 1));
}

#[test]
fn a_device_answers_in_its_configuration() {
    let mut bench = bench();
    assert!(bench.signals.write_config(0, &[5]));
    bench.backend.config_written();
    let mut bytes = [0; 2];
    bench.signals.read_config(0, &mut bytes);
    assert_eq!((bytes, bench.signals.config_generation()), ([5, 5], 1));
    assert_eq!(bench.signals.interrupt_status(), 2);
}

#[test]
fn a_broken_queue_stops_the_device_until_the_reset() {
    let mut bench = bench();
    ask(&bench, 1, 1);
    bench.driver(0).offer(&[(u64::MAX, 1, 0)]);
    bench.kick(0);
    assert!(bench.signals.needs_reset());
    assert_eq!(bench.signals.interrupt_status(), 2);
    bench.kick(1);
    assert_eq!(bench.driver(1).used(), [], "the other queue is not touched either");

    bench.backend.reset();
    bench.signals.clear();
    let fresh = super::super::testing::Driver::new(bench.ram.memory(), 2).registers();
    bench.backend.activate(0, &[fresh, fresh]);
    bench.run();
    assert!(!bench.signals.needs_reset());
}

#[test]
fn a_device_whose_driver_has_given_up_rests_and_can_be_saved() {
    let mut bench = bench();
    ask(&bench, 0, 1);
    bench.backend.abandon();
    bench.kick(0);
    assert_eq!(bench.driver(0).used(), []);

    bench.backend.pause();
    let state = bench.backend.save().unwrap();
    // The registers of such a device say that no driver is ready.
    let mut destination = Bench::switched_off(Box::<Echo>::default());
    destination.backend.load(&state, None).unwrap();
}

#[test]
fn a_queue_outside_memory_breaks_the_activation() {
    let mut bench = Bench::switched_off(Box::<Echo>::default());
    bench.registers[1].used = 1 << 40;
    bench.backend.activate(0, &bench.registers);
    assert!(bench.signals.needs_reset());
}

#[test]
fn a_queue_that_is_not_set_up_is_ignored() {
    let mut bench = Bench::switched_off(Box::<Echo>::default());
    bench.registers[1] = QueueRegisters::new(256);
    bench.backend.activate(0, &bench.registers);
    bench.backend.resume();
    bench.kick(1);
    bench.backend.notify(77);
    assert!(!bench.signals.needs_reset());
}

#[test]
fn a_saved_device_continues_elsewhere_despite_a_lost_notification_and_interrupt() {
    let mut source = bench();
    ask(&source, 0, 1);
    source.kick(0);
    source.backend.pause();
    ask(&source, 0, 9);
    let state = source.backend.save().unwrap();

    let mut destination = Bench::switched_off(Box::<Echo>::default());
    let memory = source.bytes(0, 4 << 20);
    destination.ram.write(0, &memory).unwrap();
    destination.backend.load(&state, Some((0, &source.registers))).unwrap();
    assert_eq!(destination.backend.save().unwrap(), state);
    destination.backend.resume();
    destination.run();
    assert_eq!(destination.driver(0).used().len(), 2);
    assert_eq!(destination.bytes(0x9000, 1), [9]);
}

#[test]
fn impossible_states_are_refused() {
    let mut source = bench();
    source.run();
    source.backend.pause();
    let good = source.backend.save().unwrap();
    let registers = source.registers.clone();
    let refusal = |state: &BackendState, driver: bool| {
        let mut bench = Bench::switched_off(Box::<Echo>::default());
        let driver = driver.then_some((0, registers.as_slice()));
        bench.backend.load(state, driver).unwrap_err()
    };
    assert!(refusal(&good, false).contains("without a driver"));
    let mut one = good.clone();
    one.positions.pop();
    assert!(refusal(&one, true).contains("1 queues, not 2"));
    let mut fat = good.clone();
    fat.device = vec![0; STATE_BYTES_MAX + 1];
    assert!(refusal(&fat, true).contains("too many"));
    let mut odd = good.clone();
    odd.device = vec![8];
    assert_eq!(refusal(&odd, true), "not a seven");
    let mut ahead = good;
    ahead.positions[0] = Some(QueuePosition { next_available: 100, next_used: 0 });
    assert!(refusal(&ahead, true).contains("available ring"));
}

#[test]
fn pages_that_a_device_writes_are_remembered_as_dirty() {
    use vm_memory::GuestMemoryRegion;
    use vm_memory::bitmap::Bitmap;
    let mut bench = bench();
    ask(&bench, 0, 1);
    bench.ram.mappings().for_each(|region| (**region).bitmap().reset());
    bench.kick(0);
    let region = bench.ram.mappings().next().unwrap();
    assert!(region.bitmap().dirty_at(bench.registers[0].used as usize), "the used ring");
    assert!(region.bitmap().dirty_at(0x9000), "the answer");
    assert!(!region.bitmap().dirty_at(0x8000), "the question");
}
