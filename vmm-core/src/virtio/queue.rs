//! A virtqueue as a device uses it: it yields complete, validated requests, or the queue is broken.
//!
//! The rings themselves are handled by the `virtio-queue` crate. This module checks what the crate
//! leaves to its users: that the rings lie in RAM, that a descriptor chain ends (the crate's
//! iterator just stops at a loop or an invalid descriptor), that every buffer lies in RAM, and that
//! lengths which the guest states have a bound. On a broken queue [`super::backend`] closes the
//! device's queues until the driver resets it.

#[cfg(test)]
mod tests;

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{DescriptorChain, Queue as Rings, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

use super::buffers::Buffers;
use super::registers::QueueRegisters;
use crate::memory::RamMap;

/// Maximum number of descriptors in a request, including those of an indirect table.
pub(crate) const DESCRIPTORS_MAX: usize = 1024;

/// Why a queue cannot be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum QueueError {
    /// The rings do not lie in RAM, or are otherwise invalid.
    #[error("its rings are not in memory")]
    Rings,
    /// The driver claims more requests than the queue has room for, or one that does not exist.
    #[error("its available ring makes no sense")]
    Available,
    /// A descriptor chain loops, points outside its table, is too long, or has a readable buffer
    /// after a writable one.
    #[error("a chain of descriptors does not end")]
    Chain,
    /// A buffer does not lie in RAM.
    #[error("a buffer is not in memory")]
    Buffer,
    /// A request is longer than any driver needs.
    #[error("a request is too long")]
    TooLong,
    /// A request does not have the form that the type of device requires.
    #[error("a request has no place for its answer")]
    Request,
    /// The host's kernel, which served the queue, found that the driver breaks the rules.
    #[error("the kernel refuses to serve it")]
    Kernel,
}

/// How far device and driver have progressed in a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePosition {
    /// Index of the next entry of the available ring to read.
    pub next_available: u16,
    /// Index of the next entry of the used ring to fill.
    pub next_used: u16,
}

/// A request of the driver: a descriptor chain.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Identifies the request to the driver; pass it to [`Queue::push_used`].
    pub(crate) head: u16,
    /// Buffers that the driver has filled.
    pub(crate) readable: Buffers,
    /// Buffers for the device's answer.
    pub(crate) writable: Buffers,
}

/// How interrupts and notifications are suppressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Suppression {
    /// With a flag.
    Flag,
    /// With an event index (`VIRTIO_F_EVENT_IDX`).
    Index,
}

/// A queue that the driver has set up; see the module.
#[derive(Debug)]
pub(crate) struct Queue {
    rings: Rings,
    /// Used index up to which the driver's wish for an interrupt (`used_event`) has been checked.
    checked: Wrapping<u16>,
}

impl Queue {
    /// Opens a queue that the driver has set up, at its start or at its saved position.
    ///
    /// # Errors
    /// [`QueueError::Rings`], [`QueueError::Available`].
    pub(crate) fn new(
        memory: &RamMap,
        registers: &QueueRegisters,
        suppression: Suppression,
        position: QueuePosition,
    ) -> Result<Self, QueueError> {
        let size = u64::from(registers.size);
        // Descriptors have 16 bytes. Each ring consists of flags, index, entries of 2 or 8 bytes,
        // and an event index.
        let parts = [
            (registers.descriptors, 16 * size),
            (registers.available, 6 + 2 * size),
            (registers.used, 6 + 8 * size),
        ];
        let in_ram = |(address, bytes): &(u64, u64)| {
            memory.check_range(GuestAddress(*address), *bytes as usize, Permissions::ReadWrite)
        };
        if !parts.iter().all(in_ram) {
            return Err(QueueError::Rings);
        }
        let QueuePosition { next_available, next_used } = position;
        if u64::from(next_available.wrapping_sub(next_used)) > size {
            return Err(QueueError::Available);
        }
        let rings = Rings::try_from(QueueState {
            max_size: registers.size_max,
            next_avail: next_available,
            next_used,
            event_idx_enabled: suppression == Suppression::Index,
            size: registers.size,
            ready: true,
            desc_table: registers.descriptors,
            avail_ring: registers.available,
            used_ring: registers.used,
        });
        let checked = Wrapping(next_used);
        Ok(Self { rings: rings.map_err(|_| QueueError::Rings)?, checked })
    }

    /// Returns the next request, if there is one.
    ///
    /// # Errors
    /// [`QueueError`], if the driver breaks the rules.
    pub(crate) fn pop(&mut self, memory: &RamMap) -> Result<Option<Chain>, QueueError> {
        let size = self.rings.size();
        let mut available = self.rings.iter(memory).map_err(|_| QueueError::Available)?;
        match available.next() {
            Some(chain) if chain.head_index() >= size => Err(QueueError::Available),
            Some(chain) => collect(memory, chain).map(Some),
            None => Ok(None),
        }
    }

    /// Returns a request to the driver with `bytes` written to it.
    ///
    /// # Errors
    /// [`QueueError::Available`] for a head outside the queue.
    pub(crate) fn push_used(
        &mut self,
        memory: &RamMap,
        head: u16,
        bytes: u32,
    ) -> Result<(), QueueError> {
        if head >= self.rings.size() {
            return Err(QueueError::Available);
        }
        self.rings.add_used(memory, head, bytes).map_err(|_| QueueError::Rings)
    }

