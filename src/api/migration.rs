//! What a guest's API says about its migration. Times are durations with their unit in the name.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::PathBuf;

use migrate::pages::Compression;
use migrate::quic::Identity;
use migrate::quic::transport::CONNECTIONS_MAX;
use migrate::{OnStall, Progress, Report};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// `POST /v1/guest/migration`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MigrationRequest {
    /// HOST or HOST:PORT of the destination's node.
    pub(crate) destination: String,
    /// Addresses of that node, at most four, tried in turn; when absent, the guest's process
    /// resolves the name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) addresses: Vec<SocketAddr>,
    /// Key and certificate for this guest's process, issued by the host.
    pub(crate) identity: Identity,
    /// Name in the destination's certificate, if it differs from HOST.
    #[serde(default)]
    pub(crate) tls_name: Option<String>,
    /// Limit for the downtime, in milliseconds.
    #[serde(default = "default_downtime_ms")]
    #[schemars(range(min = 1))]
    pub(crate) downtime_ms_max: u64,
    /// Most to which the limit for the downtime is raised, step by step, if the migration stalls,
    /// in milliseconds; when absent, it is not raised. Processes of earlier versions do not know
    /// this field, and refuse it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(crate) raised_downtime_ms_max: Option<u64>,
    /// Limit for the bandwidth, in bytes per second.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(crate) bandwidth_bytes_per_s_max: Option<u64>,
    /// What to do if rounds do not bring the downtime within its limit. Processes of earlier
    /// versions do not know this field, and wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) on_stall: Option<OnStall>,
    /// Timeout of the migration, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    #[schemars(range(min = 1))]
    pub(crate) timeout_ms: u64,
    /// When pages are compressed.
    #[serde(default)]
    pub(crate) compression: Compression,
    /// Number of parallel QUIC connections; the source chooses when absent.
    #[serde(default)]
    #[schemars(range(min = 1, max = CONNECTIONS_MAX))]
    pub(crate) connections: Option<u8>,
    /// Addresses of the destination's host on the links to use at once, at most four. Each link has
    /// a connection of its own, so `connections` must be absent. Processes of earlier versions do
    /// not know this field, and refuse it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) via: Vec<IpAddr>,
    /// Copies the content of disks with the guest; when absent, both hosts share all of them.
    #[serde(default)]
    pub(crate) copy_disks: Option<CopyDisks>,
    /// Skips the proof between the hosts that they share the disks which are not copied, and that
    /// no copied disk is the block device that it overwrites.
    #[serde(default)]
    pub(crate) unproven_disks: bool,
    /// UDP port of this host's node, through which the destination can ask this host later; absent
    /// when no node runs here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node_port: Option<NonZeroU16>,
}

/// How disks are copied with a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CopyDisks {
    /// Paths here of the disks to copy; when empty, all. Both hosts share the others. Processes of
    /// earlier versions do not know this field, and refuse it.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub(crate) only: BTreeSet<PathBuf>,
    /// Destination path of a disk by its path here, both absolute; a disk that is not listed keeps
    /// its path.
    pub(crate) paths: BTreeMap<PathBuf, PathBuf>,
    /// Whether to replace files that exist at the disks' destination paths.
    pub(crate) replace: bool,
}

impl MigrationRequest {
    /// A migration to `destination` with the default limits.
    pub(crate) fn to(destination: String, identity: Identity) -> Self {
        Self {
            destination,
            addresses: Vec::new(),
            identity,
            tls_name: None,
            downtime_ms_max: default_downtime_ms(),
            raised_downtime_ms_max: None,
            bandwidth_bytes_per_s_max: None,
            on_stall: None,
            timeout_ms: default_timeout_ms(),
            compression: Compression::default(),
            connections: None,
            via: Vec::new(),
            copy_disks: None,
            unproven_disks: false,
            node_port: None,
        }
    }
}

fn default_downtime_ms() -> u64 {
    300
}

fn default_timeout_ms() -> u64 {
    3_600_000
}

/// `PUT /v1/guest/migration/limits`: new limits for a migration that is under way; what is absent
/// stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct LimitsRequest {
    /// Limit for the downtime, in milliseconds.
    #[schemars(range(min = 1))]
    pub(crate) downtime_ms_max: Option<u64>,
    /// Most to which the limit for the downtime is raised, in milliseconds. Processes of earlier
    /// versions do not know this field, and refuse it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1))]
    pub(crate) raised_downtime_ms_max: Option<u64>,
    /// Limit for the bandwidth, in bytes per second; 0 for none.
    pub(crate) bandwidth_bytes_per_s_max: Option<u64>,
    /// Timeout, in milliseconds from the start of the migration.
    #[schemars(range(min = 1))]
    pub(crate) timeout_ms: Option<u64>,
    /// What to do if rounds do not bring the downtime within its limit.
    pub(crate) on_stall: Option<OnStall>,
}

/// `PUT /v1/guest/migration/recover`: another address of the destination, whose network changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RecoverRequest {
    /// Address of its node; the process that has received the guest is at the same one.
    pub(crate) address: SocketAddr,
}

/// The answer to `POST /v1/guest/migration`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct MigrationStarted {
    /// The migration's id; its report is in `migrations/guests/NAME/UUID/ID.source.json` when the
    /// guest's process is gone.
    pub(crate) id: Uuid,
}

/// `GET /v1/guest/migration`: the running migration, or the last one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct MigrationStatus {
    /// Progress of the migration; its last state, when it is over.
    pub(crate) progress: Option<Progress>,
    /// How the migration ended. When a migration in doubt is resolved, its report is replaced.
    pub(crate) report: Option<Report>,
}

/// `PUT /v1/guest/migration/resolve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResolveRequest {
    /// What to do with this host's copy of the guest.
    pub(crate) decision: Resolution,
    /// Whether to run the guest although the destination may have written its block devices.
    /// Processes of earlier versions do not know this field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unproven_disks: bool,
    /// Whether the client knows, by asking the other host or otherwise, that the guest does not run
    /// there. Processes of earlier versions do not know this field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) other_host_has_none: bool,
}

/// An operator's decision about a guest in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Resolution {
    /// Run this copy.
    Run,
    /// Discard this copy.
    Discard,
}
