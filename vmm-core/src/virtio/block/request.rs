//! Parses the driver's requests to a disk (virtio 1.2, 5.2.6) without access to the disk.
//!
//! A request is a header of 16 bytes, data in one of the directions, and a status byte at the very
//! end. A hostile request can only harm its own guest: one that does not fit the disk or the limits
//! is answered with an error, and only a request without the status byte breaks the queue.

#[cfg(test)]
mod tests;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::{Access, SECTOR_BYTES};
use crate::memory::RamMap;
use crate::virtio::buffers::Buffers;
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::signals::ConfigSpace;

/// Most data buffers of a request, as announced to the driver.
const SEGMENTS_MAX: u32 = 126;
/// Most bytes of one data buffer, as announced to the driver.
const SEGMENT_BYTES_MAX: u32 = 1 << 20;
/// Most data of a request in bytes, which bounds how long a pause waits for it.
const DATA_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;
/// Most ranges that one request discards or zeroes.
const RANGES_MAX: u32 = 16;
/// Most sectors of a range to discard: 1 GiB.
const DISCARD_SECTORS_MAX: u32 = (1 << 30) / SECTOR_BYTES as u32;
/// Most sectors of a range to zero: 16 MiB, as zeros may have to be written.
const ZERO_SECTORS_MAX: u32 = (16 << 20) / SECTOR_BYTES as u32;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: u64 = 16;

/// Limits that every request must respect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Size of the disk in sectors, as the guest knows it.
    pub(crate) sectors: u64,
    /// What the guest may do with the disk.
    pub(crate) access: Access,
}

/// Status with which a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// The request succeeded.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// The request was invalid, or it failed.
    Failed = VIRTIO_BLK_S_IOERR as u8,
    /// The disk does not support this kind of request.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// A range of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// Offset of the first byte.
    pub(crate) offset: u64,
    /// Length in bytes, not 0.
    pub(crate) bytes: u64,
    /// Whether its space may be freed.
    pub(crate) unmap: bool,
}

/// An operation on the disk. Every range lies on the disk.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Read from the disk.
    Read {
        /// Offset on the disk, in bytes.
        offset: u64,
        /// Buffers to fill.
        into: Buffers,
    },
    /// Write to the disk.
    Write {
        /// Offset on the disk, in bytes.
        offset: u64,
        /// Buffers to write.
        from: Buffers,
    },
    /// Make earlier writes durable.
    Flush,
    /// Discard the content of ranges.
    Discard(Vec<Range>),
    /// Fill ranges with zeros.
    WriteZeroes(Vec<Range>),
}

impl Operation {
    /// Returns the part of the disk that it changes, as one range that covers all: first byte and
    /// length.
    pub(crate) fn writes(&self) -> Option<(u64, u64)> {
        match self {
            Self::Read { .. } | Self::Flush => None,
            Self::Write { offset, from } => Some((*offset, from.bytes())),
            Self::Discard(ranges) | Self::WriteZeroes(ranges) => {
                let from = ranges.iter().map(|range| range.offset).min()?;
                let to = ranges.iter().map(|range| range.offset + range.bytes).max()?;
                Some((from, to - from))
            }
        }
    }
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// An operation on the disk.
    Do(Operation),
    /// The serial number, to be written to these 20 bytes.
    Identify(Buffers),
    /// Something that is not possible: it is answered with this error at once.
    Refused(Status),
}

/// A request that can be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// What it asks for.
    pub(crate) wish: Wish,
    /// Bytes that it writes to guest memory if it succeeds, without the status.
    pub(crate) data_bytes: u32,
    /// Buffer of the status byte.
    pub(crate) status: Buffers,
}

/// Parses a request.
///
/// # Errors
/// [`QueueError::Request`] if there is no status byte.
pub(crate) fn parse(chain: Chain, memory: &RamMap, limits: &Limits) -> Result<Request, QueueError> {
    let Chain { mut readable, mut writable, .. } = chain;
    let status = writable.take_back(1).ok_or(QueueError::Request)?;
    let data_bytes = writable.bytes() as u32;
    let wish = match read_header(&mut readable, memory) {
        Some((kind, sector)) => wish(kind, sector, readable, writable, memory, limits),
        None => Err(Status::Failed),
    };
    Ok(match wish {
        Ok(wish @ (Wish::Do(Operation::Read { .. }) | Wish::Identify(_))) => {
            Request { wish, data_bytes, status }
        }
        Ok(wish) => Request { wish, data_bytes: 0, status },
        Err(refusal) => Request { wish: Wish::Refused(refusal), data_bytes: 0, status },
    })
}

/// Returns the type and the first sector.
fn read_header(readable: &mut Buffers, memory: &RamMap) -> Option<(u32, u64)> {
    let mut header = [0; HEADER_BYTES];
    readable.take_front(HEADER_BYTES as u64)?.read(memory, &mut header).ok()?;
    Some((word(&header, 0), long(&header, 8)))
}

