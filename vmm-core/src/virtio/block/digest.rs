//! A digest of the areas of a block device that change when the device is mounted or its volumes
//! are used. It shows this whichever host does it, while a count of written sectors covers only the
//! host that counts.
//!
//! It covers the device's first and last MiB and the start of each partition: boot sectors,
//! partition tables, LVM metadata, the superblocks of ext4, XFS, btrfs and md. It can prove that a
//! device was written, but never that it was not.

use std::fs::File;
use std::io::{self, ErrorKind};

use imago::io_buffers::IoBuffer;
use regular_file::opened::open_again;
use xxhash_rust::xxh3::Xxh3;

use crate::sys::file;
use crate::sys::sectors::{DIRECT_ALIGNMENT, aligned_memory, read_up_to};

/// Bytes read at each end of the device.
const END_BYTES: usize = 1 << 20;
/// Bytes read at the start of a partition. LVM puts the first volume of a partition at 1 MiB, and
/// the superblock of a file system is in its first 128 KiB.
const HEAD_BYTES: usize = (1 << 20) + (128 << 10);
/// Most partitions that are read.
const PARTITIONS_MAX: usize = 32;
/// Alignment of direct reads and of the buffer, in bytes.
const ALIGNMENT: usize = DIRECT_ALIGNMENT;
/// Sector sizes of partition tables in bytes: of most devices, and of those with large sectors.
const SECTORS: [usize; 2] = [512, 4096];

/// Returns the digest of `device`, whose size is `bytes`. It reads what the device stores now, not
/// what this host has cached.
///
/// # Errors
/// If the device cannot be read.
pub(super) fn digest(device: &File, bytes: u64) -> io::Result<u128> {
    // Reopened: on the guest's open file, the flag would affect the guest too.
    match open_again(device, libc::O_DIRECT).and_then(|direct| digest_of(&direct, bytes)) {
        // A device that cannot do it, or one that this process was handed and may not open.
        Err(error)
            if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::PermissionDenied) =>
        {
            file::forget_cached(device);
            digest_of(device, bytes)
        }
        digest => digest,
    }
}

fn digest_of(device: &File, bytes: u64) -> io::Result<u128> {
    let mut buffer = Buffer(aligned_memory(HEAD_BYTES)?);
    let mut hash = Xxh3::new();
    let mut take = |at: u64, length: usize| {
        let piece = buffer.read(device, at, length, bytes)?;
        hash.update(&at.to_le_bytes());
        hash.update(piece);
        io::Result::Ok(partitions(piece))
    };
    let heads = take(0, END_BYTES)?;
    take(align(bytes.saturating_sub(END_BYTES as u64)), END_BYTES + ALIGNMENT)?;
    for head in heads.into_iter().filter(|head| *head < bytes) {
        take(align(head), HEAD_BYTES)?;
    }
    Ok(hash.digest128())
}

fn align(at: u64) -> u64 {
    at - at % ALIGNMENT as u64
}

/// A buffer that is aligned for direct reads.
struct Buffer(IoBuffer);

