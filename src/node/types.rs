//! What travels over the node's API, and what `node.json` holds.

use std::net::SocketAddr;

use memopt::observe::ProcessCost;
use migrate::progress::Role;
use migrate::record::{DestinationState, SourceState};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::api::types::GuestInfo;
use crate::file_lock::FileLock;
use crate::names::GuestName;
use crate::state_dir::StateDir;

/// `node.json`: where the node of this host can be found. Written when it serves, removed when it
/// ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NodeFile {
    /// Its process.
    pub(crate) pid: u32,
    /// Its version.
    pub(crate) version: String,
    /// UDP address on which migrations arrive, with the real port.
    pub(crate) listen: SocketAddr,
    /// TCP address of /metrics and /healthz, with the real port.
    pub(crate) metrics: SocketAddr,
    /// When it started, in milliseconds since 1970.
    pub(crate) started_unix_ms: u64,
}

/// The longest `node.json` that is read, in bytes.
const NODE_FILE_BYTES_MAX: u64 = 64 << 10;

impl NodeFile {
    /// Returns what the node of `state` says of itself; none when no node runs there, or it is not
    /// serving yet.
    pub(crate) fn of_live(state: &StateDir) -> Option<Self> {
        if !FileLock::is_held(&state.node_lock()) {
            return None;
        }
        let text = regular_file::read(&state.node_file(), NODE_FILE_BYTES_MAX).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// `GET /v1/node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NodeInfo {
    /// Where it is.
    #[serde(flatten)]
    pub(crate) node: NodeFile,
    /// The host's memory; absent when it cannot be read.
    pub(crate) memory: Option<MemoryInfo>,
    /// Live guests, those that do not answer included.
    pub(crate) guests: usize,
    /// Guests that have been admitted and have not arrived.
    pub(crate) arriving: usize,
    /// Migrations whose outcome must still be settled with the other host.
    pub(crate) migrations_in_doubt: u64,
}

/// The host's memory as admission counts it, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct MemoryInfo {
    /// All that the kernel manages.
    pub(crate) total_bytes: u64,
    /// What it can give without swapping.
    pub(crate) available_bytes: u64,
    /// What is left to the host.
    pub(crate) reserved_bytes: u64,
    /// What arriving guests have been promised and do not occupy yet.
    pub(crate) promised_bytes: u64,
}

/// One element of `GET /v1/guests`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GuestEntry {
    /// The guest's name.
    pub(crate) name: GuestName,
    /// What its process says; absent when that did not answer.
    pub(crate) info: Option<GuestInfo>,
    /// What its process costs the host; absent when that could not be read.
    pub(crate) cost: Option<CostInfo>,
    /// Why it did not answer.
    pub(crate) fault: Option<String>,
}

/// Host memory of a guest's process, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct CostInfo {
    /// RSS, and huge pages of the host's pool.
    pub(crate) resident_bytes: u64,
    /// PSS, and huge pages of the host's pool.
    pub(crate) proportional_bytes: u64,
    /// Held by transparent huge pages.
    pub(crate) anonymous_huge_bytes: u64,
    /// Merged by KSM; absent on kernels that do not tell.
    pub(crate) merged_bytes: Option<u64>,
    /// Swapped out.
    pub(crate) swapped_bytes: u64,
}

impl From<ProcessCost> for CostInfo {
    fn from(cost: ProcessCost) -> Self {
        Self {
            resident_bytes: cost.resident_bytes.saturating_add(cost.hugetlb_bytes),
            proportional_bytes: cost.total_bytes(),
            anonymous_huge_bytes: cost.anonymous_huge_bytes,
            merged_bytes: cost.merged_bytes,
            swapped_bytes: cost.swapped_bytes,
        }
    }
}

/// One element of `GET /v1/migrations`: a record, without its secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct MigrationEntry {
    /// The migration.
    pub(crate) id: Uuid,
    /// The guest's name.
    pub(crate) guest: String,
    /// Which side this host is.
    pub(crate) role: Role,
    /// What this side has recorded.
    pub(crate) state: SideState,
    /// Whether it is over, as far as this host has to know.
    pub(crate) is_settled: bool,
    /// Where the other side is.
    pub(crate) peer: String,
    /// When it began, in milliseconds since 1970.
    pub(crate) started_unix_ms: u64,
    /// When it was last written, in milliseconds since 1970.
    pub(crate) updated_unix_ms: u64,
    /// The final report, when there is one.
    pub(crate) report: Option<migrate::Report>,
}

/// What a side of a migration has recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum SideState {
    /// The source.
    Source(SourceState),
    /// The destination.
    Destination(DestinationState),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable;

    #[test]
    fn only_a_live_node_is_said_to_listen() {
        let (_folder, state) = StateDir::temporary();
        state.create().unwrap();
        assert_eq!(NodeFile::of_live(&state), None);
        let file = NodeFile {
            pid: 1,
            version: "1".to_owned(),
            listen: ([127, 0, 0, 1], 4950).into(),
            metrics: ([127, 0, 0, 1], 9450).into(),
            started_unix_ms: 1,
        };
        let lock = FileLock::try_acquire(&state.node_lock()).unwrap();
        assert_eq!(NodeFile::of_live(&state), None, "it does not serve yet");
        durable::write_json(&state.node_file(), &file).unwrap();
        assert_eq!(NodeFile::of_live(&state), Some(file));
        drop(lock);
        assert_eq!(NodeFile::of_live(&state), None, "it was killed");
    }
}
