//! One run as it is kept, and as it is read again.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::plan::Plan;
use crate::schedule::Trigger;
use crate::step::Step;

/// The number of a run: the first is 1, and none is given twice.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl RunId {
    /// That of runs of which no history is kept. Others are counted from 1.
    pub const UNRECORDED: Self = Self(0);
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far a run has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// There is a plan.
    Planned,
    /// Its actions are being carried out.
    Acting,
    /// What came back of them is being found out.
    Verifying,
    /// It has come to its end.
    Done,
    /// Whoever carried it out died before it had come to its end.
    Interrupted,
}

impl State {
    /// Whether nothing more becomes of it.
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

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum RunEnd {
    /// There is nothing left to do for its goal.
    Reached,
    /// There is nothing more that can be done, and the goal is not reached.
    Exhausted,
    /// Its window is over.
    WindowOver,
    /// It was cancelled.
    Cancelled,
    /// The host could not be inspected.
    Failed,
}

impl RunEnd {
    /// Whether it did what it could.
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
            Self::Exhausted => "nothing more to be had",
            Self::WindowOver => "window over",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        })
    }
}

/// An action of a run, a [`Step`] or what is kept of one, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Deed<A = Step> {
    /// What was done.
    pub action: A,
    /// What it was expected to give back to the host, in bytes; negative when it takes.
    pub expected_bytes: i64,
    /// What came back; absent when that was never found out.
    pub verified_bytes: Option<i64>,
    /// Why it did not work.
    pub error: Option<String>,
}

/// What was found out about an action.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The action's place in its run, from 0.
    pub index: u32,
    /// What came back, in bytes; absent when that cannot be said.
    pub verified_bytes: Option<i64>,
    /// Why it did not work.
    pub error: Option<String>,
}

impl Found {
    /// The action at `index` did not work.
    pub fn failed(index: u32, error: &str) -> Self {
        Self { index, verified_bytes: None, error: Some(error.to_owned()) }
    }
}

/// A run without its plan and its actions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Summary {
    /// Its number.
    pub id: RunId,
    /// What it was begun by.
    pub trigger: Trigger,
    /// When it began, in Unix seconds.
    pub started: u64,
    /// When it ended; absent when it has not, or was interrupted.
    pub ended: Option<u64>,
    /// How far it has come.
    pub state: State,
    /// Its actions so far.
    pub actions: u32,
    /// What they were expected to give back, in bytes.
    pub expected_bytes: i64,
    /// What came back of them.
    pub verified_bytes: i64,
    /// How it ended, when it has.
    pub outcome: Option<RunEnd>,
    /// What went wrong; the last ones of very many are left out.
    pub errors: Vec<String>,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Run {
    /// All but the plan and the actions.
    #[serde(flatten)]
    pub summary: Summary,
    /// What it meant to do.
    pub plan: Plan,
    /// What it has done, in order.
    pub deeds: Vec<Deed>,
}

/// Some runs, the newest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Listing {
    /// Those that can be read.
    pub runs: Vec<Summary>,
    /// Those that cannot: another version wrote them, or their logs are damaged.
    pub unreadable: Vec<RunId>,
}
