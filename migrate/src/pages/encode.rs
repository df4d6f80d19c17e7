//! Builds frames from guest memory.

use std::time::Instant;

use lz4_flex::block::{CompressTable, compress_into_with_table};

use super::buffer::Batch;
use super::compress::{Attempt, Chooser, Compression, Verdict, WireRate};
use super::header::{Encoding, FrameHeader, FrameKind, HEADER_BYTES};
use super::mask::runs;
use super::zero::is_zero;
use crate::memory::{CHUNK_BYTES, PAGE_BYTES};
use crate::progress::Transfer;

/// Builds the frames of one data stream.
pub struct Encoder {
    chooser: Chooser,
    table: CompressTable,
    scratch: Box<[u8]>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").field("chooser", &self.chooser).finish_non_exhaustive()
    }
}

impl Encoder {
    /// Creates an encoder that compresses according to `compression`.
    pub fn new(compression: Compression) -> Self {
        Self {
            chooser: Chooser::new(compression),
            table: CompressTable::large(),
            scratch: vec![0; CHUNK_BYTES].into_boxed_slice(),
        }
    }

    /// Appends one frame with the pages `pages` of `chunk` to `batch`, which must have room.
    ///
    /// `copy(first, out)` copies pages out of the guest, starting at `first`, as many as `out`
    /// holds. The guest may write to them meanwhile: everything after that reads the copy only.
    ///
    /// Returns the pages that the frame carries and its size.
    ///
    /// # Errors
    /// If `copy` fails, its error; `batch` is then unchanged.
    pub fn encode<E>(
        &mut self,
        batch: &mut Batch,
        position: Position,
        wire: &WireRate,
        mut copy: impl FnMut(usize, &mut [u8]) -> Result<(), E>,
    ) -> Result<Transfer, E> {
        let compress = self.chooser.wants(wire);
        let room = batch.room();
        let (head, body) = room.split_at_mut(HEADER_BYTES);
        let copied = if compress { &mut self.scratch[..] } else { &mut *body };
        copy_runs(position.pages, copied, &mut copy)?;
        let zero = squeeze_zero(position.pages, copied);
        let carried = (position.pages & !zero).count_ones() as usize;
        let content = carried * PAGE_BYTES;
        let (encoding, payload) = if compress {
            self.fill_compressed(content, body, wire)
        } else {
            (Encoding::Raw, content)
        };
        let header = FrameHeader {
            kind: FrameKind::Pages,
            encoding,
            round: position.round,
            payload_bytes: payload as u32,
            chunk: position.chunk,
            pages: position.pages,
            zero,
        };
        write_header(&header, head, &body[..payload]);
        batch.advance(HEADER_BYTES + payload);
        Ok(counts(encoding, carried, zero, HEADER_BYTES + payload))
    }

    /// Appends the last frame of the stream, after `frames` page frames.
    pub fn end(&mut self, batch: &mut Batch, round: u32, frames: u64) {
        write_header(&FrameHeader::end(round, frames), &mut batch.room()[..HEADER_BYTES], &[]);
        batch.advance(HEADER_BYTES);
    }

    /// Writes the first `content` bytes of the scratch buffer to `body`, compressed if that pays.
    fn fill_compressed(
        &mut self,
        content: usize,
        body: &mut [u8],
        wire: &WireRate,
    ) -> (Encoding, usize) {
        let input = &self.scratch[..content];
        if content > 0 {
            let start = Instant::now();
            let output = compress_into_with_table(input, body, &mut self.table);
            let output_bytes = output.unwrap_or(content);
            let attempt = Attempt { input_bytes: content, output_bytes, took: start.elapsed() };
            if self.chooser.judge(&attempt, wire) == Verdict::Send {
                return (Encoding::Lz4, output_bytes);
            }
        }
        body[..content].copy_from_slice(input);
        (Encoding::Raw, content)
    }
}

/// Identifies the pages that a frame carries.
#[derive(Debug, Clone, Copy)]
pub struct Position {
    /// Pre-copy round, from 1.
    pub round: u32,
    /// Index of the chunk; those of copied disks follow those of memory.
    pub chunk: u64,
    /// Mask of the pages to send, not zero.
    pub pages: u64,
}

fn copy_runs<E>(
    pages: u64,
    out: &mut [u8],
    copy: &mut impl FnMut(usize, &mut [u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = 0;
    for run in runs(pages) {
        let end = at + run.count * PAGE_BYTES;
        copy(run.first, &mut out[at..end])?;
        at = end;
    }
    Ok(())
}

/// Closes the gaps of zero pages in `packed`; returns the mask of the zero pages.
fn squeeze_zero(pages: u64, packed: &mut [u8]) -> u64 {
    let mut zero = 0;
    let mut left = pages;
    let (mut from, mut to) = (0, 0);
    while left != 0 {
        let bit = left & left.wrapping_neg();
        left ^= bit;
        if is_zero(&packed[from..from + PAGE_BYTES]) {
            zero |= bit;
        } else {
            if from != to {
                packed.copy_within(from..from + PAGE_BYTES, to);
            }
            to += PAGE_BYTES;
        }
        from += PAGE_BYTES;
    }
    zero
}

fn write_header(header: &FrameHeader, out: &mut [u8], payload: &[u8]) {
    let mut bytes = [0; HEADER_BYTES];
    header.encode(payload, &mut bytes);
    out.copy_from_slice(&bytes);
}

fn counts(encoding: Encoding, carried: usize, zero: u64, wire: usize) -> Transfer {
    let (carried, wire_bytes) = (carried as u64, wire as u64);
    let zero_pages = u64::from(zero.count_ones());
    let sent = Transfer { wire_bytes, frames: 1, zero_pages, ..Transfer::default() };
    match encoding {
        Encoding::Raw => Transfer { raw_pages: carried, ..sent },
        Encoding::Lz4 => Transfer { lz4_pages: carried, lz4_bytes: wire_bytes, ..sent },
    }
}
