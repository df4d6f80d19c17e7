//! The parts of a plan.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::missed::Missed;
use super::skip_reason::{Advice, SkipReason};
use crate::ledger::Level;
use crate::policy::{Actuator, Goal};
use crate::situation::Hindrance;
use crate::step::{Action, Step};

/// The steps to execute now, with their reasons, and the reasons why others are skipped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// Time of the plan in seconds since the Unix epoch, for display.
    pub unix_seconds: u64,
    /// Time of the plan as the host's uptime.
    pub uptime: Duration,
    /// The goal of the plan.
    pub goal: Goal,
    /// The host's memory shortage level.
    pub level: Level,
    /// Bytes that the goal and the level ask for; absent when they ask for as much as possible.
    pub wanted_bytes: Option<u64>,
    /// Total bytes that the steps are expected to return to the host. Signed: guests may get more
    /// than others give.
    pub expected_bytes: i64,
    /// Bytes that later rounds could return if everything goes as expected: balloons inflate in
    /// steps.
    pub later_bytes: u64,
    /// The part of the wanted bytes that will not come back; absent when all will, or when as much
    /// as possible is wanted.
    #[serde(default)]
    pub missed: Option<Missed>,
    /// Guest memory that a survey would read, without which merging cannot be estimated; 0 if a
    /// survey would add nothing to the estimate.
    #[serde(default)]
    pub survey_bytes: u64,
    /// The merge domain that uses the kernel's merging; absent when there is none.
    pub domain: Option<DomainChoice>,
    /// The steps, in order of execution.
    pub steps: Vec<Step>,
    /// Guests and actuators that were skipped, with the reasons, sorted by guest name.
    pub skipped: Vec<Skipped>,
    /// Actions that only the operator can take.
    pub advice: Vec<Advice>,
}

impl Plan {
    /// Returns a plan with `step` alone, in the form in which it is recorded.
    #[must_use]
    pub fn only(&self, step: &Step) -> Self {
        Self {
            unix_seconds: self.unix_seconds,
            uptime: self.uptime,
            goal: self.goal,
            level: self.level,
            wanted_bytes: self.wanted_bytes,
            expected_bytes: step.expected_bytes,
            later_bytes: 0,
            missed: None,
            survey_bytes: 0,
            domain: None,
            steps: vec![step.clone()],
            skipped: Vec::new(),
            advice: Vec::new(),
        }
    }

    /// Whether a guest is skipped only until its balloon reaches its target. The wait ends: a
    /// balloon that does not move is given up.
    #[must_use]
    pub fn waits_for_balloons(&self) -> bool {
        self.skipped.iter().any(|skipped| skipped.skip_reason == SkipReason::Settling)
    }

    /// Whether a guest is skipped only because its process did not answer in time; it may answer
    /// the next time.
    #[must_use]
    pub fn waits_for_answers(&self) -> bool {
        let silent = SkipReason::Hindered { by: Hindrance::Unreachable };
        self.skipped.iter().any(|skipped| skipped.skip_reason == silent)
    }
}

/// The reason why a guest, or one actuator for it, is skipped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// Name of the guest.
    pub guest: String,
    /// The actuator that is skipped; absent when all are.
    pub actuator: Option<Actuator>,
    /// The reason; histories that an earlier build wrote call it `because`.
    #[serde(rename = "reason", alias = "because")]
    pub skip_reason: SkipReason,
}

/// The choice of the merge domain that uses the kernel's merging. There can be only one, because
/// the kernel has no notion of domains: it merges everything mergeable with each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainChoice {
    /// Name of the domain.
    pub domain: String,
    /// Bytes that it saves or could save.
    pub potential_bytes: i64,
    /// Reason for the choice, in one sentence.
    pub reason: String,
    /// The other domains, which only share pages with their templates, and the bytes that each
    /// could save.
    pub others: Vec<(String, i64)>,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.actuator {
            Some(actuator) => write!(f, "{}: no {actuator}: {}", self.guest, self.skip_reason),
            None => write!(f, "{}: {}", self.guest, self.skip_reason),
        }
    }
}

/// A plan under construction.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) steps: Vec<Step>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) advice: Vec<Advice>,
    pub(super) later_bytes: u64,
    /// Bytes that steps of earlier plans are still expected to return.
    pub(super) under_way_bytes: u64,
}

impl Draft {
    pub(super) fn step(
        &mut self,
        action: Action,
        expected_bytes: i64,
        cpu: Duration,
        reason: String,
    ) {
        self.steps.push(Step { action, expected_bytes, cpu, reason, pid: None });
    }

    pub(super) fn skip(&mut self, guest: &str, actuator: Actuator, skip_reason: SkipReason) {
        let (guest, actuator) = (guest.to_owned(), Some(actuator));
        self.skipped.push(Skipped { guest, actuator, skip_reason });
    }
}