fn wish(
    kind: u32,
    sector: u64,
    readable: Buffers,
    writable: Buffers,
    memory: &RamMap,
    limits: &Limits,
) -> Result<Wish, Status> {
    let operation = match kind {
        VIRTIO_BLK_T_IN => {
            let offset = limits.place(sector, &writable)?;
            Operation::Read { offset, into: writable }
        }
        VIRTIO_BLK_T_OUT => {
            limits.may_write()?;
            let offset = limits.place(sector, &readable)?;
            Operation::Write { offset, from: readable }
        }
        VIRTIO_BLK_T_FLUSH => Operation::Flush,
        VIRTIO_BLK_T_DISCARD => {
            limits.may_write()?;
            Operation::Discard(ranges(&readable, memory, limits, DISCARD_SECTORS_MAX, 0)?)
        }
        VIRTIO_BLK_T_WRITE_ZEROES => {
            limits.may_write()?;
            let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
            Operation::WriteZeroes(ranges(&readable, memory, limits, ZERO_SECTORS_MAX, unmap)?)
        }
        VIRTIO_BLK_T_GET_ID if writable.bytes() == 20 => return Ok(Wish::Identify(writable)),
        VIRTIO_BLK_T_GET_ID => return Err(Status::Failed),
        _ => return Err(Status::Unsupported),
    };
    Ok(Wish::Do(operation))
}

/// Writes the status of a request; returns the total number of bytes written to guest memory.
///
/// # Errors
/// [`QueueError::Buffer`], if the guest's memory cannot be written.
pub(crate) fn answered(
    place: &Buffers,
    status: Status,
    data_bytes: u32,
    memory: &RamMap,
) -> Result<u32, QueueError> {
    place.write(memory, &[status as u8]).map_err(|_| QueueError::Buffer)?;
    let written = if status == Status::Ok { data_bytes } else { 0 };
    Ok(written.saturating_add(1))
}

impl Limits {
    /// Returns `struct virtio_blk_config` (virtio 1.2, 5.2.4) of a disk with `queues` queues.
    pub(crate) fn announced(&self, queues: u16) -> ConfigSpace {
        let mut bytes = vec![0; 60];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR_BYTES as u32).to_le_bytes());
        put(34, &queues.to_le_bytes());
        let any_alignment = 1u32;
        for (at, value) in [(36, DISCARD_SECTORS_MAX), (40, RANGES_MAX), (44, any_alignment)] {
            put(at, &value.to_le_bytes());
        }
        put(48, &ZERO_SECTORS_MAX.to_le_bytes());
        put(52, &RANGES_MAX.to_le_bytes());
        let may_unmap = 1;
        put(56, &[may_unmap]);
        self.put_sectors(&mut bytes);
        ConfigSpace::read_only(bytes)
    }

    /// Changes the size in a `struct virtio_blk_config`.
    pub(crate) fn put_sectors(&self, config: &mut [u8]) {
        config[..8].copy_from_slice(&self.sectors.to_le_bytes());
    }

    fn may_write(&self) -> Result<(), Status> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Status::Failed),
        }
    }

    /// Returns the offset of `sector` in bytes, if all of `data` fits on the disk from there on.
    fn place(&self, sector: u64, data: &Buffers) -> Result<u64, Status> {
        let bytes = data.bytes();
        if bytes == 0 || bytes > DATA_BYTES_MAX || !bytes.is_multiple_of(SECTOR_BYTES) {
            return Err(Status::Failed);
        }
        self.offset(sector, bytes / SECTOR_BYTES)
    }

    fn offset(&self, sector: u64, sectors: u64) -> Result<u64, Status> {
        match sector.checked_add(sectors) {
            Some(end) if end <= self.sectors => Ok(sector * SECTOR_BYTES),
            _ => Err(Status::Failed),
        }
    }
}

/// Returns the ranges of a discard or write-zeroes request; `flags_known` are the flags it may
/// have.
fn ranges(
    data: &Buffers,
    memory: &RamMap,
    limits: &Limits,
    sectors_max: u32,
    flags_known: u32,
) -> Result<Vec<Range>, Status> {
    let bytes = data.bytes();
    let count = bytes / RANGE_BYTES;
    if !bytes.is_multiple_of(RANGE_BYTES) || !(1..=u64::from(RANGES_MAX)).contains(&count) {
        return Err(Status::Failed);
    }
    let mut table = vec![0; bytes as usize];
    data.read(memory, &mut table).map_err(|_| Status::Failed)?;
    let range = |entry: &[u8]| {
        let (sector, sectors, flags) = (long(entry, 0), word(entry, 8), word(entry, 12));
        if flags & !flags_known != 0 {
            return Err(Status::Unsupported);
        }
        if sectors == 0 || sectors > sectors_max {
            return Err(Status::Failed);
        }
        let offset = limits.offset(sector, sectors.into())?;
        let bytes = u64::from(sectors) * SECTOR_BYTES;
        Ok(Range { offset, bytes, unmap: flags != 0 })
    };
    table.chunks_exact(RANGE_BYTES as usize).map(range).collect()
}

/// Returns the 32-bit word at `at`, which must lie within `bytes`.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

/// Returns the 64-bit word at `at`, which must lie within `bytes`.
fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}
