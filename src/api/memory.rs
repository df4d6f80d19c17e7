//! What the API says about a guest's memory, for memory optimization.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmm_core::virtio::balloon::SetBy;

use super::types::{BackingInfo, BalloonStatistics, GuestState};
use crate::names::GuestName;

/// `GET /v1/guest/memory`: the guest's state for memory optimization. The call does not wait for
/// the guest: it returns the last statistics, and requests new ones for the next call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GuestMemory {
    /// The guest's name.
    pub(crate) name: GuestName,
    /// The process that holds its memory.
    pub(crate) pid: u32,
    /// The guest's state.
    pub(crate) state: GuestState,
    /// Whether the guest is being written to a file.
    pub(crate) is_being_saved: bool,
    /// Guest memory, bytes.
    pub(crate) memory_bytes: u64,
    /// How the memory is backed.
    pub(crate) backing: BackingInfo,
    /// Labels that the operator gave the guest.
    pub(crate) labels: BTreeMap<String, String>,
    /// Time since the guest last began to boot in this process, milliseconds; absent when it came
    /// from another host or from a file, and from guest processes of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since_boot_ms: Option<u64>,
    /// The balloon; absent when the guest has none, or its memory is still arriving.
    pub(crate) balloon: Option<BalloonLevel>,
}

/// State of a balloon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BalloonLevel {
    /// Whether the guest has a driver for it.
    pub(crate) has_driver: bool,
    /// Whether the guest reports free pages automatically.
    pub(crate) reporting: bool,
    /// Balloon target: the memory that the guest should keep, bytes.
    pub(crate) target_bytes: u64,
    /// Who set the target; absent from guest processes of older versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) set_by: Option<SetBy>,
    /// Memory that the guest has now, bytes.
    pub(crate) actual_bytes: u64,
    /// Memory freed through free page reporting since the process started, bytes.
    pub(crate) reported_bytes_total: u64,
    /// The last statistics of the guest.
    pub(crate) statistics: Option<BalloonStatistics>,
}

/// `PUT /v1/guest/memory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TreatmentRequest {
    /// What to do with the memory; the guest's data does not change.
    pub(crate) treatment: MemoryTreatment,
    /// Runs of chunks of 2 MiB, each as its first chunk (guest physical address divided by 2 MiB)
    /// and their number; all memory when absent.
    #[serde(default)]
    pub(crate) chunks: Option<Vec<(u32, u32)>>,
}

/// What to do with a part of a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MemoryTreatment {
    /// Let the kernel merge it with the memory of other guests of the same domain.
    Merge,
    /// Stop merging, and split what is merged.
    Unmerge,
    /// As `unmerge`, then collapse the present pages into huge pages.
    Collapse,
    /// Share pages that equal the template's with the template again. The guest is paused for short
    /// moments.
    Share,
    /// Free zero pages, and give up the huge pages that contain them. The guest is paused for short
    /// moments.
    DropZeros,
}

/// The answer to `PUT /v1/guest/memory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct TreatedMemory {
    /// Chunks that were treated.
    pub(crate) chunks: u64,
    /// Why not all chunks were treated.
    pub(crate) error: Option<String>,
}