    /// Returns whether the driver wants an interrupt for the requests returned since the last call.
    ///
    /// # Errors
    /// Never for rings in RAM.
    pub(crate) fn wants_interrupt(&mut self, memory: &RamMap) -> Result<bool, QueueError> {
        if self.rings.event_idx_enabled() {
            return self.event_is_among_new(memory);
        }
        let flags: u16 = memory
            .load(GuestAddress(self.rings.avail_ring()), Ordering::Acquire)
            .map_err(|_| QueueError::Rings)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// Returns whether the entry that the driver waits for (`used_event`; virtio 1.2, 2.7.10) was
    /// added since the last call.
    fn event_is_among_new(&mut self, memory: &RamMap) -> Result<bool, QueueError> {
        // The driver must see the used entries before its `used_event` is read here.
        fence(Ordering::SeqCst);
        let place = self.rings.avail_ring() + 4 + 2 * u64::from(self.rings.size());
        let event: u16 =
            memory.load(GuestAddress(place), Ordering::Relaxed).map_err(|_| QueueError::Rings)?;
        let now = Wrapping(self.rings.next_used());
        let before = std::mem::replace(&mut self.checked, now);
        Ok(now - Wrapping(u16::from_le(event)) - Wrapping(1) < now - before)
    }

    /// Returns several requests to the driver, each with the bytes written to it; the driver sees
    /// all of them or none.
    ///
    /// # Errors
    /// As [`Queue::push_used`]; [`QueueError::Available`] for more requests than the queue has
    /// entries.
    pub(crate) fn push_used_together(
        &mut self,
        memory: &RamMap,
        used: &[(u16, u32)],
    ) -> Result<(), QueueError> {
        let size = self.rings.size();
        let Some(((last, bytes), others)) = used.split_last() else { return Ok(()) };
        if used.len() > usize::from(size) {
            return Err(QueueError::Available);
        }
        let start = Wrapping(self.rings.next_used());
        let mut index = start;
        for (head, bytes) in others {
            if *head >= size {
                return Err(QueueError::Available);
            }
            let place = self.rings.used_ring() + 4 + u64::from(index.0 % size) * 8;
            let mut entry = [0; 8];
            entry[..4].copy_from_slice(&u32::from(*head).to_le_bytes());
            entry[4..].copy_from_slice(&bytes.to_le_bytes());
            memory.write_slice(&entry, GuestAddress(place)).map_err(|_| QueueError::Rings)?;
            index += 1;
        }
        // Adding the last one updates the ring's index, which publishes them all.
        self.rings.set_next_used(index.0);
        self.push_used(memory, *last, *bytes)
    }

    /// Puts the last `count` requests that [`Queue::pop`] returned back into the queue.
    pub(crate) fn take_back(&mut self, count: usize) {
        let back = Wrapping(self.rings.next_avail()) - Wrapping(count as u16);
        self.rings.set_next_avail(back.0);
    }

    /// Returns the number of entries.
    pub(crate) fn size(&self) -> u16 {
        self.rings.size()
    }

    /// Tells the driver that it need not notify: the device polls the queue.
    ///
    /// # Errors
    /// Never for rings in RAM.
    pub(crate) fn mute(&mut self, memory: &RamMap) -> Result<(), QueueError> {
        self.rings.disable_notification(memory).map_err(|_| QueueError::Rings)
    }

    /// Tells the driver to notify again; returns true if a request has arrived in the meantime.
    ///
    /// # Errors
    /// Never for rings in RAM.
    pub(crate) fn unmute(&mut self, memory: &RamMap) -> Result<bool, QueueError> {
        self.rings.enable_notification(memory).map_err(|_| QueueError::Rings)
    }

    /// Returns where the rings are, for the kernel to serve them.
    pub(crate) fn registers(&self) -> QueueRegisters {
        QueueRegisters {
            size: self.rings.size(),
            ready: true,
            descriptors: self.rings.desc_table(),
            available: self.rings.avail_ring(),
            used: self.rings.used_ring(),
            ..QueueRegisters::new(self.rings.max_size())
        }
    }

    /// Returns whether every request that was taken has been answered.
    pub(crate) fn is_settled(&self) -> bool {
        self.rings.next_avail() == self.rings.next_used()
    }

    /// Continues where the kernel has stopped: it would have taken entry `next` of the available
    /// ring. What it has answered stands in the used ring.
    ///
    /// # Errors
    /// [`QueueError::Kernel`] if the rings do not fit together.
    pub(crate) fn go_on_at(&mut self, memory: &RamMap, next: u16) -> Result<(), QueueError> {
        let used = self.rings.used_idx(memory, Ordering::Acquire).map_err(|_| QueueError::Rings)?;
        if (Wrapping(next) - used).0 > self.rings.size() {
            return Err(QueueError::Kernel);
        }
        self.rings.set_next_avail(next);
        self.rings.set_next_used(used.0);
        self.checked = used;
        Ok(())
    }

    /// Returns the position of device and driver.
    pub(crate) fn position(&self) -> QueuePosition {
        QueuePosition { next_available: self.rings.next_avail(), next_used: self.rings.next_used() }
    }
}

/// Follows a descriptor chain to its end.
fn collect(memory: &RamMap, chain: DescriptorChain<&RamMap>) -> Result<Chain, QueueError> {
    let head = chain.head_index();
    let (mut readable, mut writable) = (Buffers::default(), Buffers::default());
    let (mut descriptors, mut goes_on) = (0, true);
    for descriptor in chain {
        descriptors += 1;
        goes_on = descriptor.has_next();
        // All readable descriptors come before the writable ones (virtio 1.2, 2.7.4.2).
        let late = !descriptor.is_write_only() && writable != Buffers::default();
        if descriptors > DESCRIPTORS_MAX || late {
            return Err(QueueError::Chain);
        }
        let buffers = if descriptor.is_write_only() { &mut writable } else { &mut readable };
        if !buffers.push(memory, descriptor.addr().0, descriptor.len()) {
            return Err(QueueError::Buffer);
        }
    }
    if goes_on { Err(QueueError::Chain) } else { Ok(Chain { head, readable, writable }) }
}
