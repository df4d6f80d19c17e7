//! Buffers that frames are built in, returned to their pool once the transport releases them.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lz4_flex::block::get_maximum_output_size;

use super::header::HEADER_BYTES;
use crate::memory::CHUNK_BYTES;

/// Bytes of a batch's buffer: room for one frame at its worst, and for small frames to gather.
pub const BATCH_BYTES: usize = 512 * 1024;

/// Buffers that one pool keeps for reuse; any more go back to the allocator.
const KEPT_MAX: usize = 32;

/// A pool of buffers of equal size, so that a migration does not fault in new memory for every
/// frame.
#[derive(Debug, Clone, Default)]
pub struct BufferPool {
    free: Arc<Mutex<Vec<Box<[u8]>>>>,
}

impl BufferPool {
    /// Creates an empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a buffer for frames; allocates one if none is free.
    pub fn batch(&self) -> Batch {
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = free.unwrap_or_else(|| vec![0; BATCH_BYTES].into_boxed_slice());
        Batch { buffer: Pooled { bytes, home: self.free.clone() }, filled: 0 }
    }
}

/// A buffer that returns to its pool when dropped.
#[derive(Debug)]
struct Pooled {
    bytes: Box<[u8]>,
    home: Arc<Mutex<Vec<Box<[u8]>>>>,
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let mut free = self.home.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < KEPT_MAX {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

struct Filled(Pooled, usize);

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes[..self.1]
    }
}

/// Frames that are handed to the transport in one piece.
#[derive(Debug)]
pub struct Batch {
    buffer: Pooled,
    filled: usize,
}

impl Batch {
    /// Bytes written so far.
    pub fn len(&self) -> usize {
        self.filled
    }

    /// Returns whether nothing has been written yet.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }

    /// Returns whether a frame of any size still fits.
    pub fn has_room(&self) -> bool {
        self.buffer.bytes.len() - self.filled >= HEADER_BYTES + get_maximum_output_size(CHUNK_BYTES)
    }

    /// Corrupts a byte in the middle of what was written, to test the other side.
    pub(crate) fn damage(&mut self) {
        if let Some(byte) = self.buffer.bytes.get_mut(self.filled / 2) {
            *byte ^= 0x10;
        }
    }

    /// Returns the unused part of the buffer.
    pub(super) fn room(&mut self) -> &mut [u8] {
        &mut self.buffer.bytes[self.filled..]
    }

    /// Counts `bytes` of [`Batch::room`] as written.
    pub(super) fn advance(&mut self, bytes: usize) {
        self.filled += bytes;
    }

    /// Hands the frames over; the buffer returns to its pool when the last clone is dropped.
    pub fn into_bytes(self) -> Bytes {
        Bytes::from_owner(Filled(self.buffer, self.filled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_bytes_are_dropped() {
        let pool = BufferPool::new();
        let bytes = pool.batch().into_bytes();
        assert_eq!(pool.free.lock().unwrap().len(), 0);
        drop(bytes);
        assert_eq!(pool.free.lock().unwrap().len(), 1);
    }

    #[test]
    fn an_empty_batch_takes_the_largest_frame() {
        assert!(BufferPool::new().batch().has_room());
    }
}
