//! Executes a driver's requests to a disk.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::config::EngineChoice;
use super::request::Operation;
use super::store::Store;
use crate::memory::RamMap;
use crate::sys::file::{Clearing, Direction};
use crate::sys::uring::{Order, Transfer, Uring};
use crate::virtio::buffers::Buffers;

/// How a disk's requests are executed.
#[derive(Debug)]
pub(super) enum Engine {
    /// With positioned system calls, each complete before the next request is taken.
    Positioned,
    /// With io_uring. Reads and writes that lie in one place of one file, and flushes of raw disks,
    /// run concurrently; the rest as above.
    Ring(Box<Uring<Ticket>>),
}

/// A request in flight.
#[derive(Debug)]
pub(super) struct Ticket {
    /// Index of its queue.
    pub(super) queue: usize,
    /// Head of its descriptor chain.
    pub(super) head: u16,
    /// Bytes that it writes to guest memory if it succeeds, without the status.
    pub(super) data_bytes: u32,
    /// Buffer of the status byte.
    pub(super) status: Buffers,
    /// Range of the disk that it writes: first byte and length.
    pub(super) writes: Option<(u64, u64)>,
    /// Whether the guest asks for its earlier writes to be durable.
    pub(super) is_flush: bool,
}

impl Engine {
    /// Creates the engine of `choice`, for up to `requests_max` concurrent requests.
    ///
    /// # Errors
    /// If the configuration requires an engine that this process cannot use.
    pub(super) fn new(choice: EngineChoice, requests_max: u32) -> io::Result<Self> {
        match (choice, Uring::new) {
            (EngineChoice::Sync, _) => Ok(Self::Positioned),
            (EngineChoice::IoUring, new) => new(requests_max).map(Box::new).map(Self::Ring),
            (EngineChoice::Auto, new) => Ok(match new(requests_max) {
                Ok(ring) => Self::Ring(Box::new(ring)),
                Err(error) => {
                    tracing::debug!(%error, "no io_uring here; disks do without");
                    Self::Positioned
                }
            }),
        }
    }
}

/// Returns the order by which a ring executes `operation`, and its file; the operation, if a ring
/// cannot execute it, as a write to an image with `durable`. With that, a write is durable when it
/// completes.
pub(super) fn order(
    store: &Store,
    operation: Operation,
    durable: bool,
) -> Result<(Arc<File>, Order), Operation> {
    let (offset, buffers, direction) = match operation {
        Operation::Read { offset, into } => (offset, into, Direction::In),
        Operation::Write { offset, from } => (offset, from, Direction::Out),
        Operation::Flush if store.is_raw() => return Ok((Arc::clone(store.file()), Order::Sync)),
        other => return Err(other),
    };
    // Durable bytes are lost if the tables that refer to them are not durable.
    let may_use_ring = store.is_raw() || direction == Direction::In || !durable;
    let place = may_use_ring.then(|| store.place(offset, &buffers, direction)).flatten();
    match (place, direction) {
        (Some((file, offset)), _) => {
            let durable = durable && direction == Direction::Out;
            let buffers = buffers.into();
            Ok((file, Order::Transfer(Transfer { offset, buffers, direction, durable })))
        }
        (None, Direction::In) => Err(Operation::Read { offset, into: buffers }),
        (None, Direction::Out) => Err(Operation::Write { offset, from: buffers }),
    }
}

/// Executes `operation`, whose range must lie on the disk, before it returns.
///
/// # Errors
/// If a system call fails.
pub(super) fn carry_out(store: &Store, operation: &Operation, memory: &RamMap) -> io::Result<()> {
    match operation {
        Operation::Read { offset, into } => store.transfer(*offset, into, memory, Direction::In),
        Operation::Write { offset, from } => store.transfer(*offset, from, memory, Direction::Out),
        Operation::Flush => store.sync(),
        Operation::Discard(ranges) => {
            ranges.iter().try_for_each(|range| store.discard(range.offset, range.bytes))
        }
        Operation::WriteZeroes(ranges) => ranges.iter().try_for_each(|range| {
            let how = if range.unmap { Clearing::PunchHole } else { Clearing::Zero };
            store.clear(range.offset, range.bytes, how)
        }),
    }
}
