//! A guest's memory statistics: pairs of a tag and a value (virtio 1.2, 5.5.6.3).
//!
//! All values are optional and none can be trusted. The pairs come in any order; if a tag occurs
//! twice, the last one counts, and unknown tags are ignored.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Size of a pair in bytes: `__le16` and `__le64`, packed.
const PAIR_BYTES: usize = 10;
/// Most pairs that are read. Linux 6.12 sends 16.
const PAIRS_MAX: usize = 64;
/// Most bytes of statistics that are read.
pub(super) const BYTES_MAX: usize = PAIR_BYTES * PAIRS_MAX;

/// A guest's statistics, with the fields of `linux/virtio_balloon.h` (`VIRTIO_BALLOON_S_*`) as of
/// Linux 6.12.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Statistics {
    /// Bytes swapped in since the guest booted; all other event counts also start at boot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_in_bytes: Option<u64>,
    /// Bytes swapped out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap_out_bytes: Option<u64>,
    /// Page faults that had to wait for a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major_faults: Option<u64>,
    /// Page faults that did not wait for a disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor_faults: Option<u64>,
    /// Memory that is not used at all (`MemFree`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub free_bytes: Option<u64>,
    /// Memory of the guest without what is in the balloon (`MemTotal`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<u64>,
    /// Memory that programs can allocate without swapping (`MemAvailable`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub available_bytes: Option<u64>,
    /// Memory that caches data of disks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_bytes: Option<u64>,
    /// Huge pages allocated from the guest's pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_page_allocations: Option<u64>,
    /// Failed allocations of huge pages.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub huge_page_failures: Option<u64>,
    /// Processes killed because memory ran out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_kills: Option<u64>,
    /// Number of times a program had to wait for memory to be freed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allocation_stalls: Option<u64>,
    /// Bytes scanned in the background for memory to free.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background_scan_bytes: Option<u64>,
    /// Bytes scanned for memory to free while a program waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_scan_bytes: Option<u64>,
    /// Bytes freed in the background.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub background_reclaim_bytes: Option<u64>,
    /// Bytes freed while a program waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub direct_reclaim_bytes: Option<u64>,
}

impl Statistics {
    /// Decodes the statistics in a driver's buffer.
    pub(super) fn from_bytes(bytes: &[u8]) -> Self {
        let mut statistics = Self::default();
        for pair in bytes.chunks_exact(PAIR_BYTES).take(PAIRS_MAX) {
            let Some((tag, rest)) = pair.split_first_chunk() else { continue };
            let Some(value) = rest.first_chunk() else { continue };
            if let Some(field) = statistics.field(u16::from_le_bytes(*tag)) {
                *field = Some(u64::from_le_bytes(*value));
            }
        }
        statistics
    }

    fn field(&mut self, tag: u16) -> Option<&mut Option<u64>> {
        Some(match tag {
            0 => &mut self.swap_in_bytes,
            1 => &mut self.swap_out_bytes,
            2 => &mut self.major_faults,
            3 => &mut self.minor_faults,
            4 => &mut self.free_bytes,
            5 => &mut self.total_bytes,
            6 => &mut self.available_bytes,
            7 => &mut self.cache_bytes,
            8 => &mut self.huge_page_allocations,
            9 => &mut self.huge_page_failures,
            10 => &mut self.oom_kills,
            11 => &mut self.allocation_stalls,
            12 => &mut self.background_scan_bytes,
            13 => &mut self.direct_scan_bytes,
            14 => &mut self.background_reclaim_bytes,
            15 => &mut self.direct_reclaim_bytes,
            _ => return None,
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A driver's buffer.
    pub(in crate::virtio::balloon) fn buffer(pairs: &[(u16, u64)]) -> Vec<u8> {
        let bytes =
            |(tag, value): &(u16, u64)| [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat();
        pairs.iter().flat_map(bytes).collect()
    }

    #[test]
    fn every_tag_has_its_field() {
        let pairs: Vec<(u16, u64)> = (0..16).map(|tag| (tag, 100 + u64::from(tag))).collect();
        let mut statistics = Statistics::from_bytes(&buffer(&pairs));
        for (tag, value) in pairs {
            assert_eq!(statistics.field(tag), Some(&mut Some(value)));
        }
        assert_eq!((statistics.total_bytes, statistics.oom_kills), (Some(105), Some(110)));
        assert_eq!(statistics.field(16), None);
    }

    #[test]
    fn order_does_not_matter_and_unknown_tags_are_ignored() {
        let statistics = Statistics::from_bytes(&buffer(&[(6, 1), (0xffff, 2), (4, 3), (6, 4)]));
        let expected =
            Statistics { available_bytes: Some(4), free_bytes: Some(3), ..Default::default() };
        assert_eq!(statistics, expected);
    }

    #[test]
    fn partial_pairs_and_excess_pairs_are_ignored() {
        let whole = buffer(&[(4, 3), (5, 8)]);
        let statistics = Statistics::from_bytes(&whole[..19]);
        assert_eq!((statistics.free_bytes, statistics.total_bytes), (Some(3), None));
        let mut many = buffer(&[(4, 3); PAIRS_MAX]);
        many.extend(buffer(&[(5, 8)]));
        assert_eq!(Statistics::from_bytes(&many).total_bytes, None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted(bytes in prop::collection::vec(any::<u8>(), 0..1000)) {
            let _ = Statistics::from_bytes(&bytes);
        }
    }
}
