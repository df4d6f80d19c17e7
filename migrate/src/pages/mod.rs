//! The wire format of guest memory.
//!
//! Memory is sent as *chunk frames*: a fixed header of 48 bytes ([`FrameHeader`]) that names one
//! chunk of 64 pages and has two masks, then the pages that are not zero, packed, raw or compressed
//! with lz4. The source builds frames with an [`Encoder`] in reused buffers; the destination reads
//! a header, then exactly the payload it announces, and [`Decoder::decode`] returns the pages only
//! if the frame's checksum matches. Everything here is synchronous and uses no socket; start with
//! [`FrameHeader`].

mod buffer;
mod compress;
mod decode;
mod encode;
mod header;
mod mask;
mod sample;
mod zero;

pub use buffer::{BATCH_BYTES, Batch, BufferPool};
pub use compress::{Compression, WireRate};
pub use decode::Decoder;
pub use encode::{Encoder, Position};
pub use header::{Encoding, FrameError, FrameHeader, FrameKind, HEADER_BYTES};
pub use mask::{Run, runs};
pub use sample::Sampler;
pub use zero::is_zero;
