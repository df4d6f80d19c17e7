//! Where guest RAM lies in the guest's physical address space.

use std::collections::BTreeMap;

use super::{
    CHUNK_BYTES, HUGE_PAGE_BYTES, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, MemoryError, PAGE_BYTES,
};

/// Largest RAM below the hole for devices, in bytes: everything from here to 4 GiB is not RAM.
pub const LOW_RAM_MAX: u64 = 3 << 30;
/// Start of the RAM above the hole.
pub const HIGH_RAM_START: u64 = 4 << 30;

/// A run of guest-physical addresses that is RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RamRegion {
    /// Guest-physical address of the first byte.
    pub gpa: u64,
    /// Length in bytes, a multiple of the chunk size.
    pub bytes: u64,
    /// Number of the region's first chunk.
    pub first_chunk: usize,
}

impl RamRegion {
    /// Chunks in this region.
    pub fn chunks(&self) -> usize {
        self.bytes as usize / CHUNK_BYTES
    }
}

/// The regions of a guest's RAM, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RamLayout {
    regions: Vec<RamRegion>,
}

impl RamLayout {
    /// Lays out `bytes` of RAM: up to [`LOW_RAM_MAX`] from address 0, the rest from
    /// [`HIGH_RAM_START`].
    ///
    /// # Errors
    /// [`MemoryError::Size`] if `bytes` is out of bounds or not a whole number of chunks.
    pub fn new(bytes: u64) -> Result<Self, MemoryError> {
        let whole = bytes.is_multiple_of(CHUNK_BYTES as u64);
        if !whole || !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes) {
            return Err(MemoryError::Size { bytes });
        }
        let low = RamRegion { gpa: 0, bytes: bytes.min(LOW_RAM_MAX), first_chunk: 0 };
        let mut regions = vec![low];
        if bytes > LOW_RAM_MAX {
            regions.push(RamRegion {
                gpa: HIGH_RAM_START,
                bytes: bytes - LOW_RAM_MAX,
                first_chunk: low.chunks(),
            });
        }
        Ok(Self { regions })
    }

    /// The regions, in ascending order.
    pub fn regions(&self) -> &[RamRegion] {
        &self.regions
    }

    /// Guest-physical address behind the last byte.
    pub(crate) fn end(&self) -> u64 {
        self.regions.iter().map(|region| region.gpa + region.bytes).max().unwrap_or(0)
    }

    /// Number of chunks in all regions: the length of a dirty bitmap in words.
    pub fn chunks(&self) -> usize {
        self.regions.iter().map(RamRegion::chunks).sum()
    }

    /// Bytes in all regions.
    pub fn bytes(&self) -> u64 {
        self.regions.iter().map(|region| region.bytes).sum()
    }

    /// Counts the pages whose bits are set in `words`, one word for each chunk, by the 2 MiB of
    /// guest-physical addresses that they lie in. Omits 2 MiB in which no bit is set.
    pub fn pages_by_2m(&self, words: &[u64]) -> BTreeMap<u32, u16> {
        let mut found = BTreeMap::new();
        for region in &self.regions {
            let words = words.iter().skip(region.first_chunk).take(region.chunks());
            let places = (region.gpa..).step_by(CHUNK_BYTES);
            for (gpa, word) in places.zip(words).filter(|(_, word)| **word != 0) {
                *found.entry((gpa / HUGE_PAGE_BYTES) as u32).or_default() +=
                    word.count_ones() as u16;
            }
        }
        found
    }

    /// Returns the guest-physical address of page `page` of `chunk`.
    pub(crate) fn gpa_of(&self, chunk: usize, page: usize) -> Option<u64> {
        let (region, offset) = self.locate(chunk)?;
        Some(self.regions[region].gpa + (offset + page * PAGE_BYTES) as u64)
    }

    /// Returns the index of the region that holds `chunk`, and the chunk's byte offset in it.
    pub(crate) fn locate(&self, chunk: usize) -> Option<(usize, usize)> {
        self.regions.iter().enumerate().find_map(|(index, region)| {
            let inside = chunk.checked_sub(region.first_chunk)?;
            (inside < region.chunks()).then(|| (index, inside * CHUNK_BYTES))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_memory_is_one_region_from_zero() {
        let layout = RamLayout::new(512 << 20).unwrap();
        assert_eq!(layout.regions(), [RamRegion { gpa: 0, bytes: 512 << 20, first_chunk: 0 }]);
        assert_eq!(layout.chunks(), 2048);
    }

    #[test]
    fn memory_beyond_the_hole_continues_at_4_gib() {
        let layout = RamLayout::new((3 << 30) + CHUNK_BYTES as u64).unwrap();
        let high = layout.regions()[1];
        assert_eq!((high.gpa, high.bytes, high.first_chunk), (4 << 30, 256 << 10, 12288));
        assert_eq!(layout.locate(12287), Some((0, (3 << 30) - CHUNK_BYTES)));
        assert_eq!(layout.locate(12288), Some((1, 0)));
        assert_eq!(layout.locate(12289), None);
    }

    #[test]
    fn pages_are_counted_by_2_mib_of_addresses() {
        let layout = RamLayout::new((3 << 30) + CHUNK_BYTES as u64).unwrap();
        let mut words = vec![0; layout.chunks()];
        assert!(layout.pages_by_2m(&words).is_empty());
        words[..9].fill(!0);
        words[12_288] = 0b101;
        let found = BTreeMap::from([(0, 512), (1, 64), (2048, 2)]);
        assert_eq!(layout.pages_by_2m(&words), found);
    }

    #[test]
    fn sizes_that_no_guest_can_have_are_refused() {
        for bytes in [0, 1 << 20, (64 << 20) + 4096, (256 << 30) + CHUNK_BYTES as u64, u64::MAX] {
            assert!(matches!(RamLayout::new(bytes), Err(MemoryError::Size { .. })), "{bytes}");
        }
    }
}
