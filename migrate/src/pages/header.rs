//! The fixed header of a chunk frame.
//!
//! Layout, little-endian, 48 bytes:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `LTRF` |
//! | 4 | 1 | kind: 1 pages, 2 end of stream |
//! | 5 | 1 | encoding: 0 raw, 1 lz4 |
//! | 6 | 2 | reserved, zero |
//! | 8 | 4 | round |
//! | 12 | 4 | payload length in bytes |
//! | 16 | 8 | chunk index; in an end frame, the number of page frames sent on the stream |
//! | 24 | 8 | mask of the pages carried |
//! | 32 | 8 | mask of those that are zero and so have no bytes in the payload |
//! | 40 | 8 | checksum: xxh3-64 of the payload, seeded with the xxh3-64 of bytes 0 to 39 |

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::memory::PAGE_BYTES;

/// Bytes in a frame's header.
pub const HEADER_BYTES: usize = 48;

const MAGIC: u32 = u32::from_le_bytes(*b"LTRF");
const CHECKED: usize = 40;

/// The kind of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// Pages of one chunk.
    Pages,
    /// Nothing: the last frame of its stream.
    End,
}

/// The encoding of a frame's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// The pages one after the other, without compression.
    Raw,
    /// All pages of the frame as one lz4 block.
    Lz4,
}

/// Why bytes from the peer are not a valid frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first four bytes are not the frame magic.
    #[error("page frame starts with {found:#010x}, not with the frame magic")]
    Magic {
        /// The bytes found.
        found: u32,
    },
    /// A field has a value that this version does not know.
    #[error("page frame has an unknown {field}: {value}")]
    Unknown {
        /// Name of the field.
        field: &'static str,
        /// The value found.
        value: u64,
    },
    /// The chunk lies outside the guest's memory.
    #[error("page frame names chunk {chunk}, but the guest has {chunks}")]
    Chunk {
        /// Index in the frame.
        chunk: u64,
        /// Chunks in the guest's memory layout.
        chunks: u64,
    },
    /// The masks contradict each other or the frame's kind.
    #[error("page frame for chunk {chunk} has impossible masks: pages {pages:#x}, zero {zero:#x}")]
    Masks {
        /// Index in the frame.
        chunk: u64,
        /// Mask of pages carried.
        pages: u64,
        /// Mask of zero pages.
        zero: u64,
    },
    /// The payload length does not fit the masks and the encoding.
    #[error(
        "page frame for chunk {chunk} announces {length} bytes of payload; at most {limit} fit"
    )]
    Length {
        /// Index in the frame.
        chunk: u64,
        /// Length in the frame.
        length: u32,
        /// Bytes of the pages that are not zero.
        limit: usize,
    },
    /// The bytes changed in transit.
    #[error(
        "page frame for chunk {chunk} does not match its checksum: the data was damaged on its way"
    )]
    Checksum {
        /// Index in the frame.
        chunk: u64,
    },
    /// The lz4 block does not decode to the announced pages.
    #[error("page frame for chunk {chunk} does not decompress to the {expected} bytes announced")]
    Decompress {
        /// Index in the frame.
        chunk: u64,
        /// Bytes of the pages that are not zero.
        expected: usize,
    },
}

/// The header of a chunk frame; see the module documentation for its layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// The kind of the frame.
    pub kind: FrameKind,
    /// The encoding of the payload.
    pub encoding: Encoding,
    /// Pre-copy round, from 1.
    pub round: u32,
    /// Bytes of payload after the header.
    pub payload_bytes: u32,
    /// Chunk index; if the kind is [`FrameKind::End`], the number of frames sent.
    pub chunk: u64,
    /// Mask of the pages carried; bit 0 is the chunk's first page.
    pub pages: u64,
    /// Mask of those of `pages` that are zero.
    pub zero: u64,
}

impl FrameHeader {
    /// Returns the header of the last frame of a stream on which `frames` page frames were sent.
    pub fn end(round: u32, frames: u64) -> Self {
        Self {
            kind: FrameKind::End,
            encoding: Encoding::Raw,
            round,
            payload_bytes: 0,
            chunk: frames,
            pages: 0,
            zero: 0,
        }
    }

    /// Returns the mask of the pages that have bytes in the payload.
    pub fn carried(&self) -> u64 {
        self.pages & !self.zero
    }

