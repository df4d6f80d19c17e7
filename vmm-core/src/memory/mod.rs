//! Guest RAM: memory of this process in at most two regions, addressed by *chunk*.
//!
//! [`MemoryConfig`] says how it is backed: ordinary pages, huge pages from a pool, or a template
//! that several guests share.
//!
//! A chunk is 64 aligned pages of 4096 bytes, which is one word of a dirty bitmap; every region is
//! a whole number of chunks. Chunk numbers run over the regions in order, without the hole between
//! them, and are what dirty tracking, a migration and a saved file count in. Start reading at
//! [`GuestRam`].
//!
//! Memory of guests that other programs run is only looked at: [`ProcessMemory`].

mod backing;
mod collapse;
mod config;
pub(crate) mod host;
mod layout;
mod mapped;
mod numa;
mod pool;
mod process;
mod ram;
mod runs;
mod sharing;

pub(crate) use backing::TemplateImage;
pub use backing::Treatment;
pub use config::{HugePages, MemoryConfig, MergeDomain, Prealloc};
pub use host::{HOST_RESERVE_BYTES, available_bytes};
pub use layout::{HIGH_RAM_START, LOW_RAM_MAX, RamLayout, RamRegion};
pub use mapped::{HugeView, OwnPages, PageMap};
pub use numa::{NodeSet, NumaPolicy};
pub use process::{ProcessMemory, make_huge};
pub use ram::GuestRam;
pub(crate) use sharing::Writers;
pub use sharing::check_write_protection;

pub use crate::sys::PAGE_BYTES;
pub(crate) use crate::sys::RamMap;
pub use crate::sys::pagemap::PAGEMAP_SCAN_REQUEST;
pub use crate::sys::userfaultfd::WRITE_PROTECTION_REQUESTS;

/// Pages of a chunk: the bits of one dirty word.
pub const CHUNK_PAGES: usize = 64;
/// Bytes of a chunk.
pub const CHUNK_BYTES: usize = CHUNK_PAGES * PAGE_BYTES;
/// What a huge page of the smallest kind holds.
pub(crate) const HUGE_PAGE_BYTES: u64 = 2 << 20;
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
    /// A word that means nothing.
    #[error("`{text}` is not possible: give {wanted}")]
    Word {
        /// The word.
        text: String,
        /// What is possible.
        wanted: &'static str,
    },
    /// The name is none for a merge domain.
    #[error("a merge domain is named with 1 to {bytes_max} letters, digits, `-`, `_` or `.`")]
    Domain {
        /// Longest name, in bytes.
        bytes_max: usize,
    },
    /// Memory that is no whole number of huge pages.
    #[error("guest memory of {} is no whole number of huge pages of {}", size(*bytes), size(*page))]
    NotWholeHugePages {
        /// Bytes of guest memory.
        bytes: u64,
        /// Bytes of a huge page.
        page: u64,
    },
    /// Huge pages of a pool and merging contradict each other.
    #[error(
        "huge pages of a pool cannot be merged: choose a merge domain, or huge pages, not both"
    )]
    CannotMerge,
    /// A template and another backing contradict each other.
    #[error(
        "a guest from a template has ordinary pages that are taken as it writes them: no huge pages of a pool and \
         no memory taken in advance"
    )]
    TemplateBacking,
    /// A policy without nodes.
    #[error("the memory policy names no NUMA node")]
    Nodes,
    /// A node that this host does not have.
    #[error("this host has no memory on NUMA node {node}, only on {there}: choose other nodes")]
    NoSuchNode {
        /// The node.
        node: u32,
        /// Those that there are.
        there: String,
    },
    /// The kernel does not take the policy.
    #[error("this host cannot take guest memory from the nodes of {policy}: {cause}")]
    Policy {
        /// The policy.
        policy: String,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// Pages of this size are unknown to the processor or the kernel.
    #[error("this host has no huge pages of {}: its processor or kernel does not know them", size(*page))]
    NoPool {
        /// Bytes of a page.
        page: u64,
    },
    /// The pool is too small.
    #[error(
        "the guest needs {needed} huge pages of {}, and {available} of this host's {total} are free: raise the pool with `{}`, or stop \
         another guest",
        size(*page), raise(*page, total + needed - available)
    )]
    PoolShort {
        /// Bytes of a page.
        page: u64,
        /// Pages that the guest needs.
        needed: u64,
        /// Pages that it could have.
        available: u64,
        /// Pages of the pool.
        total: u64,
    },
    /// The memory could not be taken in advance.
    #[error(
        "this host cannot take all of the guest's memory in advance: {cause}; it has too little, or too little on the nodes \
         that were chosen"
    )]
    Populate {
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The kernel merges no pages.
    #[error(
        "this host's kernel merges no pages (it was built without CONFIG_KSM): leave the merge domain away"
    )]
    NoKsm,
    /// The kernel does not mark the memory.
    #[error("cannot have guest memory merged: {cause}")]
    Merge {
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The guest is to have all of its memory from the start.
    #[error(
        "all of the guest's memory is taken in advance or of a pool: nothing of it is given back"
    )]
    KeepsAll,
    /// Pages cannot be shared with the template again.
    #[error("cannot share the guest's memory with its template again: {cause}")]
    Share {
        /// The system's answer.
        cause: std::io::Error,
    },
    /// No memory of this process can be write-protected without answering each write.
    #[error(
        "asynchronous write-protection (userfaultfd, Linux 6.7) cannot be had: {cause}; guests stand still longer while they share \
         with their templates again"
    )]
    NoWriteProtection {
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The guest's template cannot be read.
    #[error("cannot read the template of guest memory: {cause}")]
    ReadTemplate {
        /// The system's answer.
        cause: std::io::Error,
    },
    /// Another process's memory cannot be looked at.
    #[error(
        "cannot look at the memory of process {pid} (which takes root, or CAP_SYS_PTRACE): {cause}"
    )]
    Process {
        /// The process.
        pid: u32,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The kernel does not tell how guest memory is mapped.
    #[error("cannot tell how guest memory is mapped (pagemap): {cause}")]
    Pagemap {
        /// The system's answer.
        cause: std::io::Error,
    },
    /// The guest has no merge domain, or another one is merged on this host.
    #[error(
        "pages of this guest are not merged: it has no merge domain, or another domain's guests are merged on this host"
    )]
    NotMerged,
    /// The kernel makes no huge pages of the memory.
    #[error("cannot make huge pages of guest memory: {cause}")]
    Collapse {
        /// The system's answer: `EINVAL` of a kernel before 6.1, `ENOMEM` or `EAGAIN` when no huge
        /// page is free.
        cause: std::io::Error,
    },
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

/// How an operator gives a pool `pages` pages of `page` bytes.
fn raise(page: u64, pages: u64) -> String {
    if page == 2 << 20 {
        return format!("sysctl vm.nr_hugepages={pages}");
    }
    format!("echo {pages} > {}/nr_hugepages", pool::folder(page).display())
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
