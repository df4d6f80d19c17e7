//! Executes a driver's requests to a disk.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::GuestMemoryError;

use super::config::EngineChoice;
use super::disk::Disk;
use super::request::{Operation, Range};
use crate::memory::RamMap;
use crate::sys::file::{self, Clearing, Direction};
use crate::sys::uring::Uring;
use crate::virtio::buffers::Buffers;

/// Zeros written at a time, in bytes, if the file system cannot clear a range itself.
const ZEROS_BYTES: usize = 64 << 10;

/// How a disk's requests are executed.
#[derive(Debug)]
pub(super) enum Engine {
    /// With positioned system calls, each complete before the next request is taken.
    Positioned,
    /// With io_uring: reads, writes and flushes run concurrently; the rest as above.
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

/// Executes `operation`, whose range must lie on the disk, before it returns.
///
/// # Errors
/// If a system call fails.
pub(super) fn carry_out(disk: &Disk, operation: &Operation, memory: &RamMap) -> io::Result<()> {
    match operation {
        Operation::Read { offset, into } => transfer(disk, *offset, into, memory, Direction::In),
        Operation::Write { offset, from } => transfer(disk, *offset, from, memory, Direction::Out),
        Operation::Flush => disk.file().sync_data(),
        Operation::Discard(ranges) => ranges.iter().try_for_each(|range| discard(disk, *range)),
        Operation::WriteZeroes(ranges) => {
            ranges.iter().try_for_each(|range| write_zeroes(disk, *range))
        }
    }
}

fn transfer(
    disk: &Disk,
    offset: u64,
    buffers: &Buffers,
    memory: &RamMap,
    direction: Direction,
) -> io::Result<()> {
    let outside = |error: GuestMemoryError| io::Error::other(error);
    let slices = buffers.slices(memory).map_err(outside)?;
    file::transfer(disk.file(), offset, &slices, direction)
}

/// A discarded range may read as anything; where holes are not supported it keeps its content.
fn discard(disk: &Disk, range: Range) -> io::Result<()> {
    match file::clear(disk.file(), range.offset, range.bytes, Clearing::PunchHole) {
        Err(error) if is_unsupported(&error) => Ok(()),
        result => result,
    }
}

fn write_zeroes(disk: &Disk, range: Range) -> io::Result<()> {
    let how = if range.unmap { Clearing::PunchHole } else { Clearing::Zero };
    match file::clear(disk.file(), range.offset, range.bytes, how) {
        Err(error) if is_unsupported(&error) => {
            write_zero_bytes(disk.file(), range.offset, range.bytes)
        }
        result => result,
    }
}

/// Writes `bytes` zeros from `offset` on.
///
/// # Errors
/// The error from the system.
pub(super) fn write_zero_bytes(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; ZEROS_BYTES];
    let mut done = 0;
    while done < bytes {
        let now = (bytes - done).min(ZEROS_BYTES as u64);
        file.write_all_at(&zeros[..now as usize], offset + done)?;
        done += now;
    }
    Ok(())
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}