    /// Returns the decoded size of the carried pages, in bytes.
    pub fn content_bytes(&self) -> usize {
        self.carried().count_ones() as usize * PAGE_BYTES
    }

    /// Writes the header for `payload` into `out`, including the checksum.
    pub fn encode(&self, payload: &[u8], out: &mut [u8; HEADER_BYTES]) {
        out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        out[4] = match self.kind {
            FrameKind::Pages => 1,
            FrameKind::End => 2,
        };
        out[5] = match self.encoding {
            Encoding::Raw => 0,
            Encoding::Lz4 => 1,
        };
        out[6..8].fill(0);
        out[8..12].copy_from_slice(&self.round.to_le_bytes());
        out[12..16].copy_from_slice(&self.payload_bytes.to_le_bytes());
        out[16..24].copy_from_slice(&self.chunk.to_le_bytes());
        out[24..32].copy_from_slice(&self.pages.to_le_bytes());
        out[32..40].copy_from_slice(&self.zero.to_le_bytes());
        let sum = checksum(out, payload);
        out[40..48].copy_from_slice(&sum.to_le_bytes());
    }

    /// Decodes and checks a header from the peer, for a guest of `chunks` chunks.
    ///
    /// The announced size is bounded: a payload never exceeds [`crate::memory::CHUNK_BYTES`]. The
    /// checksum also covers the payload, so [`FrameHeader::verify`] checks it once the payload has
    /// been read.
    ///
    /// # Errors
    /// If a field is wrong; the [`FrameError`] names it.
    pub fn decode(bytes: &[u8; HEADER_BYTES], chunks: u64) -> Result<Self, FrameError> {
        let found = u32_at(bytes, 0);
        if found != MAGIC {
            return Err(FrameError::Magic { found });
        }
        let reserved = u16::from_le_bytes([bytes[6], bytes[7]]);
        if reserved != 0 {
            return Err(FrameError::Unknown { field: "reserved field", value: reserved.into() });
        }
        let header = Self {
            kind: kind(bytes[4])?,
            encoding: encoding(bytes[5])?,
            round: u32_at(bytes, 8),
            payload_bytes: u32_at(bytes, 12),
            chunk: u64_at(bytes, 16),
            pages: u64_at(bytes, 24),
            zero: u64_at(bytes, 32),
        };
        match header.kind {
            FrameKind::Pages => header.check_pages(chunks)?,
            FrameKind::End => header.check_end()?,
        }
        Ok(header)
    }

    /// Checks `bytes`, the encoded form of this header, and `payload` against the checksum.
    ///
    /// # Errors
    /// [`FrameError::Checksum`] if they do not match.
    pub fn verify(&self, bytes: &[u8; HEADER_BYTES], payload: &[u8]) -> Result<(), FrameError> {
        if checksum(bytes, payload) == u64_at(bytes, CHECKED) {
            Ok(())
        } else {
            Err(FrameError::Checksum { chunk: self.chunk })
        }
    }

    fn check_pages(&self, chunks: u64) -> Result<(), FrameError> {
        let Self { chunk, pages, zero, payload_bytes: length, .. } = *self;
        if chunk >= chunks {
            return Err(FrameError::Chunk { chunk, chunks });
        }
        if pages == 0 || zero & !pages != 0 {
            return Err(FrameError::Masks { chunk, pages, zero });
        }
        let limit = self.content_bytes();
        let fits = match self.encoding {
            Encoding::Raw => length as usize == limit,
            Encoding::Lz4 => length > 0 && (length as usize) < limit,
        };
        if fits { Ok(()) } else { Err(FrameError::Length { chunk, length, limit }) }
    }

    fn check_end(&self) -> Result<(), FrameError> {
        let Self { chunk, pages, zero, payload_bytes: length, .. } = *self;
        if pages != 0 || zero != 0 {
            return Err(FrameError::Masks { chunk, pages, zero });
        }
        if length != 0 || self.encoding != Encoding::Raw {
            return Err(FrameError::Length { chunk, length, limit: 0 });
        }
        Ok(())
    }
}

fn kind(value: u8) -> Result<FrameKind, FrameError> {
    match value {
        1 => Ok(FrameKind::Pages),
        2 => Ok(FrameKind::End),
        value => Err(FrameError::Unknown { field: "kind", value: value.into() }),
    }
}

