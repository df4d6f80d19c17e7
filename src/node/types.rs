//! The types of the node's API, and of `node.json`.

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

/// `node.json`: the addresses of this host's node. Written when the node serves, removed when it
/// ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NodeFile {
    /// PID of the node.
    pub(crate) pid: u32,
    /// Version of the node.
    pub(crate) version: String,
    /// UDP address on which migrations arrive, with the real port.
    pub(crate) listen: SocketAddr,
    /// TCP address of /metrics and /healthz, with the real port.
    pub(crate) metrics: SocketAddr,
    /// When it started, in milliseconds since 1970.
    pub(crate) started_unix_ms: u64,
}

/// Largest `node.json` that is read, in bytes.
const NODE_FILE_BYTES_MAX: u64 = 64 << 10;

impl NodeFile {
    /// Returns what the node of `state` publishes about itself; `None` if no node runs there, or it
    /// is not serving yet.
    pub(crate) fn of_live(state: &StateDir) -> Option<Self> {
        if !FileLock::is_held(&state.node_lock()) {
            return None;
        }
        let text = regular_file::read(&state.node_file(), NODE_FILE_BYTES_MAX).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

/// The answer to `GET /v1/node`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct NodeInfo {
    /// The node's process and addresses.
    #[serde(flatten)]
    pub(crate) node: NodeFile,
    /// The host's memory; absent when it cannot be read.
    pub(crate) memory: Option<MemoryInfo>,
    /// Live guests, those that do not answer included.
    pub(crate) guests: usize,
    /// Guests that have been admitted and have not arrived yet.
    pub(crate) arriving: usize,
    /// Migrations whose outcome must still be settled with the other host.
    pub(crate) migrations_in_doubt: u64,
}

/// The host's memory as admission counts it, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct MemoryInfo {
    /// Memory that the kernel manages.
    pub(crate) total_bytes: u64,
    /// Memory that the kernel can give without swapping.
    pub(crate) available_bytes: u64,
    /// Memory that guests never get.
    pub(crate) reserved_bytes: u64,
    /// Memory promised to arriving guests that they do not occupy yet.
    pub(crate) promised_bytes: u64,
}

/// One element of `GET /v1/guests`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GuestEntry {
    /// The guest's name.
    pub(crate) name: GuestName,
    /// What its process reports; absent when the process did not answer.
    pub(crate) info: Option<GuestInfo>,
    /// Memory that its process uses on the host; absent when it could not be read.
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
    /// Memory in transparent huge pages.
    pub(crate) anonymous_huge_bytes: u64,
    /// Memory merged by KSM; absent on kernels that do not report it.
    pub(crate) merged_bytes: Option<u64>,
    /// Memory that is swapped out.
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
    /// ID of the migration.
    pub(crate) id: Uuid,
    /// The guest's name.
    pub(crate) guest: String,
    /// Which side this host is.
    pub(crate) role: Role,
    /// State that this side has recorded.
    pub(crate) state: SideState,
    /// Whether the migration is over, as far as this host must know.
    pub(crate) is_settled: bool,
    /// Address or name of the other side.
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
    fn only_a_live_node_is_reported_as_listening() {
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
