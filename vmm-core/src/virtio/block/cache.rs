//! Whether a disk's bytes go through the host's page cache. The guest caches them itself, so a
//! second copy of them costs memory that other guests could have.
//!
//! Without the cache, the kernel moves bytes directly between the disk and memory (`O_DIRECT`):
//! whole sectors, from and to memory that is aligned.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::str::FromStr;

use imago::io_buffers::IoBuffer;
use nix::sys::stat::major;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::SECTOR_BYTES;
use super::names::{disk_at, place_in_sysfs};
use crate::memory::RamMap;
use crate::sys::file::{DIRECT_ALIGNMENT, Direction, direct_alignment, make_direct};
use crate::virtio::buffers::Buffers;

/// Bytes that are moved at a time through aligned memory: whole sectors.
const PIECE_BYTES: usize = 1 << 20;

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
    let mut sector = IoBuffer::new(SECTOR_BYTES as usize, DIRECT_ALIGNMENT)?;
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

fn unsupported(why: &str) -> io::Error {
    let text = format!("cache=none is not possible here, cache=writeback is: {why}");
    io::Error::new(io::ErrorKind::Unsupported, text)
}

/// Returns whether the kernel can move bytes directly from and to these buffers.
pub(super) fn is_aligned(buffers: &Buffers) -> bool {
    buffers.pieces().all(|(gpa, bytes)| (gpa | bytes).is_multiple_of(SECTOR_BYTES))
}

/// Moves all bytes of `buffers` from `offset` on of a file whose cache is bypassed, through
/// aligned memory.
///
/// # Errors
/// If they are not all in guest memory, or the file cannot be read or written.
pub(super) fn transfer(
    file: &File,
    offset: u64,
    buffers: &Buffers,
    memory: &RamMap,
    direction: Direction,
) -> io::Result<()> {
    let mut rest = buffers.clone();
    in_pieces(offset, buffers.bytes() as usize, |offset, _, aligned| {
        let piece = rest.take_front(aligned.len() as u64).ok_or(io::ErrorKind::InvalidInput)?;
        match direction {
            Direction::In => {
                file.read_exact_at(aligned, offset)?;
                piece.write(memory, aligned).map_err(io::Error::other)
            }
            Direction::Out => {
                piece.read(memory, aligned).map_err(io::Error::other)?;
                file.write_all_at(aligned, offset)
            }
        }
    })
}

/// Fills `bytes`, whole sectors, from `offset` on of a file whose cache is bypassed.
///
/// # Errors
/// If they cannot be read.
pub(super) fn read(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    in_pieces(offset, bytes.len(), |offset, place, aligned| {
        file.read_exact_at(aligned, offset)?;
        bytes[place].copy_from_slice(aligned);
        Ok(())
    })
}

/// Writes `bytes`, whole sectors, from `offset` on to a file whose cache is bypassed.
///
/// # Errors
/// If they cannot be written.
pub(super) fn write(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    in_pieces(offset, bytes.len(), |offset, place, aligned| {
        aligned.copy_from_slice(&bytes[place]);
        file.write_all_at(aligned, offset)
    })
}

/// Calls `each` for each piece of `bytes` from `offset` on, with its offset, its place among the
/// bytes, and aligned memory of its length.
fn in_pieces(
    offset: u64,
    bytes: usize,
    mut each: impl FnMut(u64, Range<usize>, &mut [u8]) -> io::Result<()>,
) -> io::Result<()> {
    let mut aligned = IoBuffer::new(bytes.min(PIECE_BYTES), DIRECT_ALIGNMENT)?;
    for start in (0..bytes).step_by(PIECE_BYTES) {
        let place = start..bytes.min(start + PIECE_BYTES);
        let piece = aligned.as_mut_range(0..place.len()).into_slice();
        each(offset + start as u64, place, piece)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::block::testing::disk_file;

    #[test]
    fn bytes_anywhere_in_memory_are_moved_in_pieces() {
        let file = disk_file();
        let bytes = 2 * PIECE_BYTES + 512;
        file.as_file().set_len(bytes as u64 + 512).unwrap();
        bypass(file.as_file()).unwrap();
        let content: Vec<u8> = (0..=bytes).map(|at| (at / 512) as u8).collect();
        write(file.as_file(), &content[1..], 512).unwrap();
        let mut found = vec![0; bytes + 1];
        read(file.as_file(), &mut found[1..], 512).unwrap();
        assert!(found[1..] == content[1..]);
        assert!(std::fs::read(file.path()).unwrap()[512..] == content[1..]);
        assert!(read(file.as_file(), &mut found[1..], 1024).is_err(), "beyond the end");
    }

    #[test]
    fn a_file_without_direct_access_is_refused() {
        let file = File::open("/proc/self/status").unwrap();
        assert_eq!(bypass(&file).unwrap_err().kind(), io::ErrorKind::Unsupported);
    }
}