fn encoding(value: u8) -> Result<Encoding, FrameError> {
    match value {
        0 => Ok(Encoding::Raw),
        1 => Ok(Encoding::Lz4),
        value => Err(FrameError::Unknown { field: "encoding", value: value.into() }),
    }
}

fn checksum(header: &[u8; HEADER_BYTES], payload: &[u8]) -> u64 {
    xxh3_64_with_seed(payload, xxh3_64(&header[..CHECKED]))
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: [u8; PAGE_BYTES] = [9; PAGE_BYTES];

    fn header() -> FrameHeader {
        FrameHeader {
            kind: FrameKind::Pages,
            encoding: Encoding::Raw,
            round: 3,
            payload_bytes: PAGE_BYTES as u32,
            chunk: 7,
            pages: 0b101,
            zero: 0b100,
        }
    }

    fn encoded(header: &FrameHeader, payload: &[u8]) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        header.encode(payload, &mut bytes);
        bytes
    }

    #[test]
    fn decodes_what_was_encoded() {
        let bytes = encoded(&header(), &PAYLOAD);
        let decoded = FrameHeader::decode(&bytes, 8).unwrap();
        assert_eq!(decoded, header());
        assert_eq!(decoded.verify(&bytes, &PAYLOAD), Ok(()));
    }

    #[test]
    fn layout_on_the_wire_stays_as_documented() {
        let bytes = encoded(&FrameHeader::end(0x0102_0304, 0x1122), &[]);
        assert_eq!(&bytes[..24], b"LTRF\x02\0\0\0\x04\x03\x02\x01\0\0\0\0\x22\x11\0\0\0\0\0\0");
    }

    #[test]
    fn refuses_a_flipped_bit_in_every_byte_of_the_header() {
        let good = encoded(&header(), &PAYLOAD);
        for at in 0..HEADER_BYTES {
            for bit in 0..8 {
                let mut bytes = good;
                bytes[at] ^= 1 << bit;
                let outcome = FrameHeader::decode(&bytes, 8)
                    .and_then(|header| header.verify(&bytes, &PAYLOAD));
                assert!(outcome.is_err(), "byte {at} bit {bit}");
            }
        }
    }

    #[test]
    fn refuses_a_flipped_byte_of_the_payload() {
        let bytes = encoded(&header(), &PAYLOAD);
        let mut damaged = PAYLOAD;
        damaged[4000] ^= 0x40;
        let decoded = FrameHeader::decode(&bytes, 8).unwrap();
        assert_eq!(decoded.verify(&bytes, &damaged), Err(FrameError::Checksum { chunk: 7 }));
    }

    #[test]
    fn refuses_a_chunk_outside_memory() {
        let bytes = encoded(&header(), &PAYLOAD);
        assert_eq!(FrameHeader::decode(&bytes, 7), Err(FrameError::Chunk { chunk: 7, chunks: 7 }));
    }

    #[test]
    fn refuses_masks_that_contradict() {
        for (pages, zero) in [(0, 0), (1, 2), (0, 1)] {
            let bytes = encoded(&FrameHeader { pages, zero, ..header() }, &PAYLOAD);
            assert!(matches!(FrameHeader::decode(&bytes, 8), Err(FrameError::Masks { .. })));
        }
    }

    #[test]
    fn refuses_lengths_that_do_not_fit_the_masks() {
        let page = PAGE_BYTES as u32;
        for (encoding, payload_bytes) in [
            (Encoding::Raw, 0),
            (Encoding::Raw, page + 1),
            (Encoding::Raw, u32::MAX),
            (Encoding::Lz4, 0),
            (Encoding::Lz4, page),
            (Encoding::Lz4, u32::MAX),
        ] {
            let bytes = encoded(&FrameHeader { encoding, payload_bytes, ..header() }, &PAYLOAD);
            assert!(matches!(FrameHeader::decode(&bytes, 8), Err(FrameError::Length { .. })));
        }
    }

    #[test]
    fn refuses_an_end_frame_with_content() {
        for header in [
            FrameHeader { pages: 1, ..FrameHeader::end(0, 1) },
            FrameHeader { payload_bytes: 4096, ..FrameHeader::end(0, 1) },
            FrameHeader { encoding: Encoding::Lz4, ..FrameHeader::end(0, 1) },
        ] {
            assert!(FrameHeader::decode(&encoded(&header, &[]), 8).is_err());
        }
    }
}
