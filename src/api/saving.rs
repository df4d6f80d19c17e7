//! What is said about saving a guest to a file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// `POST /v1/guest/save`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SaveRequest {
    /// The file to write: an absolute path, as the guest's process sees it.
    pub(crate) file: PathBuf,
    /// What the file is for.
    #[serde(default)]
    pub(crate) format: SaveFormat,
    /// Whether the guest goes on when it is written; else it stands still until it is told to end
    /// or to go on, or for a minute.
    #[serde(default)]
    pub(crate) keep_running: bool,
    /// Copies that will be made of its disks, while it stands still, for the guest to be restored
    /// on.
    #[serde(default)]
    pub(crate) copies: Option<SavedCopies>,
}

/// Copies of a guest's disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedCopies {
    /// Where the copy of each disk will be.
    pub(crate) paths: BTreeMap<PathBuf, PathBuf>,
    /// The modification time that they will have, in seconds since 1970.
    pub(crate) modified_unix_s: i64,
}

/// What a guest is written to a file for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SaveFormat {
    /// To go on from it, once: small.
    #[default]
    Guest,
    /// To start many others from it, which share its memory.
    Template,
}

/// The answer to `POST /v1/guest/save`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Saved {
    /// Names this save in what is said about it.
    pub(crate) id: Uuid,
    /// The file's size, bytes.
    pub(crate) file_bytes: u64,
    /// How long the guest has stood still until now, in milliseconds.
    pub(crate) paused_ms: u64,
}

/// `PUT /v1/guest/save/...`: about the guest that stands still since a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SaveId {
    /// [`Saved::id`].
    pub(crate) id: Uuid,
}
