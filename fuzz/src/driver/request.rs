//! Compliant or nearly compliant requests to each type of device.

use arbitrary::Arbitrary;
use vmm_core::GuestRam;

use super::ring::{Buffer, WRITABLE, put};

/// Guest physical addresses of a request's header, its status, and its data.
pub(super) const HEADER: u64 = 0x2_0000;
pub(super) const STATUS: u64 = 0x2_1000;
pub(super) const DATA: u64 = 0x10_0000;
/// From this value on, a request goes to the queue that the input names, even if it is the wrong
/// one.
const ANY_QUEUE: u8 = 250;

/// A driver's request to its device.
pub trait Request {
    /// Writes the content of the request into memory; returns its buffers.
    fn lay_out(&self, ram: &GuestRam) -> Vec<Buffer>;

    /// The queue for the request, when the input names the queue `any`.
    fn queue(&self, any: u8) -> u8 {
        any
    }
}

/// Returns `right`, for most values of `any`.
pub(super) fn queue_or(right: u8, any: u8) -> u8 {
    if any >= ANY_QUEUE { any } else { right }
}

/// Buffers that an entropy device is to fill.
#[derive(Debug, Arbitrary)]
pub struct Fill {
    lens: [u16; 3],
}

impl Request for Fill {
    fn lay_out(&self, _: &GuestRam) -> Vec<Buffer> {
        let place = |(index, len): (u64, &u16)| Buffer {
            gpa: DATA + index * 0x1_0000,
            len: (*len).into(),
            flags: WRITABLE,
        };
        (0..).zip(&self.lens).map(place).collect()
    }
}

/// A request to a balloon: page numbers, statistics, or free memory.
#[derive(Debug, Arbitrary)]
pub enum BalloonRequest {
    /// Pages to inflate or deflate: a page number, and the number of pages that follow.
    Pages(Vec<(u16, u8)>),
    /// Statistics, as tags and values.
    Statistics(Vec<(u8, u64)>),
    /// Free memory, as a page number and a size in bytes.
    Free(Vec<(u16, u32)>),
    /// The word that begins the answer to one of the first commands for hints; 0 is the word that
    /// ends it.
    Command(u8),
}

impl Request for BalloonRequest {
    fn lay_out(&self, ram: &GuestRam) -> Vec<Buffer> {
        let bytes: Vec<u8> = match self {
            Self::Pages(runs) => runs
                .iter()
                .flat_map(|(first, count)| (0..=u32::from(*count)).map(|at| u32::from(*first) + at))
                .flat_map(u32::to_le_bytes)
                .collect(),
            Self::Statistics(values) => values
                .iter()
                .flat_map(|(tag, value)| {
                    [&u16::from(*tag).to_le_bytes()[..], &value.to_le_bytes()].concat()
                })
                .collect(),
            Self::Command(0) => vec![0; 4],
            Self::Command(number) => ((1 << 31) + u32::from(*number) - 1).to_le_bytes().to_vec(),
            Self::Free(places) => {
                let free = |(page, bytes): &(u16, u32)| Buffer {
                    gpa: u64::from(*page) << 12,
                    len: *bytes,
                    flags: WRITABLE,
                };
                return places.iter().take(16).map(free).collect();
            }
        };
        put(ram, DATA, &bytes);
        vec![Buffer { gpa: DATA, len: bytes.len() as u32, flags: 0 }]
    }
}

/// A request to a disk.
#[derive(Debug, Arbitrary)]
pub struct DiskRequest {
    kind: Kind,
    sector: Sector,
    sectors: u8,
    /// Extra bytes, so that the data ends in the middle of a sector.
    excess: Option<u16>,
    /// Whether the data is in two buffers instead of one.
    split: bool,
    no_status: bool,
}

#[derive(Debug, Arbitrary)]
enum Kind {
    Read,
    Write,
    Flush,
    Identify,
    /// Ranges, each with its first sector, number of sectors, and flags.
    Discard(Vec<(u16, u16, u8)>),
    WriteZeroes(Vec<(u16, u16, u8)>),
    Other(u32),
}

#[derive(Debug, Arbitrary)]
enum Sector {
    Near(u16),
    Any(u64),
}

impl Kind {
    fn number(&self) -> u32 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Flush => 4,
            Self::Identify => 8,
            Self::Discard(_) => 11,
            Self::WriteZeroes(_) => 13,
            Self::Other(kind) => *kind,
        }
    }
}

impl DiskRequest {
    fn data(&self, ram: &GuestRam) -> (u32, u16) {
        let sectors = u32::from(self.sectors) * 512 + u32::from(self.excess.unwrap_or_default());
        match &self.kind {
            Kind::Read => (sectors, WRITABLE),
            Kind::Write => (sectors, 0),
            Kind::Flush => (0, 0),
            Kind::Identify => (20, WRITABLE),
            Kind::Other(kind) => (sectors, if kind & 1 == 0 { WRITABLE } else { 0 }),
            Kind::Discard(ranges) | Kind::WriteZeroes(ranges) => {
                let mut bytes = Vec::new();
                for (sector, sectors, flags) in ranges {
                    bytes.extend(u64::from(*sector).to_le_bytes());
                    bytes.extend(u32::from(*sectors).to_le_bytes());
                    bytes.extend(u32::from(*flags).to_le_bytes());
                }
                put(ram, DATA, &bytes);
                (bytes.len() as u32, 0)
            }
        }
    }
}

impl Request for DiskRequest {
    fn lay_out(&self, ram: &GuestRam) -> Vec<Buffer> {
        let sector = match self.sector {
            Sector::Near(sector) => u64::from(sector % 2100),
            Sector::Any(sector) => sector,
        };
        put(ram, HEADER, &self.kind.number().to_le_bytes());
        put(ram, HEADER + 8, &sector.to_le_bytes());
        let mut buffers = vec![Buffer { gpa: HEADER, len: 16, flags: 0 }];
        let (len, flags) = self.data(ram);
        if len > 1 && self.split {
            let first = len / 2;
            buffers.push(Buffer { gpa: DATA, len: first, flags });
            buffers.push(Buffer { gpa: DATA + u64::from(first), len: len - first, flags });
        } else if len > 0 {
            buffers.push(Buffer { gpa: DATA, len, flags });
        }
        if !self.no_status {
            buffers.push(Buffer { gpa: STATUS, len: 1, flags: WRITABLE });
        }
        buffers
    }

    fn queue(&self, any: u8) -> u8 {
        queue_or(0, any)
    }
}
