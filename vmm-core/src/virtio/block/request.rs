//! What a driver asks of a disk (virtio 1.2, 5.2.6), understood without touching the disk.
//!
//! A request is 16 bytes of header, data in one of the directions, and a byte for the status at the
//! very end. Anything is possible in it but to harm somebody else: what does not fit the disk or
//! the limits is answered with an error, and only a request without that last byte breaks the
//! queue.

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

/// Most buffers of a request's data; what the driver is told, too.
pub(crate) const SEGMENTS_MAX: u32 = 126;
/// Most bytes of one of them.
pub(crate) const SEGMENT_BYTES_MAX: u32 = 1 << 20;
/// Most bytes that a request moves: a pause waits for one such request at most.
const DATA_BYTES_MAX: u64 = SEGMENTS_MAX as u64 * SEGMENT_BYTES_MAX as u64;
/// Most ranges that one request discards or fills with zeros.
pub(crate) const RANGES_MAX: u32 = 16;
/// Most sectors of a range to be discarded: 1 GiB.
pub(crate) const DISCARD_SECTORS_MAX: u32 = (1 << 30) / SECTOR_BYTES as u32;
/// Most sectors of a range to be filled with zeros: 16 MiB, as they may have to be written.
pub(crate) const ZERO_SECTORS_MAX: u32 = (16 << 20) / SECTOR_BYTES as u32;

const HEADER_BYTES: usize = 16;
const RANGE_BYTES: u64 = 16;

/// What requests are measured against.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Sectors of the disk, as the guest knows it.
    pub(crate) sectors: u64,
    /// What the guest may do with it.
    pub(crate) access: Access,
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    /// Done.
    Ok = VIRTIO_BLK_S_OK as u8,
    /// Not possible, or it failed.
    Failed = VIRTIO_BLK_S_IOERR as u8,
    /// The disk does not know such requests.
    Unsupported = VIRTIO_BLK_S_UNSUPP as u8,
}

/// A range of the disk, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    /// Of the first byte.
    pub(crate) offset: u64,
    /// Length, not 0.
    pub(crate) bytes: u64,
    /// Whether its place may be given back.
    pub(crate) unmap: bool,
}

/// Something to be done with the disk. Every range lies on it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Read from the disk.
    Read {
        /// From this byte on.
        offset: u64,
        /// To here.
        into: Buffers,
    },
    /// Write to the disk.
    Write {
        /// From this byte on.
        offset: u64,
        /// From here.
        from: Buffers,
    },
    /// Make durable what was written.
    Flush,
    /// Forget what is there.
    Discard(Vec<Range>),
    /// Fill with zeros.
    WriteZeroes(Vec<Range>),
}

impl Operation {
    /// What it changes of the disk, as one range that holds all of it: first byte and length.
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

/// What a request wants.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Something of the disk.
    Do(Operation),
    /// The serial number, in these 20 bytes.
    Identify(Buffers),
    /// Something that is answered with an error at once.
    Refused(Status),
}

/// A request that can be answered.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// What it wants.
    pub(crate) wish: Wish,
    /// Bytes that it writes to guest memory when it succeeds, without the status.
    pub(crate) data_bytes: u32,
    /// The byte for the status.
    pub(crate) status: Buffers,
}

/// Understands a request.
///
/// # Errors
/// [`QueueError::Request`] when there is no byte for the status.
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

/// Type and first sector.
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

impl Limits {
    fn may_write(&self) -> Result<(), Status> {
        match self.access {
            Access::ReadWrite => Ok(()),
            Access::ReadOnly => Err(Status::Failed),
        }
    }

    /// The offset of `sector` on the disk, when all of `data` has room from there on.
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

/// The ranges of a request to discard or to fill with zeros; `flags_known` are those it may have.
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

/// The 32-bit word at `at`, which must lie within `bytes`.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes[at..].first_chunk().map_or(0, |word| u32::from_le_bytes(*word))
}

/// The 64-bit word at `at`, which must lie within `bytes`.
fn long(bytes: &[u8], at: usize) -> u64 {
    bytes[at..].first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
}
