//! One run, in the forms in which it is recorded and read.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::schedule::Trigger;
use crate::step::Step;

/// Number of a run: the first is 1, and no number is used twice.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl RunId {
    /// The number of runs that are not recorded. Recorded runs are counted from 1.
    pub const UNRECORDED: Self = Self(0);
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The progress of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// The run has a plan.
    Planned,
    /// Its actions are being executed.
    Acting,
    /// The results of its actions are being checked.
    Verifying,
    /// The run has ended.
    Done,
    /// The node died, or lost the history, before the run ended.
    Interrupted,
}

impl State {
    /// Whether the run can no longer change.
    #[must_use]
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::Interrupted)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Planned => "planned",
            Self::Acting => "acting",
            Self::Verifying => "verifying",
            Self::Done => "done",
            Self::Interrupted => "interrupted",
        })
    }
}

/// The reason why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunEnd {
    /// The goal is reached: nothing is left to do.
    Reached,
    /// Nothing more can be done, and the goal is not reached.
    Exhausted,
    /// The window of the run is over.
    WindowOver,
    /// The run was cancelled.
    Cancelled,
    /// The host could not be inspected.
    Failed,
}

impl RunEnd {
    /// Whether the run did all it could.
    pub fn is_success(self) -> bool {
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
            Self::Exhausted => "nothing more to gain",
            Self::WindowOver => "window over",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        })
    }
}

/// An action of a run and its result. `A` is a [`Step`], or its recorded form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunAction<A = Step> {
    /// The executed action.
    pub action: A,
    /// Bytes that the host was expected to get back; negative when the action takes memory.
    pub expected_bytes: i64,
    /// Bytes that the host got back; absent when this was never determined.
    pub verified_bytes: Option<i64>,
    /// Why the action failed; absent if it did not.
    pub error: Option<String>,
}

/// The result of an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepResult {
    /// Index of the action in its run, from 0.
    pub index: u32,
    /// Bytes that the host got back; absent when this cannot be determined.
    pub verified_bytes: Option<i64>,
    /// Why the action failed; absent if it did not.
    pub error: Option<String>,
}

impl StepResult {
    /// The result that the action at `index` failed.
    pub fn failed(index: u32, error: &str) -> Self {
        Self { index, verified_bytes: None, error: Some(error.to_owned()) }
    }
}

/// A run without its plan and its actions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Number of the run.
    pub id: RunId,
    /// What started the run.
    pub trigger: Trigger,
    /// Start of the run, in Unix seconds.
    pub started: u64,
    /// End of the run, in Unix seconds; absent when it has not ended, or was interrupted.
    pub ended: Option<u64>,
    /// Progress of the run.
    pub state: State,
    /// Number of actions so far.
    pub actions: u32,
    /// Total bytes that the host was expected to get back.
    pub expected_bytes: i64,
    /// Total bytes that the host got back.
    pub verified_bytes: i64,
    /// The reason why the run ended, if it has.
    pub outcome: Option<RunEnd>,
    /// Errors of the run; the last ones are dropped when there are too many.
    pub errors: Vec<String>,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// Everything except the plan and the actions.
    #[serde(flatten)]
    pub summary: Summary,
    /// The plan of the run.
    pub plan: Plan,
    /// The executed steps, in order.
    pub steps: Vec<RunAction>,
}

/// A list of runs, newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listing {
    /// Runs that can be read.
    pub runs: Vec<Summary>,
    /// Runs that cannot be read: another version wrote them, or their logs are damaged.
    pub unreadable: Vec<RunId>,
}
