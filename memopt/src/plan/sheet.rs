//! What a plan consists of.

use std::fmt;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::because::{Advice, Because};
use crate::ledger::Level;
use crate::policy::{Actuator, Goal};
use crate::situation::Hindrance;
use crate::step::{Action, Step};

/// What is to be done now, why, and why the rest is not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Plan {
    /// When, for people: seconds since the Unix epoch.
    pub unix_seconds: u64,
    /// When, as the host's uptime.
    pub uptime: Duration,
    /// What it is for.
    pub goal: Goal,
    /// How short the host is.
    pub level: Level,
    /// What the goal and the level ask for; absent when they take whatever there is.
    pub wanted_bytes: Option<u64>,
    /// What the steps are expected to give back to the host, in all. Signed: guests may get more
    /// than others give.
    pub expected_bytes: i64,
    /// What could come in later rounds, when all goes as expected: balloons shrink by steps.
    pub later_bytes: u64,
    /// Which merge domain uses the kernel's merging; absent when none does.
    pub domain: Option<DomainChoice>,
    /// What is to be done, in this order.
    pub steps: Vec<Step>,
    /// Why guests get nothing, by their names.
    pub skipped: Vec<Skipped>,
    /// What only the operator can do.
    pub advice: Vec<Advice>,
}

impl Plan {
    /// The plan of which `step` alone is done, as it is recorded.
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
            domain: None,
            steps: vec![step.clone()],
            skipped: Vec::new(),
            advice: Vec::new(),
        }
    }

    /// Whether guests are left alone only until their balloons have got where they are going. One
    /// that does not move is given up.
    #[must_use]
    pub fn waits_for_balloons(&self) -> bool {
        self.skipped.iter().any(|skipped| skipped.because == Because::Settling)
    }

    /// Whether guests are left alone only because their processes did not answer in time: they may
    /// the next time.
    #[must_use]
    pub fn waits_for_answers(&self) -> bool {
        let silent = Because::Hindered { by: Hindrance::Unreachable };
        self.skipped.iter().any(|skipped| skipped.because == silent)
    }
}

/// Why nothing is done, to a guest or by one of the actuators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Skipped {
    /// The guest.
    pub guest: String,
    /// By what nothing is done; absent when by nothing at all.
    pub actuator: Option<Actuator>,
    /// Why.
    pub because: Because,
}

/// Which merge domain uses the kernel's merging, which knows no domains: all that it may merge, it
/// merges with each other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DomainChoice {
    /// Its name.
    pub domain: String,
    /// What it has and could have.
    pub potential_bytes: i64,
    /// Why this one, in one sentence.
    pub reason: String,
    /// The others, which share with their templates alone, and what each could have.
    pub others: Vec<(String, i64)>,
}

impl fmt::Display for Skipped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.actuator {
            Some(actuator) => write!(f, "{}: no {actuator}: {}", self.guest, self.because),
            None => write!(f, "{}: {}", self.guest, self.because),
        }
    }
}

/// A plan while it is made.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) steps: Vec<Step>,
    pub(super) skipped: Vec<Skipped>,
    pub(super) advice: Vec<Advice>,
    pub(super) later_bytes: u64,
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

    pub(super) fn skip(&mut self, guest: &str, actuator: Actuator, because: Because) {
        let (guest, actuator) = (guest.to_owned(), Some(actuator));
        self.skipped.push(Skipped { guest, actuator, because });
    }
}
