//! What the service tells of the host, its guests and its runs. All of it travels over the node's
//! API.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::history::RunId;
use crate::ledger::{GuestLedger, Level};
use crate::policy::Goal;
use crate::situation::Situation;

/// `GET /v1/density`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DensityStatus {
    /// The host and its guests now.
    pub situation: Situation,
    /// What the ledger has of each guest, by its name.
    #[serde(default)]
    pub remembered: BTreeMap<String, Remembered>,
    /// How short of memory the host is.
    pub level: Level,
    /// The policy's goal.
    pub goal: Goal,
    /// Where policy and schedules come from; absent when there is no such file and the default
    /// policy holds.
    pub file: Option<String>,
    /// Why the file is not used as it is now; what it said before still holds.
    pub file_error: Option<String>,
    /// What this host does not tell, or does not let guests' processes have, and why.
    pub missing: Vec<String>,
    /// The run under way.
    pub running: Option<RunId>,
}

/// What the ledger has of one guest, as far as it decides what is done to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Remembered {
    /// What it is taken to need, in bytes; absent while it has not said.
    pub needs_bytes: Option<u64>,
    /// Why nothing is taken from it now; absent when something may be.
    pub spared: Option<Spared>,
}

/// A guest that hurts, or did lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Spared {
    /// What showed its pain last.
    pub pain: String,
    /// For how long it keeps everything yet, in seconds.
    pub left_seconds: u64,
}

impl Remembered {
    /// What `known` has of it at `now`, the host's uptime.
    pub fn of(known: &GuestLedger, now: Duration) -> Self {
        let spared = known.spared(now).map(|pain| Spared {
            pain: pain.cause.to_string(),
            left_seconds: (pain.until - now).as_secs(),
        });
        Self { needs_bytes: known.needs_bytes(), spared }
    }
}

/// `GET /v1/density/next`: what runs, and what comes then. The host is not inspected for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Agenda {
    /// The run under way.
    pub running: Option<RunId>,
    /// What is scheduled, the first first.
    pub next: Vec<NextRun>,
    /// Why lighter.toml as it is now does not hold.
    pub file_error: Option<String>,
}

/// A run that is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NextRun {
    /// When, in Unix seconds.
    pub at_unix_seconds: u64,
    /// The schedule.
    pub schedule: String,
    /// What it is for.
    pub goal: String,
}
