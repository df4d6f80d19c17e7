//! What travels about a guest's memory, for whoever shares out that of the host.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use vmm_core::virtio::balloon::SetBy;

use super::types::{BackingInfo, BalloonStatistics, GuestState};
use crate::names::GuestName;

/// `GET /v1/guest/memory`: what there is to know for whoever shares out the host's memory. Nobody
/// waits for the guest: statistics are its last ones, and new ones are asked for meanwhile.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GuestMemory {
    /// The guest's name.
    pub(crate) name: GuestName,
    /// The process that holds its memory.
    pub(crate) pid: u32,
    /// What it is doing.
    pub(crate) state: GuestState,
    /// Whether it is being written to a file.
    pub(crate) is_being_saved: bool,
    /// Its memory, bytes.
    pub(crate) memory_bytes: u64,
    /// How that is backed.
    pub(crate) backing: BackingInfo,
    /// What its operator has written beside it.
    pub(crate) labels: BTreeMap<String, String>,
    /// Its balloon, if it has one.
    pub(crate) balloon: Option<BalloonLevel>,
}

/// Where a balloon stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct BalloonLevel {
    /// Whether the guest has a driver for it.
    pub(crate) has_driver: bool,
    /// Whether the guest reports free pages by itself.
    pub(crate) reporting: bool,
    /// What the guest shall keep, bytes.
    pub(crate) target_bytes: u64,
    /// Who has set that; absent from older guests' processes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) set_by: Option<SetBy>,
    /// What it keeps, bytes.
    pub(crate) actual_bytes: u64,
    /// Given back through free page reports since the process started, bytes.
    pub(crate) reported_bytes_total: u64,
    /// What the guest said last.
    pub(crate) statistics: Option<BalloonStatistics>,
}

/// `PUT /v1/guest/memory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TreatmentRequest {
    /// What becomes of the memory; the guest reads what it did before.
    pub(crate) treatment: MemoryTreatment,
    /// Runs of chunks of 2 MiB, each as its first chunk (guest physical address over 2 MiB) and
    /// their number; all memory when absent.
    #[serde(default)]
    pub(crate) chunks: Option<Vec<(u32, u32)>>,
}

/// What becomes of a part of a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum MemoryTreatment {
    /// The kernel may merge it with that of other guests of its domain.
    Merge,
    /// The kernel may not, and what is merged is taken apart.
    Unmerge,
    /// As `unmerge`, and what is there becomes huge pages.
    Collapse,
    /// What is as in the guest's template is shared with it again. The guest stands still for
    /// moments.
    Share,
    /// Pages of zeros are given back, and the huge pages up that they are in. The guest stands
    /// still for moments.
    DropZeros,
}

/// The answer to `PUT /v1/guest/memory`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct TreatedMemory {
    /// Chunks that were treated.
    pub(crate) chunks: u64,
    /// Why not all of them.
    pub(crate) error: Option<String>,
}
