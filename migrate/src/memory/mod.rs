//! Types and units for guest memory: pages, chunks, regions and sets of dirty pages.
//!
//! A *page* is 4096 bytes. A *chunk* is 64 aligned pages (256 KiB): one `u64` word of a dirty
//! bitmap, one frame on the wire, and the alignment that `KVM_CLEAR_DIRTY_LOG` requires. Pages and
//! chunks are numbered across the concatenated regions of the guest, so a bitmap has no holes.

mod layout;
mod page_set;

pub use layout::{LayoutError, MAX_MEMORY_BYTES, MAX_REGIONS, MemoryLayout, Region};
pub use page_set::PageSet;

/// Bytes of one page.
pub const PAGE_BYTES: usize = 4096;
/// Pages of one chunk: the bits of one bitmap word.
pub const PAGES_PER_CHUNK: usize = 64;
/// Bytes of one chunk (256 KiB).
pub const CHUNK_BYTES: usize = PAGE_BYTES * PAGES_PER_CHUNK;
