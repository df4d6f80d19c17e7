//! Guest RAM: anonymous memory in at most two regions, addressed by *chunk*.
//!
//! A chunk is 64 aligned pages of 4096 bytes, which is one word of a dirty bitmap; every region is a
//! whole number of chunks. Chunk numbers run over the regions in order, without the hole between them,
//! and are what dirty tracking, a migration and a saved file count in. Start reading at [`GuestRam`].

pub(crate) mod host;
mod layout;
mod ram;

pub use host::{HOST_RESERVE_BYTES, available_bytes};
pub use layout::{HIGH_RAM_START, LOW_RAM_MAX, RamLayout, RamRegion};
pub use ram::GuestRam;
pub(crate) use ram::RamMap;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Pages of a chunk: the bits of one dirty word.
pub const CHUNK_PAGES: usize = 64;
/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = CHUNK_PAGES * PAGE_BYTES;
/// Smallest memory a guest may have, in bytes.
pub const MEMORY_BYTES_MIN: u64 = 4 << 20;
/// Largest memory a guest may have, in bytes: what one page of page-directory pointers maps.
pub const MEMORY_BYTES_MAX: u64 = 256 << 30;

/// Failure to provide or to reach guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is not one a guest can have.
    #[error(
        "guest memory of {} is not possible: give a multiple of 256 KiB between 4 MiB and 256 GiB",
        size(*bytes)
    )]
    Size {
        /// The size asked for.
        bytes: u64,
    },
    /// The host has not enough memory to back the guest.
    #[error(
        "this host cannot back a guest of {} MiB: {} MiB are available and {} MiB of them stay reserved; \
         stop another guest or choose another host",
        wanted / (1 << 20), available / (1 << 20), HOST_RESERVE_BYTES / (1 << 20)
    )]
    NotEnough {
        /// Bytes the guest needs.
        wanted: u64,
        /// Bytes that the host could give (`MemAvailable` of `/proc/meminfo`).
        available: u64,
    },
    /// `/proc/meminfo` could not be read or understood.
    #[error("cannot tell how much memory this host has: {0}")]
    Meminfo(String),
    /// The mapping could not be made.
    #[error("cannot map guest memory of {}: {reason}", size(*bytes))]
    Map {
        /// The size asked for.
        bytes: u64,
        /// The system's answer.
        reason: String,
    },
    /// The memory could not be given back.
    #[error("cannot clear guest memory: {0}")]
    Discard(std::io::Error),
    /// A chunk, or pages in it, that the guest does not have.
    #[error(
        "{pages} pages from page {first_page} of chunk {chunk} are not guest memory ({chunks} chunks)"
    )]
    NoSuchPages {
        /// Chunk number.
        chunk: usize,
        /// First page within the chunk.
        first_page: usize,
        /// Pages asked for.
        pages: usize,
        /// Chunks that the guest has.
        chunks: usize,
    },
    /// A buffer that is not a whole number of pages.
    #[error("a buffer of {0} bytes is not a whole number of pages")]
    NotWholePages(usize),
    /// A guest-physical range that is not RAM.
    #[error("{len} bytes at guest address {gpa:#x} are not guest memory")]
    NoSuchAddress {
        /// Guest-physical address.
        gpa: u64,
        /// Length in bytes.
        len: usize,
    },
}

/// A size in the largest binary unit that it is a whole number of.
fn size(bytes: u64) -> String {
    let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.into_iter().find(|(unit, _)| bytes > 0 && bytes.is_multiple_of(*unit)) {
        Some((unit, name)) => format!("{} {name}", bytes / unit),
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_as_they_are_typed() {
        let error = MemoryError::Size { bytes: 900 << 30 }.to_string();
        assert!(error.starts_with("guest memory of 900 GiB is not possible"), "{error}");
        assert_eq!([size(3 << 19), size(1025), size(0)], ["1536 KiB", "1025 bytes", "0 bytes"]);
    }
}
