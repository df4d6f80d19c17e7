//! The disk device.

use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::SECTOR_BYTES;
use super::config::{Access, BlockConfig};
use super::content::DiskContent;
use super::disk::Disk;
use super::engine::{self, Engine, Ticket};
use super::request::{Limits, Operation, Request, Status, Wish, answered, parse};
use super::write_limit::Turn;
use crate::memory::RamMap;
use crate::virtio::DeviceError;
use crate::virtio::device::{Answer, Device, DeviceKind, Progress, Rings};
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::signals::ConfigSpace;

/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Requests taken before the thread checks for other work.
const BATCH: usize = 16;
/// Delay until requests that the kernel did not accept are submitted again.
const SUBMIT_AGAIN: Duration = Duration::from_millis(5);
/// Size of the serial number in bytes, padded with zeros.
const SERIAL_BYTES: usize = 20;

/// A disk of a guest.
#[derive(Debug)]
pub(crate) struct BlockDevice {
    // Dropped first: it may still use the fields below.
    engine: Engine,
    disk: Disk,
    content: Arc<DiskContent>,
    limits: Limits,
    queues: u16,
    /// Requests in flight, by queue.
    under_way: Vec<u16>,
    /// Those of them that are completed and not answered.
    completed: VecDeque<(Ticket, io::Result<()>)>,
    serial: [u8; SERIAL_BYTES],
    /// Whether each write must be durable, as for a driver that does not flush.
    writes_through: bool,
    /// Whether a failed request was logged. Only the first one is: a guest can repeat it as often
    /// as it likes.
    warned: bool,
    /// When requests that the kernel did not accept are submitted again.
    submit_at: Option<Instant>,
    /// Whether it was logged that io_uring does not do its work.
    ring_warned: bool,
}

impl BlockDevice {
    /// Opens the disk without locking it, unless it is arriving; creates its file then, if it has
    /// none.
    ///
    /// # Errors
    /// [`DeviceError`], if the disk or its engine cannot be used.
    pub(crate) fn open(config: &BlockConfig) -> Result<Self, DeviceError> {
        let config = &config.made()?;
        let failed = |cause| DeviceError::Disk { path: config.path().to_path_buf(), cause };
        let disk = Disk::open(config)?;
        disk.expect_bytes(config.bytes())?;
        let content = Arc::new(DiskContent::new(config, disk.store()));
        let mut serial = [0; SERIAL_BYTES];
        let given = config.serial().as_bytes();
        let len = given.len().min(SERIAL_BYTES);
        serial[..len].copy_from_slice(&given[..len]);
        let queues = config.queues();
        let requests_max = u32::from(queues) * u32::from(QUEUE_SIZE);
        let engine = Engine::new(config.engine(), requests_max).map_err(|cause| {
            failed(io::Error::new(cause.kind(), format!("cannot use io_uring: {cause}")))
        })?;
        Ok(Self {
            engine,
            disk,
            content,
            limits: Limits { sectors: config.bytes() / SECTOR_BYTES, access: config.access() },
            queues,
            under_way: vec![0; queues.into()],
            completed: VecDeque::new(),
            serial,
            writes_through: false,
            warned: false,
            submit_at: None,
            ring_warned: false,
        })
    }

    /// Returns the disk's content, for copying it while the guest runs.
    pub(crate) fn content(&self) -> Arc<DiskContent> {
        Arc::clone(&self.content)
    }

    /// Grows the disk to `bytes`, or to what its file or block device has by now, and tells the
    /// driver; returns the size.
    ///
    /// # Errors
    /// [`DeviceError::Resize`].
    pub(crate) fn grow(
        &mut self,
        bytes: Option<u64>,
        rings: &Rings<'_>,
    ) -> Result<u64, DeviceError> {
        let known = self.limits.sectors * SECTOR_BYTES;
        let bytes = self.disk.new_size(known, bytes)?;
        if bytes == known {
            return Ok(bytes);
        }
        // What requests in flight read may move.
        self.complete_all();
        self.disk.grow(known, bytes)?;
        let synced = self.content.note_synced(self.disk.store().sync());
        synced
            .map_err(|cause| DeviceError::Resize { path: self.content.path().to_owned(), cause })?;
        // A guest that was saved on the disk does not fit it any more.
        if self.content.take_seals() {
            self.disk.break_seals();
        }
        self.content.set_bytes(bytes);
        self.limits.sectors = bytes / SECTOR_BYTES;
        rings.change_config(|config| self.limits.put_sectors(config));
        Ok(bytes)
    }

