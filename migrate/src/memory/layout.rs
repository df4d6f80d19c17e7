//! The regions of a guest's memory in its physical address space.

use serde::{Deserialize, Serialize};

use super::{CHUNK_BYTES, PAGE_BYTES};

/// Most regions that a guest may have: far more than a PC needs, and few enough to check quickly.
pub const MAX_REGIONS: usize = 16;
/// Largest guest memory that is accepted, in bytes (16 TiB).
pub const MAX_MEMORY_BYTES: u64 = 16 << 40;

/// One contiguous piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Guest physical address of the first byte.
    pub base: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// The regions of a guest's memory: ascending, not overlapping, not empty, each a multiple of a
/// chunk.
///
/// Can only be built through [`MemoryLayout::new`], including when it comes from a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Region>", into = "Vec<Region>")]
pub struct MemoryLayout {
    regions: Vec<Region>,
}

/// Why a list of regions is not a valid memory layout.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages document the variants
pub enum LayoutError {
    #[error("guest memory has no region")]
    Empty,
    #[error("guest memory has {0} regions, at most {MAX_REGIONS} are accepted")]
    TooManyRegions(usize),
    #[error(
        "memory region at {base:#x} of {bytes} bytes is not made of whole {CHUNK_BYTES}-byte chunks"
    )]
    Unaligned { base: u64, bytes: u64 },
    #[error("memory region at {base:#x} overlaps the one before it or is out of order")]
    Overlap { base: u64 },
    #[error("memory region at {base:#x} of {bytes} bytes passes the end of the address space")]
    OutOfRange { base: u64, bytes: u64 },
    #[error("guest memory of {0} bytes is above the {MAX_MEMORY_BYTES} that are accepted")]
    TooLarge(u64),
}

impl MemoryLayout {
    /// Checks `regions` and creates a layout from them.
    ///
    /// # Errors
    /// If there are none or too many, they are not ascending, overlap, or are not whole chunks; or
    /// if they are more than `MAX_MEMORY_BYTES` in all or pass the end of the address space.
    pub fn new(regions: Vec<Region>) -> Result<Self, LayoutError> {
        if regions.is_empty() {
            return Err(LayoutError::Empty);
        }
        if regions.len() > MAX_REGIONS {
            return Err(LayoutError::TooManyRegions(regions.len()));
        }
        let (mut free_from, mut total) = (0_u64, 0_u64);
        for &Region { base, bytes } in &regions {
            let chunk = CHUNK_BYTES as u64;
            if bytes == 0 || bytes % chunk != 0 || base % chunk != 0 {
                return Err(LayoutError::Unaligned { base, bytes });
            }
            if base < free_from {
                return Err(LayoutError::Overlap { base });
            }
            free_from = base.checked_add(bytes).ok_or(LayoutError::OutOfRange { base, bytes })?;
            total = total.saturating_add(bytes);
            if total > MAX_MEMORY_BYTES {
                return Err(LayoutError::TooLarge(total));
            }
        }
        Ok(Self { regions })
    }

    /// Returns the regions, in ascending order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Returns the size of all memory, in bytes.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes).sum()
    }

    /// Returns the size of all memory, in pages.
    pub fn pages(&self) -> u64 {
        self.bytes() / PAGE_BYTES as u64
    }

    /// Returns the size of all memory, in chunks: the number of words of its dirty bitmap.
    pub fn chunks(&self) -> usize {
        // At most 16 TiB / 256 KiB = 2^26.
        (self.bytes() / CHUNK_BYTES as u64) as usize
    }
}

impl TryFrom<Vec<Region>> for MemoryLayout {
    type Error = LayoutError;

    fn try_from(regions: Vec<Region>) -> Result<Self, LayoutError> {
        Self::new(regions)
    }
}

impl From<MemoryLayout> for Vec<Region> {
    fn from(layout: MemoryLayout) -> Self {
        layout.regions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHUNK: u64 = CHUNK_BYTES as u64;

    fn region(base: u64, bytes: u64) -> Region {
        Region { base, bytes }
    }

    #[test]
    fn counts_the_regions_and_not_the_hole_between_them() {
        let layout = MemoryLayout::new(vec![region(0, 2 * CHUNK), region(1 << 32, CHUNK)]).unwrap();

        assert_eq!(layout.chunks(), 3);
        assert_eq!(layout.pages(), 192);
    }

    #[test]
    fn rejects_invalid_layouts() {
        assert_eq!(MemoryLayout::new(vec![]), Err(LayoutError::Empty));
        assert_eq!(
            MemoryLayout::new(vec![region(0, 4096)]),
            Err(LayoutError::Unaligned { base: 0, bytes: 4096 })
        );
        assert_eq!(
            MemoryLayout::new(vec![region(0, 2 * CHUNK), region(CHUNK, CHUNK)]),
            Err(LayoutError::Overlap { base: CHUNK })
        );
        let last = u64::MAX - CHUNK + 1;
        assert_eq!(
            MemoryLayout::new(vec![region(last, CHUNK)]),
            Err(LayoutError::OutOfRange { base: last, bytes: CHUNK })
        );
        assert_eq!(
            MemoryLayout::new(vec![region(0, MAX_MEMORY_BYTES + CHUNK)]),
            Err(LayoutError::TooLarge(MAX_MEMORY_BYTES + CHUNK))
        );
        let many = (0..17).map(|index| region(index * CHUNK, CHUNK)).collect();
        assert_eq!(MemoryLayout::new(many), Err(LayoutError::TooManyRegions(17)));
    }
}
