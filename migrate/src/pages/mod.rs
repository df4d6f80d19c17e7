//! Guest memory on its way over the wire.
//!
//! Memory travels as *chunk frames*: a fixed header of 48 bytes ([`FrameHeader`]) that names one
//! chunk of 64 pages and two masks, then the pages that are not zero, packed, raw or compressed
//! with lz4. The source builds frames with an [`Encoder`] into reused buffers; the destination
//! reads a header, then exactly the payload it announces, and gets the pages from
//! [`Decoder::decode`] only when the frame's checksum holds. Everything here is synchronous and
//! knows no socket; start with [`FrameHeader`].

mod buffer;
mod compress;
mod decode;
mod encode;
mod header;
mod mask;
mod zero;

pub use buffer::{BATCH_BYTES, Batch, BufferPool};
pub use compress::{Compression, WireRate};
pub use decode::Decoder;
pub use encode::{Encoder, Position};
pub use header::{Encoding, FrameError, FrameHeader, FrameKind, HEADER_BYTES};
pub use mask::{Run, runs};
pub use zero::is_zero;
