//! Frames for the guest, read directly into the buffers that its driver has offered.
//!
//! A frame's length is known only after it was read, so there must be space for the longest frame
//! first. If the driver accepts frames in pieces (`VIRTIO_NET_F_MRG_RXBUF`), buffers are therefore
//! taken from the queue in advance and *held*; those that a frame does not need are used for the
//! next one. A pause returns them to the queue. Only while a driver offers too few buffers is a
//! frame read into memory of the VMM first, and copied once it fits.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use vm_memory::{Bytes, GuestAddress};

use super::meter::Flow;
use super::{ETHERNET_BYTES, HEADER_BYTES, PAYLOAD_BYTES_MAX};
use crate::memory::RamMap;
use crate::sys::RamSlice;
use crate::sys::net::{self, Received};
use crate::virtio::device::Progress;
use crate::virtio::queue::{Chain, Queue, QueueError};

/// Frames received before the thread checks for other work: a pause waits for at most this many.
const BATCH: usize = 64;
/// Offset of the number of buffers in the header.
const BUFFER_COUNT: u64 = 10;

/// How the driver accepts frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filling {
    /// Each frame in one buffer.
    Single,
    /// Each frame in as many buffers as it needs.
    Merged,
}

/// Receives frames for the guest; see the module.
#[derive(Debug)]
pub(super) struct Receiver {
    filling: Filling,
    /// Size of the longest possible frame with its header, in bytes.
    room_wanted: u64,
    /// There may be a frame to read.
    readable: bool,
    held: VecDeque<Held>,
    /// A frame that was read into the VMM's memory, with its header.
    waiting: Option<Vec<u8>>,
}

/// A chain that was taken from the queue.
#[derive(Debug)]
struct Held {
    chain: Chain,
    bytes: u64,
}

impl Receiver {
    /// Creates a receiver of frames up to the MTU, or, with `takes_long`, up to the longest
    /// unsegmented frame.
    pub(super) fn new(filling: Filling, mtu: usize, takes_long: bool) -> Self {
        let payload = if takes_long { PAYLOAD_BYTES_MAX } else { mtu };
        let room_wanted = (HEADER_BYTES + ETHERNET_BYTES + payload) as u64;
        Self { filling, room_wanted, readable: true, held: VecDeque::new(), waiting: None }
    }

    /// Records that a frame may have arrived.
    pub(super) fn set_readable(&mut self) {
        self.readable = true;
    }

    /// Receives the available frames, as far as the driver has offered buffers.
    ///
    /// # Errors
    /// If the queue is broken.
    pub(super) fn process(
        &mut self,
        queue: &mut Queue,
        memory: &RamMap,
        frames: BorrowedFd<'_>,
        flow: &mut Flow,
    ) -> Result<Progress, QueueError> {
        queue.mute(memory)?;
        for _ in 0..BATCH {
            if !self.readable && self.waiting.is_none() {
                return Ok(Progress::Idle);
            }
            let wanted = self.waiting.as_ref().map_or(self.room_wanted, |frame| frame.len() as u64);
            if !self.make_room(wanted, queue, memory)? {
                // The driver notifies when it offers more. It may have offered a buffer before it
                // was told to notify.
                if queue.unmute(memory)? {
                    queue.mute(memory)?;
                    continue;
                }
                let is_all = self.held.len() >= usize::from(queue.size());
                if self.held.is_empty() || self.waiting.is_some() && !is_all {
                    return Ok(Progress::Idle);
                }
                queue.mute(memory)?;
                match self.waiting.take() {
                    // The driver has offered all the buffers that it can, and they are too small.
                    Some(_) => flow.drops += 1,
                    None => self.read_aside(frames, flow),
                }
                continue;
            }
            let done = match self.waiting.take() {
                Some(frame) => self.copy(&frame, queue, memory, flow),
                None => self.receive(queue, memory, frames, flow),
            };
            match done {
                Ok(()) => {}
                Err(Failure::Queue(error)) => return Err(error),
                Err(Failure::Read(error)) => self.note(&error, flow),
            }
        }
        Ok(Progress::More)
    }

    fn note(&mut self, error: &io::Error, flow: &mut Flow) {
        match error.kind() {
            io::ErrorKind::Interrupted => {}
            io::ErrorKind::WouldBlock => self.readable = false,
            // The tap is gone or down; the next frame makes it readable again.
            _ => {
                self.readable = false;
                flow.drops += 1;
            }
        }
    }

    /// Takes buffers from the queue until `wanted` bytes fit; returns false if the driver must
    /// offer more.
    fn make_room(
        &mut self,
        wanted: u64,
        queue: &mut Queue,
        memory: &RamMap,
    ) -> Result<bool, QueueError> {
        loop {
            let room: u64 = match self.filling {
                Filling::Single => self.held.front().map_or(0, |_| u64::MAX),
                Filling::Merged => self.held.iter().map(|held| held.bytes).sum(),
            };
            if room >= wanted {
                return Ok(true);
            }
            let Some(chain) = queue.pop(memory)? else { return Ok(false) };
            let bytes = chain.writable.bytes();
            if bytes < HEADER_BYTES as u64 {
                return Err(QueueError::Request);
            }
            // More buffers than the queue has entries: the driver has offered one twice.
            if self.held.len() >= usize::from(queue.size()) {
                return Err(QueueError::Available);
            }
            self.held.push_back(Held { chain, bytes });
        }
    }

