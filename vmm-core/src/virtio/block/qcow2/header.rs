//! Fields of a qcow2 header that imago does not expose (docs/interop/qcow2.rst of QEMU).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

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
        file.read_exact_at(&mut bytes, 0)?;
        let field = |at: usize| u32::from_be_bytes(std::array::from_fn(|n| bytes[at + n]));
        let long = |at: usize| u64::from(field(at)) << 32 | u64::from(field(at + 4));
        let version = field(4);
        Ok(Self {
            version,
            is_encrypted: field(32) != 0,
            cluster_bits: field(20),
            disk_bytes: long(24),
            l1_entries: field(36).into(),
            refcount_at: long(48),
            refcount_clusters: field(56).into(),
            refcount_order: if version < 3 { REFCOUNT_ORDER_OF_VERSION_2 } else { field(96) },
        })
    }

    /// Returns the header of the image after its disk has got so many bytes.
    pub(super) fn of_disk(self, disk_bytes: u64) -> Self {
        Self { disk_bytes, ..self }
    }

    /// Returns the most memory that imago needs for the image's tables, in bytes.
    pub(super) fn tables_bytes(&self) -> u64 {
        let cluster = 1_u64.checked_shl(self.cluster_bits).unwrap_or(u64::MAX);
        let l2_entries = (cluster / ENTRY_BYTES).max(1);
        let l2_tables = self.disk_bytes.div_ceil(l2_entries.saturating_mul(cluster));
        let refcount_bytes = self.refcount_clusters.saturating_mul(cluster);
        let refcount_blocks = refcount_bytes / ENTRY_BYTES;
        let cached = l2_tables.min(L2_CACHED) + refcount_blocks.min(REFCOUNTS_CACHED);
        // A short L1 table grows.
        let whole = self.l1_entries.max(l2_tables).saturating_mul(ENTRY_BYTES);
        cached.saturating_mul(cluster).saturating_add(whole).saturating_add(refcount_bytes)
    }
}