    /// Answers a request, or starts its operation. If writes are limited, what is written counts at
    /// the time `limited_at`.
    fn take(
        &mut self,
        queue: usize,
        chain: Chain,
        memory: &RamMap,
        limited_at: Option<Instant>,
    ) -> Result<Answer, QueueError> {
        let head = chain.head;
        let Request { wish, data_bytes, status } = parse(chain, memory, &self.limits)?;
        let answer = match wish {
            Wish::Refused(refusal) => refusal,
            Wish::Identify(place) => {
                place.write(memory, &self.serial).map_err(|_| QueueError::Buffer)?;
                Status::Ok
            }
            Wish::Do(operation) => {
                let writes = operation.writes();
                if let Some((range, now)) = writes.zip(limited_at) {
                    self.content.write_limit().spend(queue, range, now);
                }
                let is_flush = matches!(operation, Operation::Flush);
                let ticket = Ticket { queue, head, data_bytes, status, writes, is_flush };
                return self.set_about(operation, ticket, memory);
            }
        };
        answered(&status, answer, data_bytes, memory).map(Answer::Now)
    }

    /// Queues `operation` on the ring, or executes it.
    fn set_about(
        &mut self,
        operation: Operation,
        ticket: Ticket,
        memory: &RamMap,
    ) -> Result<Answer, QueueError> {
        let planned = match &self.engine {
            Engine::Ring(_) => engine::order(self.disk.store(), operation, self.writes_through),
            Engine::Positioned => Err(operation),
        };
        let (file, order) = match planned {
            Ok(planned) => planned,
            Err(operation) => {
                let done = self.carry_out(&operation, memory);
                return self.finished(&ticket, done, memory).map(Answer::Now);
            }
        };
        let Engine::Ring(ring) = &mut self.engine else { return Err(QueueError::Request) };
        let queue = ticket.queue;
        // A request occupies a descriptor until it is answered, so a correct driver stays below
        // this limit.
        if self.under_way[queue] >= QUEUE_SIZE {
            return Err(QueueError::Available);
        }
        match ring.begin(&file, memory, order, ticket) {
            Ok(()) => {
                self.under_way[queue] += 1;
                Ok(Answer::Later)
            }
            Err((error, ticket)) => self.finished(&ticket, Err(error), memory).map(Answer::Now),
        }
    }

    fn carry_out(&mut self, operation: &Operation, memory: &RamMap) -> io::Result<()> {
        let changes = !matches!(operation, Operation::Read { .. } | Operation::Flush);
        if changes && !self.disk.store().is_raw() {
            // It may move or free what the requests in flight read and write.
            self.complete_all();
        }
        engine::carry_out(self.disk.store(), operation, memory)?;
        if changes && self.writes_through { self.disk.store().sync() } else { Ok(()) }
    }

    /// Completes a request; returns how many bytes were written to guest memory.
    fn finished(
        &mut self,
        ticket: &Ticket,
        done: io::Result<()>,
        memory: &RamMap,
    ) -> Result<u32, QueueError> {
        if let Some((offset, bytes)) = ticket.writes {
            self.content.log().mark(offset, bytes);
        }
        // The error of a lost write may have been reported to lighter's own flush instead.
        let done =
            if ticket.is_flush { done.and_then(|()| self.content.expect_no_fault()) } else { done };
        let answer = match done {
            Ok(()) => Status::Ok,
            Err(error) => {
                if !std::mem::replace(&mut self.warned, true) {
                    tracing::warn!(disk = %self.disk.path().display(), %error, "a request to a disk has failed");
                }
                Status::Failed
            }
        };
        answered(&ticket.status, answer, ticket.data_bytes, memory)
    }

    /// Submits the queued requests; those that the kernel does not accept are tried again a little
    /// later.
    fn submit(&mut self) {
        let Engine::Ring(ring) = &mut self.engine else { return };
        if let Err(error) = ring.submit() {
            self.warn_of_ring(&error);
        }
        self.plan_submission();
    }

    fn plan_submission(&mut self) {
        let Engine::Ring(ring) = &mut self.engine else { return };
        self.submit_at = ring.has_unsubmitted().then(|| Instant::now() + SUBMIT_AGAIN);
    }

    /// Waits for all requests in flight, which are answered later.
    fn complete_all(&mut self) {
        loop {
            while let Engine::Ring(ring) = &mut self.engine
                && let Some(done) = ring.reap()
            {
                self.completed.push_back(done);
            }
            if !self.wait() {
                break;
            }
        }
    }