impl Buffer {
    /// Reads up to `length` bytes from `at` on, which must be aligned; fewer at the end of the
    /// device.
    fn read(&mut self, device: &File, at: u64, length: usize, end: u64) -> io::Result<&[u8]> {
        let left = usize::try_from(end.saturating_sub(at)).unwrap_or(usize::MAX).min(length);
        let whole = self.0.as_mut_range(0..length).into_slice();
        if read_up_to(device, whole, at)? < left {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        Ok(&whole[..left])
    }
}

/// Returns the start of each partition in bytes, from the tables at the start of a device. The
/// guest writes these tables, so they may contain anything.
fn partitions(first: &[u8]) -> Vec<u64> {
    let mut heads: Vec<u64> = SECTORS.into_iter().flat_map(|sector| gpt(first, sector)).collect();
    if heads.is_empty() {
        heads = mbr(first);
    }
    heads.truncate(PARTITIONS_MAX);
    heads
}

/// Reads a GUID partition table (UEFI 2.10, 5.3), if there is one with sectors of this size.
fn gpt(first: &[u8], sector: usize) -> Vec<u64> {
    let Some(header) = first.get(sector..).filter(|header| header.starts_with(b"EFI PART")) else {
        return Vec::new();
    };
    let number = |at: usize, length: usize| little_endian(header, at, length);
    let (table, count, size) = (number(72, 8), number(80, 4), number(84, 4));
    let table = usize::try_from(table).ok().and_then(|block| block.checked_mul(sector));
    let entries = table.and_then(|at| first.get(at..)).unwrap_or_default();
    let size = usize::try_from(size).unwrap_or(0).max(128);
    let count = usize::try_from(count).unwrap_or(0);
    let used = |entry: &&[u8]| entry.len() >= 128 && entry[..16] != [0; 16];
    let head = |entry: &[u8]| little_endian(entry, 32, 8).saturating_mul(sector as u64);
    entries.chunks(size).take(count).filter(used).map(head).collect()
}

/// Reads the four entries of an MBR.
fn mbr(first: &[u8]) -> Vec<u64> {
    if first.get(510..512) != Some(&[0x55, 0xaa]) {
        return Vec::new();
    }
    let entries = first[446..510].chunks(16).filter(|entry| entry[4] != 0);
    entries.map(|entry| little_endian(entry, 8, 4) * SECTORS[0] as u64).collect()
}

fn little_endian(bytes: &[u8], at: usize, length: usize) -> u64 {
    let bytes = bytes.get(at..at + length).unwrap_or_default();
    bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const BYTES: u64 = (64 << 20) + 512;

    fn device() -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES).unwrap();
        file
    }

    fn changes(device: &File, at: u64) -> bool {
        let before = digest(device, BYTES).unwrap();
        device.write_all_at(&[0x5a], at).unwrap();
        device.sync_all().unwrap();
        let after = digest(device, BYTES).unwrap();
        device.write_all_at(&[0], at).unwrap();
        device.sync_all().unwrap();
        assert_eq!(digest(device, BYTES).unwrap(), before);
        before != after
    }

    #[test]
    fn both_ends_count() {
        let device = device();
        for at in [0, END_BYTES as u64 - 1, BYTES - 1, BYTES - END_BYTES as u64] {
            assert!(changes(&device, at), "{at}");
        }
        assert!(!changes(&device, 32 << 20), "it proves no absence of writes");
    }

    #[test]
    fn the_head_of_each_partition_counts() {
        let head = 16_u64 << 20;
        let mbr = device();
        mbr.write_all_at(&[0x83, 0, 0, 0, 0, 0x80, 0, 0], 446 + 4).unwrap();
        mbr.write_all_at(&[0x55, 0xaa], 510).unwrap();
        let gpt = |sector: u64| {
            let device = device();
            device.write_all_at(b"EFI PART", sector).unwrap();
            let numbers = [&2_u64.to_le_bytes()[..], &[128, 0, 0, 0], &[128, 0, 0, 0]].concat();
            device.write_all_at(&numbers, sector + 72).unwrap();
            device.write_all_at(&[1; 16], 2 * sector + 128).unwrap();
            device.write_all_at(&(head / sector).to_le_bytes(), 2 * sector + 128 + 32).unwrap();
            device
        };
        for device in [mbr, gpt(512), gpt(4096)] {
            device.sync_all().unwrap();
            assert!(changes(&device, head + 1024), "a superblock of ext4");
            assert!(changes(&device, head + (64 << 10)), "one of btrfs");
            assert!(!changes(&device, head - 1));
        }
    }

    #[test]
    fn a_table_may_say_anything() {
        let device = device();
        let mut hostile = vec![0xff; END_BYTES];
        hostile[512..520].copy_from_slice(b"EFI PART");
        for table in [u64::MAX, 2, 0, 1 << 20] {
            hostile[512 + 72..][..8].copy_from_slice(&table.to_le_bytes());
            for size in [0, 1, 128, u32::MAX] {
                hostile[512 + 84..][..4].copy_from_slice(&size.to_le_bytes());
                assert!(partitions(&hostile).len() <= PARTITIONS_MAX);
            }
        }
        device.write_all_at(&hostile, 0).unwrap();
        digest(&device, BYTES).unwrap();
        for length in 0..600 {
            partitions(&hostile[..length]);
        }
    }

    #[test]
    fn a_small_device_has_a_digest_too() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(512).unwrap();
        let before = digest(&file, 512).unwrap();
        file.write_all_at(&[1], 511).unwrap();
        assert_ne!(digest(&file, 512).unwrap(), before);
    }
}
