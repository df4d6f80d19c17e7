//! The outcome of a step.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::Actuator;
use crate::step::{Action, Step};
use crate::units::{Share, Size};

/// A step that returned at least this share has delivered.
const DELIVERED: f64 = 0.8;
/// An actuator that repeatedly returns less than this share is benched.
const ENOUGH: f64 = 0.5;
/// A step that returned less than this share returned nothing.
const NOTHING: f64 = 0.1;

/// The outcome of a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The guest; absent for steps on the host.
    pub guest: Option<String>,
    /// The actuator that executed the step.
    pub actuator: Actuator,
    /// The action of the step.
    pub action: Action,
    /// Bytes expected to come back. Signed.
    pub expected_bytes: i64,
    /// Bytes that came back, separated as far as possible from other changes: the lowest value
    /// consistent with all measurements. Signed.
    pub returned_bytes: i64,
    /// Share of the expected effect that occurred; absent when it cannot be determined.
    pub share: Option<f64>,
    /// The verdict derived from `share`.
    pub verdict: Verdict,
    /// Explanation of the verdict, in one sentence.
    pub reason: String,
}

/// The assessment of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// It returned four fifths or more of what was expected.
    Delivered,
    /// It returned between a tenth and four fifths of what was expected.
    Partly,
    /// It returned less than a tenth of what was expected.
    Nothing,
    /// Too little was expected to be measured, or too much else changed.
    Unclear,
}

impl Verdict {
    /// Returns the verdict for a share of what was expected.
    pub(super) fn of(share: f64) -> Self {
        match share {
            share if share >= DELIVERED => Self::Delivered,
            share if share >= NOTHING => Self::Partly,
            _ => Self::Nothing,
        }
    }
}

impl Outcome {
    /// Returns the outcome of a step that could not be executed.
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

    /// Whether the outcome is good enough to keep using the actuator.
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
