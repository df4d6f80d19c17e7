//! What travels over the node's API about memory optimization.

use std::fmt;

use memopt::history::{Payloads, RunId, Summary};
use memopt::ledger::Level;
use memopt::plan::{Plan, Step};
use memopt::policy::Goal;
use memopt::situation::Situation;
use serde::{Deserialize, Serialize};

/// `GET /v1/density`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct DensityStatus {
    /// The host and its guests now.
    pub(crate) situation: Situation,
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

/// `GET /v1/density/next`: a run that is due.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NextRun {
    /// When, in Unix seconds.
    pub(crate) at_unix_seconds: u64,
    /// The schedule.
    pub(crate) schedule: String,
    /// What it is for.
    pub(crate) goal: String,
}
