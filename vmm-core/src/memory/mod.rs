//! Guest RAM: memory of this process in at most two regions, addressed by *chunk*.
//!
//! [`MemoryConfig`] says how it is backed: ordinary pages, huge pages from a pool, or a template
//! that several guests share.
//!
//! A chunk is 64 aligned pages of 4096 bytes, which is one word of a dirty bitmap; every region is
//! a whole number of chunks. Chunk numbers run through the regions in order, skipping the hole
//! between them. Dirty tracking, migrations and saved files all count in chunks. Start reading at
//! [`GuestRam`].
//!
//! [`ProcessMemory`] inspects the memory of guests that other programs run, and never changes its
//! content.

mod backing;
mod collapse;
mod config;
pub(crate) mod host;
mod layout;
mod mapped;
mod missing;
mod numa;
mod pin;
mod pool;
mod process;
mod ram;
pub(crate) mod runs;
mod sharing;
mod write_log;

pub(crate) use backing::TemplateImage;
pub use backing::Treatment;
pub use config::{HugePages, MemoryConfig, MergeDomain, Prealloc};
pub use host::{HOST_RESERVE_BYTES, available_bytes};
pub use layout::{HIGH_RAM_START, LOW_RAM_MAX, RamLayout, RamRegion};
pub use mapped::{HugeView, OwnPages, PageMap};
pub use missing::{ChunkPages, Missing, Waits};
pub use numa::{NodeSet, NumaPolicy};
pub(crate) use pin::Pinned;
pub use process::{ProcessMemory, make_huge};
pub use ram::GuestRam;
pub(crate) use sharing::Writers;
pub use sharing::check_write_protection;
pub(crate) use write_log::WriteLog;

pub use crate::sys::PAGE_BYTES;
pub(crate) use crate::sys::RamMap;
pub use crate::sys::pagemap::PAGEMAP_SCAN_REQUEST;
pub use crate::sys::userfaultfd::WRITE_PROTECTION_REQUESTS;
pub use crate::sys::userfaultfd::missing::{MISSING_REQUESTS, MissingPages};

/// Pages of a chunk: the bits of one dirty word.
pub const CHUNK_PAGES: usize = 64;
/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = CHUNK_PAGES * PAGE_BYTES;
/// Bytes of the smallest kind of huge page.
pub(crate) const HUGE_PAGE_BYTES: u64 = 2 << 20;
/// Smallest memory a guest may have, in bytes.
pub const MEMORY_BYTES_MIN: u64 = 4 << 20;
/// Largest memory a guest may have, in bytes.
pub const MEMORY_BYTES_MAX: u64 = 256 << 30;