    /// Returns the next request that is completed and not answered.
    fn next_completed(&mut self) -> Option<(Ticket, io::Result<()>)> {
        self.completed.pop_front().or_else(|| match &mut self.engine {
            Engine::Ring(ring) => ring.reap(),
            Engine::Positioned => None,
        })
    }

    /// Answers the requests that the ring has completed.
    fn reap(&mut self, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        let memory = rings.ram().memory();
        let mut touched = 0u32;
        while let Some((ticket, done)) = self.next_completed() {
            self.under_way[ticket.queue] -= 1;
            touched |= 1 << ticket.queue;
            let written = self.finished(&ticket, done, memory)?;
            rings.finish(ticket.queue, ticket.head, written)?;
        }
        self.plan_submission();
        (0..usize::from(self.queues))
            .filter(|queue| touched >> queue & 1 == 1)
            .try_for_each(|queue| rings.notify_driver(queue))
    }

    /// Waits until the ring completes a request; returns false if none is in flight.
    fn wait(&mut self) -> bool {
        let Engine::Ring(ring) = &mut self.engine else { return false };
        if ring.in_flight() == 0 {
            return false;
        }
        if let Err(error) = ring.wait() {
            self.warn_of_ring(&error);
            std::thread::sleep(SUBMIT_AGAIN);
        }
        true
    }

    /// Logs the first error of io_uring, which is tried again every few milliseconds.
    fn warn_of_ring(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.ring_warned, true) {
            tracing::warn!(disk = %self.disk.path().display(), %error, "io_uring takes no requests; trying again");
        }
    }
}

impl Device for BlockDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | u64::from(self.queues > 1) << VIRTIO_BLK_F_MQ;
        let rest = match self.disk.access() {
            Access::ReadOnly => 1 << VIRTIO_BLK_F_RO,
            Access::ReadWrite => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        };
        always | rest
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; self.queues.into()]
    }

    fn config(&self) -> ConfigSpace {
        self.limits.announced(self.queues)
    }

    fn activate(&mut self, features: u64) {
        self.writes_through = features >> VIRTIO_BLK_F_FLUSH & 1 == 0;
    }

    fn process(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        let now = rings.now();
        let (batch, limited_at) = match self.content.write_limit().turn(index, now) {
            Turn::All => (BATCH, None),
            Turn::One => (1, Some(now)),
            Turn::After(wait) => return Ok(Progress::After(wait)),
        };
        let take = |chain, memory: &_| self.take(index, chain, memory, limited_at);
        let progress = rings.take_on(index, batch, take);
        // Requests that were queued must be submitted even if the queue is broken.
        self.submit();
        let progress = progress?;
        // Many requests complete at once, above all those that the host has cached.
        self.reap(rings)?;
        Ok(progress)
    }

    fn due(&self) -> Option<Instant> {
        self.submit_at
    }

    /// Submits again; completions then make the ring's descriptor readable.
    fn on_due(&mut self, _rings: &mut Rings<'_>) {
        self.submit();
    }

    fn watched(&self) -> Vec<RawFd> {
        match &self.engine {
            // Only edges matter, so the eventfd's counter is never read.
            Engine::Ring(ring) => vec![ring.event_fd()],
            Engine::Positioned => Vec::new(),
        }
    }

    fn ready(&mut self, _index: usize, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        self.reap(rings)
    }

    fn drain(&mut self, rings: &mut Rings<'_>) -> Result<(), QueueError> {
        let mut outcome = self.reap(rings);
        while !self.completed.is_empty() || self.wait() {
            let reaped = self.reap(rings);
            outcome = outcome.and(reaped);
        }
        outcome
    }

    /// Waits for the requests in flight without answering them: they still access guest memory.
    fn reset(&mut self) {
        self.complete_all();
        for (ticket, _) in self.completed.drain(..) {
            if let Some((offset, bytes)) = ticket.writes {
                self.content.log().mark(offset, bytes);
            }
        }
        self.under_way.fill(0);
    }

    fn take_over(&mut self) -> Result<(), DeviceError> {
        self.disk.take_over()
    }

    fn resumed(&mut self, _rings: &mut Rings<'_>) {
        if self.content.take_seals() {
            self.disk.break_seals();
        }
    }

    fn release(&mut self) {
        self.disk.release();
    }

    fn trust_disk(&mut self) {
        self.disk.trust();
    }

    /// Flushes the disk: another host does not see data in this host's page cache.
    fn settle(&mut self) -> Result<(), DeviceError> {
        if self.disk.may_be_written() { self.content.sync() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;
