//! What the service reports about the host, its guests and its runs. All of these types are part of
//! the node's API.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::history::RunId;
use crate::ledger::{GuestLedger, Level};
use crate::policy::Goal;
use crate::situation::Situation;

/// The answer to `GET /v1/density`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DensityStatus {
    /// The current state of the host and its guests.
    pub situation: Situation,
    /// State that the ledger keeps about each guest, by its name.
    #[serde(default)]
    pub remembered: BTreeMap<String, Remembered>,
    /// The host's memory shortage level.
    pub level: Level,
    /// The policy's goal.
    pub goal: Goal,
    /// File that defines policy and schedules; absent when there is no such file and the default
    /// policy applies.
    pub file: Option<String>,
    /// Why the current content of the file is not applied; its last valid content still applies.
    pub file_error: Option<String>,
    /// What this host does not report, or denies to guests' processes, and why.
    pub missing: Vec<String>,
    /// The run in progress.
    pub running: Option<RunId>,
}

/// The part of a guest's ledger record that decides what is done to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Remembered {
    /// Bytes that the guest is assumed to need; absent until it reports statistics.
    pub needs_bytes: Option<u64>,
    /// Why nothing is taken from the guest now; absent when something may be.
    pub spared: Option<Spared>,
    /// Seconds until memory may be taken from the guest, which has just booted; absent otherwise.
    #[serde(default)]
    pub boots_seconds: Option<u64>,
}

/// A guest under pressure, now or recently.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Spared {
    /// The last sign of its pressure.
    pub pressure: String,
    /// Seconds until memory may be taken from it again.
    pub left_seconds: u64,
}

impl Remembered {
    /// Returns the state that `known` holds at `now`, the host's uptime.
    pub fn of(known: &GuestLedger, now: Duration) -> Self {
        let spared = known.spared(now).map(|pressure| Spared {
            pressure: pressure.cause.to_string(),
            left_seconds: (pressure.until - now).as_secs(),
        });
        let boots_seconds = known.boots_for(now).map(|left| left.as_secs());
        Self { needs_bytes: known.needs_bytes(), spared, boots_seconds }
    }
}

/// The answer to `GET /v1/density/next`: the run in progress and the next ones. The host is not
/// inspected for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Agenda {
    /// The run in progress.
    pub running: Option<RunId>,
    /// The scheduled runs, earliest first.
    pub next: Vec<NextRun>,
    /// Why the current content of lighter.toml is not applied.
    pub file_error: Option<String>,
}

/// A scheduled run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NextRun {
    /// Time of the run in Unix seconds.
    pub at_unix_seconds: u64,
    /// Name of the schedule.
    pub schedule: String,
    /// Goal of the run.
    pub goal: String,
}
