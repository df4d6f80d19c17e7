//! What the API says about saving a guest to a file.

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
    /// Whether the guest continues when the file is written. Otherwise it stays paused until the
    /// client ends or resumes it, or for a minute after the save or its last `save/hold`.
    #[serde(default)]
    pub(crate) keep_running: bool,
    /// Copies of its disks that the client makes while the guest is paused, and on which the guest
    /// will be restored.
    #[serde(default)]
    pub(crate) copies: Option<SavedCopies>,
}

/// Copies of a guest's disks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SavedCopies {
    /// Path of the copy, by the path of the disk.
    pub(crate) paths: BTreeMap<PathBuf, PathBuf>,
    /// The modification time that the copies will have, in seconds since 1970.
    pub(crate) modified_unix_s: i64,
}

/// What a saved file is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum SaveFormat {
    /// Restoring the guest, once; the file is small.
    #[default]
    Guest,
    /// Starting many guests that share its memory.
    Template,
}

/// The answer to `POST /v1/guest/save`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Saved {
    /// Identifies this save in later requests.
    pub(crate) id: Uuid,
    /// The file's size, bytes.
    pub(crate) file_bytes: u64,
    /// How long the guest has been paused until now, in milliseconds.
    pub(crate) paused_ms: u64,
}

/// `PUT /v1/guest/save/...`: about the guest that is paused since a save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SaveId {
    /// [`Saved::id`] of that save.
    pub(crate) id: Uuid,
}
