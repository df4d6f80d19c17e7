//! What travels over a guest's API about its migration. Times are durations with their unit in the
//! name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use migrate::pages::Compression;
use migrate::quic::Identity;
use migrate::{Progress, Report};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Most connections side by side; beyond, they only cost.
pub(crate) const CONNECTIONS_MAX: u8 = 16;

/// `POST /v1/guest/migration`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MigrationRequest {
    /// HOST or HOST:PORT of the destination's node.
    pub(crate) destination: String,
    /// Where that node is, at most four, to be tried in turn; the guest's process looks the name up
    /// when absent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) addresses: Vec<SocketAddr>,
    /// Key and certificate for this guest's process, which the host has issued.
    pub(crate) identity: Identity,
    /// Name in the destination's certificate, when it is not HOST.
    #[serde(default)]
    pub(crate) tls_name: Option<String>,
    /// How long the guest may stand still, in milliseconds.
    #[serde(default = "default_downtime_ms")]
    #[schemars(range(min = 1))]
    pub(crate) downtime_ms_max: u64,
    /// Limit for the network, in bytes each second.
    #[serde(default)]
    #[schemars(range(min = 1))]
    pub(crate) bandwidth_bytes_per_s_max: Option<u64>,
    /// Give up after this long, in milliseconds.
    #[serde(default = "default_timeout_ms")]
    #[schemars(range(min = 1))]
    pub(crate) timeout_ms: u64,
    /// When pages are compressed.
    #[serde(default)]
    pub(crate) compression: Compression,
    /// QUIC connections side by side; the source chooses when absent.
    #[serde(default)]
    #[schemars(range(min = 1, max = CONNECTIONS_MAX))]
    pub(crate) connections: Option<u8>,
    /// The disks' content goes along; both hosts share the disks when absent.
    #[serde(default)]
    pub(crate) copy_disks: Option<CopyDisks>,
    /// The hosts need not prove to each other that they share the disks.
    #[serde(default)]
    pub(crate) unproven_disks: bool,
    /// UDP port of this host's node, by which the destination asks this host again; absent when no
    /// node runs here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) node_port: Option<NonZeroU16>,
}

/// How disks go along with a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CopyDisks {
    /// Where the destination shall have a disk, by its path here: absolute, both; where it is here
    /// when absent.
    pub(crate) paths: BTreeMap<PathBuf, PathBuf>,
    /// Whether files that are in the disks' places there are replaced.
    pub(crate) replace: bool,
}

impl MigrationRequest {
    /// A migration to `destination` with the usual limits.
    pub(crate) fn to(destination: String, identity: Identity) -> Self {
        Self {
            destination,
            addresses: Vec::new(),
            identity,
            tls_name: None,
            downtime_ms_max: default_downtime_ms(),
            bandwidth_bytes_per_s_max: None,
            timeout_ms: default_timeout_ms(),
            compression: Compression::default(),
            connections: None,
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
    /// How it stands; the last state, when it is over.
    pub(crate) progress: Option<Progress>,
    /// How it ended. One in doubt is followed by another when the doubt is settled.
    pub(crate) report: Option<Report>,
}

/// `PUT /v1/guest/migration/resolve`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ResolveRequest {
    /// What becomes of the copy of the guest that is here.
    pub(crate) decision: Resolution,
    /// Run it although the destination may have written its block devices. A process of an earlier
    /// version does not know this field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) unproven_disks: bool,
    /// Who asks for it to run has asked the other host, or knows that it does not run the guest.
    /// Processes of an earlier version do not know this field.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) other_host_has_none: bool,
}

/// An operator's decision about a guest in doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Resolution {
    /// Run it.
    Run,
    /// Throw it away.
    Discard,
}
