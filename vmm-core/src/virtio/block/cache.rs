//! Whether a disk's bytes go through the host's page cache. The guest caches them itself, so a
//! second copy of them costs memory that other guests could have.
//!
//! Without the cache, the kernel moves bytes directly between the disk and memory (`O_DIRECT`):
//! whole sectors, from and to memory that is aligned.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::str::FromStr;

use nix::sys::stat::major;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SECTOR_BYTES;
use super::names::{disk_at, place_in_sysfs};
use crate::sys::file::{direct_alignment, make_direct};
use crate::sys::sectors::aligned_memory;
use crate::virtio::buffers::Buffers;

/// Whether a guest's reads and writes go through the host's page cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// They do; what the guest flushes is durable.
    #[default]
    Writeback,
    /// They bypass it (`O_DIRECT`); what the guest flushes is durable.
    None,
}

impl FromStr for CacheMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "writeback" => Ok(Self::Writeback),
            "none" => Ok(Self::None),
            _ => Err(format!("`{text}` is not a cache mode: writeback, none")),
        }
    }
}

/// Lets all that is read and written through this open file bypass the host's cache.
///
/// # Errors
/// If its file system or device cannot do that, or not for a single sector.
pub(super) fn bypass(file: &File) -> io::Result<()> {
    let found = file.metadata()?;
    let is_device = found.file_type().is_block_device();
    expect_small_sectors(if is_device { found.rdev() } else { found.dev() })?;
    make_direct(file).map_err(|cause| match cause.kind() {
        io::ErrorKind::InvalidInput => unsupported("the file system has no O_DIRECT"),
        _ => cause,
    })?;
    let has_device = is_device || major(found.dev()) != 0;
    if !has_device && direct_alignment(file).is_some_and(|bytes| bytes > SECTOR_BYTES) {
        return Err(large_sectors());
    }
    let mut sector = aligned_memory(SECTOR_BYTES as usize)?;
    match file.read_at(sector.as_mut().into_slice(), 0) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Err(large_sectors()),
        read => read.map(drop),
    }
}

/// Checks that a block device has sectors of 512 bytes: those of guests. A device of which this
/// process can find out nothing passes.
///
/// # Errors
/// If it has larger ones.
pub(super) fn expect_small_sectors(device: u64) -> io::Result<()> {
    let sector_bytes = || {
        let place = place_in_sysfs(device).canonicalize().ok()?;
        let said = fs::read_to_string(disk_at(&place).join("queue/logical_block_size")).ok()?;
        said.trim().parse::<u64>().ok()
    };
    match sector_bytes() {
        Some(bytes) if bytes > SECTOR_BYTES => Err(large_sectors()),
        _ => Ok(()),
    }
}

fn large_sectors() -> io::Error {
    unsupported("the device below has sectors of more than 512 bytes")
}

pub(super) fn unsupported(why: &str) -> io::Error {
    let text = format!("cache=none is not possible here, cache=writeback is: {why}");
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Returns whether the kernel can move bytes directly from and to these buffers.
pub(super) fn is_aligned(buffers: &Buffers) -> bool {
    buffers.pieces().all(|(gpa, bytes)| (gpa | bytes).is_multiple_of(SECTOR_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_direct_access_is_refused() {
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(bypass(&file).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
