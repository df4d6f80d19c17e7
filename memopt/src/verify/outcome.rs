//! What came of a step.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::Actuator;
use crate::step::{Action, Step};
use crate::units::{Share, Size};

/// From this share on, a step has delivered.
const DELIVERED: f64 = 0.8;
/// An actuator that brings less than this share, several times in a row, is benched.
const ENOUGH: f64 = 0.5;
/// Below this share, nothing came of it.
const NOTHING: f64 = 0.1;

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The guest; absent for what was done to the host.
    pub guest: Option<String>,
    /// By what.
    pub actuator: Actuator,
    /// What was done.
    pub action: Action,
    /// What was expected to come back. Signed.
    pub expected_bytes: i64,
    /// What came back, as far as it can be told from what moved otherwise: the least that agrees
    /// with all measurements. Signed.
    pub returned_bytes: i64,
    /// The share of what was expected to happen that did; absent when that cannot be told.
    pub share: Option<f64>,
    /// What to think of it.
    pub verdict: Verdict,
    /// In one sentence.
    pub reason: String,
}

/// What to think of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It brought what was expected: four fifths of it or more.
    Delivered,
    /// It brought some of it.
    Partly,
    /// It brought nothing, or less than a tenth.
    Nothing,
    /// Too little was expected, or too much else moved.
    Unclear,
}

impl Verdict {
    /// Of the share of what was expected.
    pub(super) fn of(share: f64) -> Self {
        match share {
            share if share >= DELIVERED => Self::Delivered,
            share if share >= NOTHING => Self::Partly,
            _ => Self::Nothing,
        }
    }
}

impl Outcome {
    /// What comes of a step that could not be done at all.
    #[must_use]
    pub fn failed(step: &Step, reason: String) -> Self {
        Self {
            guest: step.action.guest().map(str::to_owned),
            actuator: step.action.actuator(),
            action: step.action.clone(),
            expected_bytes: step.expected_bytes,
            returned_bytes: 0,
            share: Some(0.0),
            verdict: Verdict::Nothing,
            reason,
        }
    }

    /// Whether it brought as much as is asked of an actuator that is to go on.
    #[must_use]
    pub fn is_enough(&self) -> bool {
        self.share.is_none_or(|share| share >= ENOUGH)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delivered => "delivered",
            Self::Partly => "partly",
            Self::Nothing => "nothing",
            Self::Unclear => "unclear",
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (expected, returned) = (Size(self.expected_bytes), Size(self.returned_bytes));
        write!(f, "{}: {returned} of {expected}, {}", self.action, self.verdict)?;
        if let Some(share) = self.share {
            write!(f, " ({})", Share(share.clamp(-9.99, 9.99)))?;
        }
        write!(f, ": {}", self.reason)
    }
}
