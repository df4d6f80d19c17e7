//! One run as it is kept, and as it is read again.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::schedule::Trigger;

/// The types of what is kept. Those that are read must understand what those of older versions
/// wrote; [`Json`] understands all.
pub trait Payloads {
    /// What a run means to do.
    type Plan: Serialize + DeserializeOwned;
    /// One thing that it does.
    type Action: Serialize + DeserializeOwned;
    /// How it ended.
    type Outcome: Serialize + DeserializeOwned;
}

/// Plans, actions and outcomes as JSON, whoever wrote them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Json;

impl Payloads for Json {
    type Plan = serde_json::Value;
    type Action = serde_json::Value;
    type Outcome = serde_json::Value;
}

/// The number of a run: the first is 1, and none is given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
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

/// An action of a run, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deed<A> {
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary<O> {
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
    pub outcome: Option<O>,
    /// What went wrong; the last ones of very many are left out.
    pub errors: Vec<String>,
}

/// A whole run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "P::Plan: Serialize, P::Action: Serialize, P::Outcome: Serialize",
    deserialize = "P::Plan: DeserializeOwned, P::Action: DeserializeOwned, P::Outcome: DeserializeOwned"
))]
pub struct Run<P: Payloads> {
    /// All but the plan and the actions.
    #[serde(flatten)]
    pub summary: Summary<P::Outcome>,
    /// What it meant to do.
    pub plan: P::Plan,
    /// What it has done, in order.
    pub deeds: Vec<Deed<P::Action>>,
}

/// Some runs, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listing<O> {
    /// Those that can be read.
    pub runs: Vec<Summary<O>>,
    /// Those that cannot: another version wrote them, or their logs are damaged.
    pub unreadable: Vec<RunId>,
}

impl<O> Default for Listing<O> {
    fn default() -> Self {
        Self { runs: Vec::new(), unreadable: Vec::new() }
    }
}
