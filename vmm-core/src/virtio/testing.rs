//! A driver and a test bench for one device: no KVM, no thread.

use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress};

use super::Signals;
use super::backend::Backend;
use super::device::Device;
use super::interrupt::Interrupt;
use super::registers::QueueRegisters;
use crate::devices::IrqLine;
use crate::memory::{GuestRam, RamMap};

/// Descriptor flag: the device writes the buffer.
pub(crate) const WRITABLE: u16 = VRING_DESC_F_WRITE as u16;
/// Descriptor flag: another descriptor follows.
pub(crate) const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// Descriptor flag: the buffer is a table of descriptors.
pub(crate) const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;
/// Entries of the driver's queues.
pub(crate) const SIZE: u16 = 16;
/// Address of the first queue; each queue takes a page.
const QUEUES: u64 = 0x1_0000;

/// The driver's side of a queue: descriptors at the start of a page, then the rings.
pub(crate) struct Driver<'a> {
    memory: &'a RamMap,
    at: u64,
}

impl<'a> Driver<'a> {
    /// Returns the driver of queue `index`; its only state is in guest memory.
    pub(crate) fn new(memory: &'a RamMap, index: usize) -> Self {
        Self { memory, at: QUEUES + index as u64 * 4096 }
    }

    /// Returns the queue as the driver would set it up.
    pub(crate) fn registers(&self) -> QueueRegisters {
        QueueRegisters {
            size: SIZE,
            ready: true,
            descriptors: self.at,
            available: self.available(),
            used: self.at + 0x800,
            ..QueueRegisters::new(256)
        }
    }

    fn available(&self) -> u64 {
        self.at + 0x400
    }

    fn half(&self, gpa: u64) -> u16 {
        self.memory.read_obj(GuestAddress(gpa)).unwrap()
    }

    fn set_half(&self, gpa: u64, value: u16) {
        self.memory.write_obj(value, GuestAddress(gpa)).unwrap();
    }

    /// Writes a descriptor at `gpa`.
    pub(crate) fn descriptor(&self, gpa: u64, buffer: (u64, u32, u16), next: u16) {
        let (address, len, flags) = buffer;
        self.memory.write_obj(address, GuestAddress(gpa)).unwrap();
        self.memory.write_obj(len, GuestAddress(gpa + 8)).unwrap();
        self.set_half(gpa + 12, flags);
        self.set_half(gpa + 14, next);
    }

    /// Writes a descriptor of the queue's own table.
    pub(crate) fn own_descriptor(&self, index: u16, buffer: (u64, u32, u16), next: u16) {
        self.descriptor(self.at + u64::from(index) * 16, buffer, next);
    }

    /// Offers a request with these buffers (address, length, flags). Its descriptors follow those
    /// of the last request, wrapping around the table.
    pub(crate) fn offer(&self, buffers: &[(u64, u32, u16)]) -> u16 {
        // The index of the next free descriptor is stored behind the used ring, which neither side
        // reads.
        let place = self.at + 0xff0;
        let head = self.half(place);
        let mut index = head;
        for (left, (address, len, flags)) in (0..buffers.len()).rev().zip(buffers) {
            let next = (index + 1) % SIZE;
            let flags = if left > 0 { flags | NEXT } else { *flags };
            self.own_descriptor(index, (*address, *len, flags), next);
            index = next;
        }
        self.set_half(place, index);
        self.make_available(head);
        head
    }

    /// Puts a head into the available ring.
    pub(crate) fn make_available(&self, head: u16) {
        let index = self.half(self.available() + 2);
        self.set_half(self.available() + 4 + u64::from(index % SIZE) * 2, head);
        self.set_available_index(index.wrapping_add(1));
    }

    /// Sets the available ring's index.
    pub(crate) fn set_available_index(&self, index: u16) {
        self.set_half(self.available() + 2, index);
    }

    /// Returns all requests that have come back: heads and lengths.
    pub(crate) fn used(&self) -> Vec<(u32, u32)> {
        let used = self.at + 0x800;
        let entry = |index: u16| {
            let at = used + 4 + u64::from(index % SIZE) * 8;
            let word = |gpa| self.memory.read_obj::<u32>(GuestAddress(gpa)).unwrap();
            (word(at), word(at + 4))
        };
        (0..self.half(used + 2)).map(entry).collect()
    }
}

/// A running device, with a driver that has set up all of its queues.
pub(crate) struct Bench {
    pub(crate) backend: Backend,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) signals: Arc<Signals>,
    pub(crate) registers: Vec<QueueRegisters>,
}

impl Bench {
    /// Creates a running bench; the driver has accepted all features of the device.
    pub(crate) fn new(device: Box<dyn Device>) -> Self {
        let mut bench = Self::switched_off(device);
        let features = bench.backend.device().features();
        bench.backend.activate(features, &bench.registers);
        bench.backend.resume();
        bench
    }

    /// Creates a paused bench without a driver.
    pub(crate) fn switched_off(device: Box<dyn Device>) -> Self {
        let ram = Arc::new(GuestRam::anonymous(4 << 20));
        let signals = Arc::new(Signals::new(device.config()));
        let interrupt = Interrupt::new(Arc::clone(&signals), Arc::new(IrqLine::unconnected()));
        let registers = (0..device.queue_sizes().len())
            .map(|index| Driver::new(ram.memory(), index).registers())
            .collect();
        let backend = Backend::new(device, Arc::clone(&ram), interrupt);
        Self { backend, ram, signals, registers }
    }

    /// Returns the driver of queue `index`.
    pub(crate) fn driver(&self, index: usize) -> Driver<'_> {
        Driver::new(self.ram.memory(), index)
    }

    /// Notifies queue `index` and lets the device work until it is idle or waits for a time.
    pub(crate) fn kick(&mut self, index: usize) {
        self.backend.notify(index);
        self.run();
    }

    /// Lets the device work until it is idle or waits for a time.
    pub(crate) fn run(&mut self) {
        let now = Instant::now();
        while self.backend.idle_for(now).is_some_and(|wait| wait.is_zero()) {
            self.backend.work(now);
        }
    }

    /// Returns `len` bytes of guest memory at `gpa`.
    pub(crate) fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.ram.read(gpa, &mut bytes).unwrap();
        bytes
    }
}
