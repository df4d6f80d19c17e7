//! What travels over the node's API about memory optimization.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use memopt::history::{Payloads, RunId, Summary};
use memopt::ledger::{GuestLedger, Level};
use memopt::plan::{Plan, Step};
use memopt::policy::Goal;
use memopt::situation::Situation;
use serde::{Deserialize, Serialize};

/// `GET /v1/density`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DensityStatus {
    /// The host and its guests now.
    pub(crate) situation: Situation,
    /// What is remembered of each guest, by its name.
    #[serde(default)]
    pub(crate) remembered: BTreeMap<String, Remembered>,
    /// How short of memory the host is.
    pub(crate) level: Level,
    /// The policy's goal.
    pub(crate) goal: Goal,
    /// Where policy and schedules come from; absent when there is no such file and the default policy holds.
    pub(crate) file: Option<String>,
    /// Why the file is not used as it is now; what it said before still holds.
    pub(crate) file_error: Option<String>,
    /// What this host does not tell, or does not let guests' processes have, and why.
    pub(crate) missing: Vec<String>,
    /// The run under way.
    pub(crate) running: Option<RunId>,
}

/// What is remembered of one guest, as far as it decides what is done to it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    /// What it is taken to need, in bytes; absent while it has not said.
    pub(crate) needs_bytes: Option<u64>,
    /// Why nothing is taken from it now; absent when something may be.
    pub(crate) spared: Option<Spared>,
}

/// A guest that hurts, or did lately.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spared {
    /// What showed its pain last.
    pub(crate) pain: String,
    /// For how long it keeps everything yet, in seconds.
    pub(crate) left_seconds: u64,
}

impl Remembered {
    /// What `known` has of it at `now`, the host's uptime.
    pub(crate) fn of(known: &GuestLedger, now: Duration) -> Self {
        let spared = known.spared(now).map(|pain| Spared {
            pain: pain.cause.to_string(),
            left_seconds: (pain.until - now).as_secs(),
        });
        Self { needs_bytes: known.needs_bytes(), spared }
    }
}

/// `POST /v1/density/plan`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PlanRequest {
    /// What for; the policy's goal when absent.
    pub(crate) goal: Option<Goal>,
    /// The text of a policy; the node's when absent.
    pub(crate) policy: Option<String>,
    /// Whether guests' pages are looked at first where that was not done lately, which takes its time.
    pub(crate) survey: bool,
}

/// The largest plan that is taken, in bytes of JSON.
pub(crate) const PLAN_BYTES_MAX: usize = 4 << 20;

/// `POST /v1/density/runs`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RunRequest {
    /// What for; the policy's goal when absent.
    pub(crate) goal: Option<Goal>,
    /// Nothing is done that is not in this plan.
    pub(crate) plan: Option<Plan>,
}

/// The answer to `POST /v1/density/runs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RunStarted {
    /// The run, for `GET /v1/density/runs/ID`.
    pub(crate) run: RunId,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RunEnd {
    /// There is nothing left to do for its goal.
    Reached,
    /// There is nothing more that can be done, and the goal is not reached.
    Exhausted,
    /// Its window is over.
    WindowOver,
    /// Somebody called it off.
    Cancelled,
    /// The host could not be looked at.
    Failed,
}

impl RunEnd {
    /// Whether it did what it could.
    pub(crate) fn is_success(self) -> bool {
        match self {
            Self::Reached | Self::Exhausted | Self::WindowOver => true,
            Self::Cancelled | Self::Failed => false,
        }
    }
}

impl fmt::Display for RunEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reached => "goal reached",
            Self::Exhausted => "nothing more to be had",
            Self::WindowOver => "window over",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        })
    }
}

/// What is kept of runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept;

impl Payloads for Kept {
    type Plan = Plan;
    type Action = Step;
    type Outcome = RunEnd;
}

/// A run as it is listed.
pub(crate) type RunSummary = Summary<RunEnd>;

/// `GET /v1/density/next`: what runs, and what comes then. Nobody looks at the host for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Agenda {
    /// The run under way.
    pub(crate) running: Option<RunId>,
    /// What is scheduled, the first first.
    pub(crate) next: Vec<NextRun>,
    /// Why lighter.toml as it is now does not hold.
    pub(crate) file_error: Option<String>,
}

/// A run that is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NextRun {
    /// When, in Unix seconds.
    pub(crate) at_unix_seconds: u64,
    /// The schedule.
    pub(crate) schedule: String,
    /// What it is for.
    pub(crate) goal: String,
}
