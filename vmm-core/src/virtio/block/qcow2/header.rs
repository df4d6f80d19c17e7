//! Fields of a qcow2 header that imago does not expose (docs/interop/qcow2.rst of QEMU).

use std::fs::File;
use std::io;

use crate::sys::sectors::read_exact_at;

/// Bytes of the header up to the fields of version 3 that are read here; all images are longer.
const BYTES: usize = 100;
/// Base-2 logarithm of the bits of a refcount in an image of version 2.
const REFCOUNT_ORDER_OF_VERSION_2: u32 = 4;
/// Most L2 tables that imago 0.2.6 keeps in memory for each file (`qcow2/mod.rs`).
const L2_CACHED: u64 = 128;
/// Most refcount blocks, likewise.
const REFCOUNTS_CACHED: u64 = 32;
/// Bytes of an entry of a table.
const ENTRY_BYTES: u64 = 8;
/// Bits of an entry of the refcount table that are no offset.
const RESERVED: u64 = 0x1ff;
/// Bytes of a table that are read at a time.
const PIECE_BYTES: u64 = 64 << 10;

/// The header of an image, whose fields may be anything.
#[derive(Debug, Clone, Copy)]
pub(super) struct Header {
    pub(super) version: u32,
    pub(super) is_encrypted: bool,
    pub(super) cluster_bits: u32,
    /// Size of the disk in bytes.
    disk_bytes: u64,
    /// Entries of the L1 table, which may be more than there are L2 tables.
    l1_entries: u64,
    /// Offset of the L1 table.
    l1_at: u64,
    /// Offset of the refcount table.
    pub(super) refcount_at: u64,
    /// Clusters of the refcount table.
    pub(super) refcount_clusters: u64,
    /// Base-2 logarithm of the bits of a refcount.
    pub(super) refcount_order: u32,
}

impl Header {
    /// Reads the header of the image in `file`.
    ///
    /// # Errors
    /// If it cannot be read, or the file is shorter.
    pub(super) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = [0; BYTES];
        read_exact_at(file, &mut bytes, 0)?;
        let field = |at: usize| u32::from_be_bytes(std::array::from_fn(|n| bytes[at + n]));
        let long = |at: usize| u64::from(field(at)) << 32 | u64::from(field(at + 4));
        let version = field(4);
        Ok(Self {
            version,
            is_encrypted: field(32) != 0,
            cluster_bits: field(20),
            disk_bytes: long(24),
            l1_entries: field(36).into(),
            l1_at: long(40),
            refcount_at: long(48),
            refcount_clusters: field(56).into(),
            refcount_order: if version < 3 { REFCOUNT_ORDER_OF_VERSION_2 } else { field(96) },
        })
    }

    /// Returns whether the refcount table of the image in `file` lies beside header and L1 table,
    /// and has each block once, and no more blocks than there is room for. Otherwise the clusters
    /// that a small file says to have in use could be so many that imago would search hours for a
    /// free one. Reads the whole table.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn has_sound_refcounts(&self, file: &File) -> io::Result<bool> {
        if !self.has_place_for_refcounts() {
            return Ok(false);
        }
        let bytes = file.metadata()?.len();
        let blocks_max = bytes / self.cluster_bytes();
        let end = bytes.min(self.refcount_at.saturating_add(self.refcount_table_bytes()));
        let (mut at, mut blocks) = (self.refcount_at, Vec::new());
        while at < end {
            let mut piece = vec![0; PIECE_BYTES.min(end - at) as usize];
            read_exact_at(file, &mut piece, at)?;
            at += piece.len() as u64;
            let (entries, _) = piece.as_chunks::<{ ENTRY_BYTES as usize }>();
            let offsets = entries.iter().map(|entry| u64::from_be_bytes(*entry) & !RESERVED);
            blocks.extend(offsets.filter(|offset| *offset != 0));
            if blocks.len() as u64 > blocks_max {
                return Ok(false);
            }
        }
        blocks.sort_unstable();
        Ok(blocks.is_sorted_by(|one, next| one < next))
    }

    /// Returns whether the refcount table is neither empty nor on the header or the L1 table.
    fn has_place_for_refcounts(&self) -> bool {
        let l1_end = self.l1_at.saturating_add(self.l1_entries.saturating_mul(ENTRY_BYTES));
        let end = self.refcount_at.saturating_add(self.refcount_table_bytes());
        self.refcount_clusters > 0
            && self.refcount_at >= self.cluster_bytes()
            && (end <= self.l1_at || l1_end <= self.refcount_at)
    }

    /// Returns the header of the image after its disk has got so many bytes.
    pub(super) fn of_disk(self, disk_bytes: u64) -> Self {
        Self { disk_bytes, ..self }
    }

    /// Returns the most memory that imago needs for the image's tables, in bytes.
    pub(super) fn tables_bytes(&self) -> u64 {
        let cluster = self.cluster_bytes();
        let l2_entries = (cluster / ENTRY_BYTES).max(1);
        let l2_tables = self.disk_bytes.div_ceil(l2_entries.saturating_mul(cluster));
        let refcount_bytes = self.refcount_table_bytes();
        let refcount_blocks = refcount_bytes / ENTRY_BYTES;
        let cached = l2_tables.min(L2_CACHED) + refcount_blocks.min(REFCOUNTS_CACHED);
        // A short L1 table grows.
        let whole = self.l1_entries.max(l2_tables).saturating_mul(ENTRY_BYTES);
        cached.saturating_mul(cluster).saturating_add(whole).saturating_add(refcount_bytes)
    }

    fn cluster_bytes(&self) -> u64 {
        1_u64.checked_shl(self.cluster_bits).unwrap_or(u64::MAX)
    }

    fn refcount_table_bytes(&self) -> u64 {
        self.refcount_clusters.saturating_mul(self.cluster_bytes())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_refcount_table_that_is_misplaced_or_has_a_block_twice_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.qcow2");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let file = Arc::new(file);
        super::super::create(&path, &file, 1 << 30).unwrap();
        let header = Header::read(&file).unwrap();
        assert!(header.has_sound_refcounts(&file).unwrap());
        for misplaced in [
            Header { refcount_clusters: 0, ..header },
            Header { refcount_at: 0, ..header },
            Header { refcount_at: header.l1_at, ..header },
        ] {
            assert!(!misplaced.has_sound_refcounts(&file).unwrap(), "{misplaced:?}");
        }

        let mut block = [0; 8];
        file.read_exact_at(&mut block, header.refcount_at).unwrap();
        file.write_all_at(&block, header.refcount_at + 24).unwrap();
        assert!(!header.has_sound_refcounts(&file).unwrap());

        for number in 1..64_u64 {
            let block = (number << 40).to_be_bytes();
            file.write_all_at(&block, header.refcount_at + number * 8).unwrap();
        }
        assert!(!header.has_sound_refcounts(&file).unwrap(), "more than the file has room for");
    }
}
