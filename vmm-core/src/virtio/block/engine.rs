//! Carrying out what a driver asks of a disk.

use std::io;

use vm_memory::GuestMemoryError;

use super::disk::Disk;
use super::request::{Operation, Range};
use crate::memory::RamMap;
use crate::raw_io::{self, Clearing, Direction};
use crate::virtio::buffers::Buffers;

/// Zeros written at a time where the file system cannot clear a range by itself.
const ZEROS_BYTES: usize = 64 << 10;

/// A way to carry out operations. This one does so before it returns; one that goes on in the
/// background completes through [`crate::virtio::device::Device::ready`] and ends what it has begun in
/// [`crate::virtio::device::Device::drain`].
pub(crate) trait Engine: Send + std::fmt::Debug {
    /// Carries out `operation`, whose range lies on the disk.
    ///
    /// # Errors
    /// The system's answer.
    fn carry_out(&self, disk: &Disk, operation: &Operation, memory: &RamMap) -> io::Result<()>;
}

/// Positioned system calls, straight into and out of guest memory.
#[derive(Debug)]
pub(crate) struct Positioned;

impl Engine for Positioned {
    fn carry_out(&self, disk: &Disk, operation: &Operation, memory: &RamMap) -> io::Result<()> {
        match operation {
            Operation::Read { offset, into } => {
                transfer(disk, *offset, into, memory, Direction::In)
            }
            Operation::Write { offset, from } => {
                transfer(disk, *offset, from, memory, Direction::Out)
            }
            Operation::Flush => disk.file().sync_data(),
            Operation::Discard(ranges) => ranges.iter().try_for_each(|range| discard(disk, *range)),
            Operation::WriteZeroes(ranges) => {
                ranges.iter().try_for_each(|range| write_zeroes(disk, *range))
            }
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
    raw_io::transfer(disk.file(), offset, &slices, direction)
}

/// A discarded range holds anything; where holes are not possible it keeps what it has.
fn discard(disk: &Disk, range: Range) -> io::Result<()> {
    match raw_io::clear(disk.file(), range.offset, range.bytes, Clearing::PunchHole) {
        Err(error) if is_unsupported(&error) => Ok(()),
        result => result,
    }
}

fn write_zeroes(disk: &Disk, range: Range) -> io::Result<()> {
    let how = if range.unmap { Clearing::PunchHole } else { Clearing::Zero };
    match raw_io::clear(disk.file(), range.offset, range.bytes, how) {
        Err(error) if is_unsupported(&error) => write_zero_bytes(disk, range),
        result => result,
    }
}

fn write_zero_bytes(disk: &Disk, range: Range) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let zeros = vec![0; ZEROS_BYTES];
    let mut done = 0;
    while done < range.bytes {
        let now = (range.bytes - done).min(ZEROS_BYTES as u64);
        disk.file().write_all_at(&zeros[..now as usize], range.offset + done)?;
        done += now;
    }
    Ok(())
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}
