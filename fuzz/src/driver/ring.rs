//! A split queue in guest memory, from its driver's view (virtio 1.2, 2.7).

use arbitrary::Arbitrary;
use vmm_core::GuestRam;

/// Number of entries of a queue.
pub(super) const SIZE: u16 = 16;
/// Guest physical address of the first queue; each queue has a page.
const FIRST: u64 = 0x1_0000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const NEXT: u16 = 1;
/// Flag of a buffer that the device may write.
pub(super) const WRITABLE: u16 = 2;

/// A descriptor that may be invalid.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(super) struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
    /// Whether the address is reduced to lie within memory.
    within: bool,
}

/// A buffer of a request: address, length, and [`WRITABLE`] or 0.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    pub(super) gpa: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
}

#[derive(Debug)]
pub(super) struct Ring {
    at: u64,
    next_descriptor: u16,
    index: u16,
}

impl Ring {
    pub(super) fn new(queue: u8) -> Self {
        Self { at: FIRST + u64::from(queue) * 4096, next_descriptor: 0, index: 0 }
    }

    /// Addresses of the descriptor table, available ring and used ring; all below 4 GiB.
    pub(super) fn places(&self) -> [u32; 3] {
        [self.at, self.at + AVAILABLE, self.at + USED].map(|place| place as u32)
    }

    pub(super) fn clear(&mut self, ram: &GuestRam) {
        put(ram, self.at, &[0; 4096]);
        (self.next_descriptor, self.index) = (0, 0);
    }

    /// Offers `buffers` as one request.
    pub(super) fn offer(&mut self, ram: &GuestRam, buffers: &[Buffer]) {
        let head = self.next_descriptor;
        for (left, buffer) in (0..buffers.len()).rev().zip(buffers) {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % SIZE;
            let flags = buffer.flags | if left > 0 { NEXT } else { 0 };
            self.put_descriptor(ram, index, buffer.gpa, (buffer.len, flags));
        }
        self.make_available(ram, head);
    }

    fn put_descriptor(&self, ram: &GuestRam, index: u16, gpa: u64, (len, flags): (u32, u16)) {
        let at = self.at + u64::from(index % SIZE) * 16;
        put(ram, at, &gpa.to_le_bytes());
        put(ram, at + 8, &len.to_le_bytes());
        put(ram, at + 12, &flags.to_le_bytes());
        put(ram, at + 14, &((index + 1) % SIZE).to_le_bytes());
    }

    /// Writes descriptors from the beginning of the table, and offers `head`.
    pub(super) fn offer_as_is(&mut self, ram: &GuestRam, descriptors: &[Descriptor], head: u16) {
        for (index, it) in (0..SIZE).zip(descriptors) {
            let gpa = if it.within { it.address % super::MEMORY_BYTES } else { it.address };
            self.put_descriptor(ram, index, gpa, (it.len, it.flags));
            put(ram, self.at + u64::from(index) * 16 + 14, &it.next.to_le_bytes());
        }
        self.make_available(ram, head);
    }

    fn make_available(&mut self, ram: &GuestRam, head: u16) {
        let entry = self.at + AVAILABLE + 4 + u64::from(self.index % SIZE) * 2;
        put(ram, entry, &head.to_le_bytes());
        self.set_index(ram, self.index.wrapping_add(1));
    }

    pub(super) fn set_index(&mut self, ram: &GuestRam, index: u16) {
        self.index = index;
        put(ram, self.at + AVAILABLE + 2, &index.to_le_bytes());
    }

    /// Number of requests that the device has answered, according to the used ring.
    pub(super) fn used(&self, ram: &GuestRam) -> u16 {
        let mut bytes = [0; 2];
        ram.read(self.at + USED + 2, &mut bytes).map_or(0, |()| u16::from_le_bytes(bytes))
    }
}

/// Writes to memory; a write outside of it has no effect.
pub(super) fn put(ram: &GuestRam, gpa: u64, bytes: &[u8]) {
    let _outside = ram.write(gpa, bytes);
}
