//! Space in an image's file that discards have freed, to be given back to the file system.
//!
//! Nothing is punched before the tables are durable: after a loss of power they could still refer
//! to it. The counts in the file then say what is free. A cluster that a snapshot uses, or that a
//! write or a table has got since, counts as used.

use std::fs::File;
use std::io;
use std::ops::{Range, RangeInclusive};

use super::header::Header;
use crate::sys::file::discard;
use crate::sys::sectors::read_exact_at;

/// Most ranges that wait for the tables to be durable, which bounds how long a pause takes.
const RANGES_MAX: usize = 256;
/// Base-2 logarithms of the sizes that clusters can have, here and below by docs/interop/qcow2.rst
/// of QEMU.
const CLUSTER_BITS: RangeInclusive<u32> = 9..=21;
/// Base-2 logarithm of the most bits that a count can have.
const REFCOUNT_ORDER_MAX: u32 = 6;
/// Offset in an entry of the refcount table, whose lowest 9 bits are reserved.
const BLOCK_OFFSET: u64 = !0x1ff;
/// Bytes of an entry of the refcount table.
const ENTRY_BYTES: u64 = 8;

/// Clusters that may be free once the tables are durable.
#[derive(Debug, Default)]
pub(super) struct Freed {
    /// Ranges of the file, in bytes.
    ranges: Vec<Range<u64>>,
}

impl Freed {
    /// Notes a range of the file, in which the disk has what is about to be discarded.
    pub(super) fn note(&mut self, range: Range<u64>) {
        match self.ranges.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.ranges.push(range),
        }
    }

    /// Returns whether there is no room for another range.
    pub(super) fn is_full(&self) -> bool {
        self.ranges.len() >= RANGES_MAX
    }

    /// Punches those clusters of the image in `file` that are free by now, as its tables say, which
    /// must be durable; nothing may be allocated meanwhile.
    ///
    /// # Errors
    /// If the counts cannot be read, or the system refuses. What is left is not tried again: it is
    /// used for later writes.
    pub(super) fn give_back(&mut self, file: &File) -> io::Result<()> {
        let ranges = std::mem::take(&mut self.ranges);
        if ranges.is_empty() {
            return Ok(());
        }
        let mut counts = Counts::of(file)?;
        for range in ranges {
            let first = range.start >> counts.cluster_bits;
            let end = range.end.div_ceil(1 << counts.cluster_bits);
            let mut free = first..first;
            for cluster in first..end {
                if counts.is_free(cluster)? {
                    free.end = cluster + 1;
                } else {
                    counts.punch(&free)?;
                    free = cluster + 1..cluster + 1;
                }
            }
            counts.punch(&free)?;
        }
        Ok(())
    }
}

/// The counts of an image's clusters, as they are in its file.
struct Counts<'a> {
    file: &'a File,
    cluster_bits: u32,
    /// Base-2 logarithm of the bits of a count.
    order: u32,
    /// Offset of the refcount table.
    table_at: u64,
    /// Blocks of the refcount table.
    blocks: u64,
    /// The block that was read last, and its place in the table.
    block: Option<(u64, Vec<u8>)>,
}

impl<'a> Counts<'a> {
    fn of(file: &'a File) -> io::Result<Self> {
        let header = Header::read(file)?;
        let Header { cluster_bits, refcount_order: order, refcount_at: table_at, .. } = header;
        // A guest whose image was damaged could have written to its header.
        if !CLUSTER_BITS.contains(&cluster_bits) || order > REFCOUNT_ORDER_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let blocks = (header.refcount_clusters << cluster_bits) / ENTRY_BYTES;
        Ok(Self { file, cluster_bits, order, table_at, blocks, block: None })
    }

    /// Returns whether nothing uses a cluster.
    fn is_free(&mut self, cluster: u64) -> io::Result<bool> {
        let per_block = 1_u64 << (self.cluster_bits + 3 - self.order);
        let place = cluster / per_block;
        if self.block.as_ref().is_none_or(|(known, _)| *known != place) {
            self.block = Some((place, self.read_block(place)?));
        }
        let block = self.block.as_ref().map_or(&[][..], |(_, block)| block);
        if block.is_empty() {
            return Ok(true);
        }
        let bit = ((cluster % per_block) as usize) << self.order;
        let bits = 1_usize << self.order;
        Ok(match bits {
            8.. => block[bit / 8..][..bits / 8].iter().all(|byte| *byte == 0),
            // The counts in a byte begin at its lowest bit.
            _ => block[bit / 8] >> (bit % 8) & ((1 << bits) - 1) == 0,
        })
    }

    /// Reads a refcount block; it is empty if no cluster is used of those that it would count.
    fn read_block(&self, place: u64) -> io::Result<Vec<u8>> {
        if place >= self.blocks {
            return Ok(Vec::new());
        }
        let mut entry = [0; ENTRY_BYTES as usize];
        let entry_at = self.table_at.checked_add(place * ENTRY_BYTES);
        read_exact_at(self.file, &mut entry, entry_at.ok_or(io::ErrorKind::InvalidData)?)?;
        let at = u64::from_be_bytes(entry) & BLOCK_OFFSET;
        if at == 0 {
            return Ok(Vec::new());
        }
        let mut block = vec![0; 1 << self.cluster_bits];
        read_exact_at(self.file, &mut block, at)?;
        Ok(block)
    }

    fn punch(&self, clusters: &Range<u64>) -> io::Result<()> {
        if clusters.is_empty() {
            return Ok(());
        }
        let [from, to] = [clusters.start, clusters.end].map(|cluster| cluster << self.cluster_bits);
        discard(self.file, from, to - from)
    }
}