/// Failure to provide or to access guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The size is not possible for a guest.
    #[error(
        "guest memory of {} is not possible: give a multiple of 256 KiB between 4 MiB and 256 GiB",
        size(*bytes)
    )]
    Size {
        /// The requested size.
        bytes: u64,
    },
    /// The host does not have enough memory to back the guest.
    #[error(
        "the host cannot back a guest of {} MiB: {} MiB are available and {} MiB of them stay reserved; \
         stop another guest or choose another host",
        wanted / (1 << 20), available / (1 << 20), HOST_RESERVE_BYTES / (1 << 20)
    )]
    NotEnough {
        /// Bytes the guest needs.
        wanted: u64,
        /// Bytes that the host could provide (`MemAvailable` of `/proc/meminfo`).
        available: u64,
    },
    /// `/proc/meminfo` could not be read or understood.
    #[error("cannot tell how much memory the host has: {0}")]
    Meminfo(String),
    /// Guest memory could not be mapped.
    #[error("cannot map guest memory of {}: {reason}", size(*bytes))]
    Map {
        /// The requested size.
        bytes: u64,
        /// The error from the system.
        reason: String,
    },
    /// The memory could not be given back to the host.
    #[error("cannot clear guest memory: {0}")]
    Discard(std::io::Error),
    /// A word that is not a valid choice.
    #[error("`{text}` is not possible: give {wanted}")]
    Word {
        /// The rejected word, as given.
        text: String,
        /// The valid choices.
        wanted: &'static str,
    },
    /// The name is not valid for a merge domain.
    #[error("a merge domain is named with 1 to {bytes_max} letters, digits, `-`, `_` or `.`")]
    Domain {
        /// Longest name, in bytes.
        bytes_max: usize,
    },
    /// Guest memory is not a whole number of huge pages.
    #[error("guest memory of {} is not a whole number of huge pages of {}", size(*bytes), size(*page))]
    NotWholeHugePages {
        /// Bytes of guest memory.
        bytes: u64,
        /// Bytes of a huge page.
        page: u64,
    },
    /// Huge pages of a pool cannot be merged.
    #[error(
        "huge pages of a pool cannot be merged: choose a merge domain, or huge pages, not both"
    )]
    CannotMerge,
    /// A template cannot be combined with a pool or preallocated memory.
    #[error(
        "a guest from a template has ordinary pages that are taken as it writes them: no huge pages of a pool and \
         no preallocated memory"
    )]
    TemplateBacking,
    /// A NUMA policy without nodes.
    #[error("the memory policy names no NUMA node")]
    Nodes,
    /// A NUMA node that does not exist on this host.
    #[error("the host has no memory on NUMA node {node}, only on {there}: choose other nodes")]
    NoSuchNode {
        /// Number of the node.
        node: u32,
        /// The nodes that exist.
        there: String,
    },
    /// The kernel refuses the NUMA policy.
    #[error("the host cannot take guest memory from the nodes of {policy}: {cause}")]
    Policy {
        /// The policy, as typed.
        policy: String,
        /// The error from the system.
        cause: std::io::Error,
    },
    /// The processor or the kernel does not support huge pages of this size.
    #[error("the host has no huge pages of {}: its processor or kernel does not know them", size(*page))]
    NoPool {
        /// Bytes of a page.
        page: u64,
    },
    /// The pool has too few free pages.
    #[error(
        "the guest needs {needed} huge pages of {}, and {available} of the host's {total} are free: raise the pool with `{}`, or stop \
         another guest",
        size(*page), raise(*page, total + needed - available)
    )]
    PoolShort {
        /// Bytes of a page.
        page: u64,
        /// Pages that the guest needs.
        needed: u64,
        /// Pages that the guest could have.
        available: u64,
        /// Pages in the pool.
        total: u64,
    },
    /// The memory could not be preallocated.
    #[error(
        "the host cannot preallocate the guest's memory: {cause}; it has too little, or too little on the nodes \
         that were chosen"
    )]
    Populate {
        /// The error from the system.
        cause: std::io::Error,
    },
    /// The kernel was built without KSM.
    #[error(
        "the host's kernel merges no pages (it was built without CONFIG_KSM): omit the merge domain"
    )]
    NoKsm,
    /// The kernel refuses to mark the memory for merging, or to unmerge it.
    #[error("cannot have guest memory merged: {cause}")]
    Merge {
        /// The error from the system.
        cause: std::io::Error,
    },
    /// The guest must have all of its memory from the start, so none of it is given back.
    #[error(
        "the guest's memory is preallocated or from a huge-page pool: none of it is given back"
    )]
    KeepsAll,
    /// Devices of the host reach the guest's memory, so none of it is given back.
    #[error(
        "the guest has a device of the host, which reaches all of its memory: none of it is given back"
    )]
    Pinned,
    /// Pages have not arrived yet.
    #[error("pages of the guest are still at its source: try again when it has arrived")]
    Incomplete,
    /// Pages could not be shared with the template again.
    #[error("cannot share the guest's memory with its template again: {cause}")]
    Share {
        /// The error from the system.
        cause: std::io::Error,
    },
    /// The kernel offers this process no asynchronous write-protection, the only kind that lets
    /// writes proceed without answering each fault.
    #[error(
        "there is no asynchronous write-protection here, which needs Linux 6.7 (userfaultfd: {cause}); guests pause \
         longer while they share with their templates again"
    )]
    NoWriteProtection {
        /// The error from the system.
        cause: std::io::Error,
    },
    /// The guest's template cannot be read.
    #[error("cannot read the template of guest memory: {cause}")]
    ReadTemplate {
        /// The error from the system.
        cause: std::io::Error,
    },
    /// Another process's memory could not be inspected.
    #[error(
        "cannot read the memory of process {pid} (which takes root, or CAP_SYS_PTRACE): {cause}"
    )]
    Process {
        /// PID of the process.
        pid: u32,
        /// The error from the system.
        cause: std::io::Error,
    },
    /// The kernel does not report how guest memory is mapped.
    #[error("cannot tell how guest memory is mapped (pagemap): {cause}")]
    Pagemap {
        /// The error from the system.
        cause: std::io::Error,
    },
    /// The guest has no merge domain, or this host merges another one.
    #[error(
        "pages of this guest are not merged: it has no merge domain, or another domain's guests are merged on the host"
    )]
    NotMerged,
    /// The kernel refuses to make huge pages of the memory.
    #[error("cannot make huge pages of guest memory: {cause}")]
    Collapse {
        /// The error from the system: `EINVAL` from a kernel before 6.1, `ENOMEM` or `EAGAIN` when
        /// no huge page is free.
        cause: std::io::Error,
    },
    /// A chunk, or pages in it, that do not exist in the guest.
    #[error(
        "{pages} pages from page {first_page} of chunk {chunk} are not guest memory ({chunks} chunks)"
    )]
    NoSuchPages {
        /// Number of the chunk.
        chunk: usize,
        /// First page within the chunk.
        first_page: usize,
        /// Number of pages requested.
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
        /// Guest-physical address of the first byte.
        gpa: u64,
        /// Length in bytes.
        len: usize,
    },
}

/// Returns the command that sets a pool to `pages` pages of `page` bytes.
fn raise(page: u64, pages: u64) -> String {
    if page == 2 << 20 {
        return format!("sysctl vm.nr_hugepages={pages}");
    }
    format!("echo {pages} > {}/nr_hugepages", pool::folder(page).display())
}

/// Formats a size in the largest binary unit of which it is a whole number.
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
    fn sizes_display_as_they_parse() {
        let error = MemoryError::Size { bytes: 900 << 30 }.to_string();
        assert!(error.starts_with("guest memory of 900 GiB is not possible"), "{error}");
        assert_eq!([size(3 << 19), size(1025), size(0)], ["1536 KiB", "1025 bytes", "0 bytes"]);
    }
}