    /// Reads a frame into the VMM's memory; it may not fit into the buffers that the driver has
    /// offered.
    fn read_aside(&mut self, frames: BorrowedFd<'_>, flow: &mut Flow) {
        let mut bytes = vec![0; self.room_wanted as usize + 1];
        match nix::unistd::read(frames, &mut bytes) {
            Ok(len) if len > HEADER_BYTES && len as u64 <= self.room_wanted => {
                bytes.truncate(len);
                self.waiting = Some(bytes);
            }
            Ok(_) => flow.drops += 1,
            Err(error) => self.note(&error.into(), flow),
        }
    }

    /// Copies a frame from the VMM's memory into the held buffers, which must have space for it.
    fn copy(
        &mut self,
        frame: &[u8],
        queue: &mut Queue,
        memory: &RamMap,
        flow: &mut Flow,
    ) -> Result<(), Failure> {
        let mut rest = frame;
        for held in &self.held {
            let (now, later) = rest.split_at(rest.len().min(held.bytes as usize));
            held.chain.writable.write(memory, now).map_err(|_| QueueError::Buffer)?;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        self.deliver(frame.len(), queue, memory, flow)
    }

    /// Receives one frame into the held buffers.
    fn receive(
        &mut self,
        queue: &mut Queue,
        memory: &RamMap,
        frames: BorrowedFd<'_>,
        flow: &mut Flow,
    ) -> Result<(), Failure> {
        let slices = self.slices(memory)?;
        let bytes = match net::receive(frames, &slices).map_err(Failure::Read)? {
            Received::Frame(bytes) if bytes > HEADER_BYTES => bytes,
            Received::Frame(_) | Received::TooLong => {
                flow.drops += 1;
                return Ok(());
            }
        };
        drop(slices);
        self.deliver(bytes, queue, memory, flow)
    }

    /// Counts a frame of `bytes`, including its header, that is in the held buffers, and hands it
    /// over.
    fn deliver(
        &mut self,
        bytes: usize,
        queue: &mut Queue,
        memory: &RamMap,
        flow: &mut Flow,
    ) -> Result<(), Failure> {
        flow.frames += 1;
        flow.bytes += (bytes - HEADER_BYTES) as u64;
        Ok(self.hand_over(queue, memory, bytes as u64)?)
    }

    /// Returns the space for the next frame, in at most as many pieces as one call accepts.
    fn slices<'a>(&self, memory: &'a RamMap) -> Result<Vec<RamSlice<'a>>, QueueError> {
        let mut slices = Vec::with_capacity(self.held.len());
        let usable = match self.filling {
            Filling::Single => 1,
            Filling::Merged => self.held.len(),
        };
        for held in self.held.iter().take(usable) {
            slices.extend(held.chain.writable.slices(memory).map_err(|_| QueueError::Buffer)?);
            if slices.len() > net::SLICES_MAX {
                slices.truncate(net::SLICES_MAX);
                break;
            }
        }
        Ok(slices)
    }

    /// Gives the driver the held buffers that contain the first `bytes`, all at once.
    fn hand_over(
        &mut self,
        queue: &mut Queue,
        memory: &RamMap,
        bytes: u64,
    ) -> Result<(), QueueError> {
        let (mut left, mut used) = (bytes, Vec::with_capacity(1));
        while left > 0
            && let Some(held) = self.held.get(used.len())
        {
            let written = left.min(held.bytes);
            left -= written;
            used.push((held.chain.head, written as u32));
        }
        if let Some(first) = self.held.front() {
            write_count(&first.chain, memory, used.len() as u16)?;
        }
        self.held.drain(..used.len());
        queue.push_used_together(memory, &used)
    }

    /// Returns the held buffers to the queue, so that only the queue's position has to be saved. A
    /// frame in the VMM's memory is lost.
    pub(super) fn put_back(&mut self, queue: Option<&mut Queue>) {
        if let Some(queue) = queue {
            queue.take_back(self.held.len());
        }
        self.held.clear();
        self.waiting = None;
    }
}

/// Writes the number of buffers into the frame's header.
fn write_count(chain: &Chain, memory: &RamMap, count: u16) -> Result<(), QueueError> {
    let broken = |_| QueueError::Buffer;
    let count = count.to_le_bytes();
    match chain.writable.pieces().next() {
        Some((gpa, len)) if len >= HEADER_BYTES as u64 => {
            memory.write_slice(&count, GuestAddress(gpa + BUFFER_COUNT)).map_err(broken)
        }
        _ => {
            let mut header = chain.writable.clone();
            let header = header.take_front(HEADER_BYTES as u64);
            let place = header.and_then(|mut header| header.take_back(count.len() as u64));
            place.ok_or(QueueError::Request)?.write(memory, &count).map_err(broken)
        }
    }
}

/// Why a frame was not received.
enum Failure {
    Queue(QueueError),
    Read(io::Error),
}

impl From<QueueError> for Failure {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}
