//! The goal of a plan: how much memory to take from guests.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::situation::Host;
use crate::units::{Share, Size, parse_share, parse_size, shortened, signed};

/// How much memory a run should return to the host. The goal bounds only what is *taken*: guests in
/// pressure, and a host short of memory, get what they need whatever the goal says.
///
/// Written as `free 8GiB`, `keep 15% headroom` or `max density`, in policies, schedules and JSON
/// alike.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
pub enum Goal {
    /// Return this many bytes, however many are free already. [`Goal::less`] subtracts what has
    /// been verified.
    Free(u64),
    /// Keep this share of the host's memory available, from 0 to 1.
    Keep(f64),
    /// Take all memory that no guest needs.
    MaxDensity,
}

/// Why a text is not a valid goal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GoalError {
    /// The text has none of the three forms.
    #[error("`{text}` is not a goal: write `free 8GiB`, `keep 15% headroom` or `max density`")]
    Unknown {
        /// The beginning of the text.
        text: String,
    },
    /// The amount is not a valid size or share.
    #[error("{cause}")]
    Amount {
        /// What is wrong with the amount.
        cause: String,
    },
    /// The goal asks for nothing, or for almost all memory.
    #[error("`{text}` cannot be reached: {cause}")]
    Impossible {
        /// The beginning of the text.
        text: String,
        /// Why the goal cannot be reached.
        cause: &'static str,
    },
}

impl Goal {
    /// Returns the bytes that `host` still lacks; `None` if the goal has no such limit.
    #[must_use]
    pub fn lacking_bytes(self, host: &Host) -> Option<u64> {
        match self {
            Self::Free(bytes) => Some(bytes),
            Self::Keep(share) => {
                let wanted = (host.total_bytes as f64 * share) as u64;
                Some(wanted.saturating_sub(host.available_bytes))
            }
            Self::MaxDensity => None,
        }
    }

    /// Returns the rest of the goal once `returned_bytes` have been verified. Only a goal in bytes
    /// shrinks; a negative number (memory given to guests) makes it grow.
    #[must_use]
    pub fn less(self, returned_bytes: i64) -> Self {
        match self {
            Self::Free(bytes) => {
                let left = signed(bytes).saturating_sub(returned_bytes);
                Self::Free(u64::try_from(left).unwrap_or(0))
            }
            Self::Keep(_) | Self::MaxDensity => self,
        }
    }
}

impl FromStr for Goal {
    type Err = GoalError;

    fn from_str(text: &str) -> Result<Self, GoalError> {
        let amount = |cause| GoalError::Amount { cause };
        let impossible = |cause| GoalError::Impossible { text: shortened(text), cause };
        let mut words = text.split_whitespace();
        let words: [Option<&str>; 4] = std::array::from_fn(|_| words.next());
        match words {
            [Some("free"), Some(size), None, None] => match parse_size(size).map_err(amount)? {
                0 => Err(impossible("it frees nothing")),
                bytes => Ok(Self::Free(bytes)),
            },
            // `free 8 GiB`
            [Some("free"), Some(number), Some(unit), None] => {
                format!("free {number}{unit}").parse()
            }
            [Some("keep"), Some(share), Some("headroom"), None] => {
                match parse_share(share).map_err(amount)? {
                    share if share <= 0.95 => Ok(Self::Keep(share)),
                    _ => Err(impossible("more than 95% cannot be kept free")),
                }
            }
            [Some("max"), Some("density"), None, None] => Ok(Self::MaxDensity),
            _ => Err(GoalError::Unknown { text: shortened(text) }),
        }
    }
}

impl TryFrom<String> for Goal {
    type Error = GoalError;

    fn try_from(text: String) -> Result<Self, GoalError> {
        // A goal whose bytes have all been verified; `parse` refuses 0.
        if text == "free 0 B" { Ok(Self::Free(0)) } else { text.parse() }
    }
}

impl From<Goal> for String {
    fn from(goal: Goal) -> Self {
        match goal {
            Goal::Free(0) => "free 0 B".to_owned(),
            // Exact to the byte; `Display` rounds.
            Goal::Free(bytes) => format!("free {bytes}"),
            Goal::Keep(share) => format!("keep {}% headroom", share * 100.0),
            Goal::MaxDensity => "max density".to_owned(),
        }
    }
}

impl fmt::Display for Goal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Free(bytes) => write!(f, "free {}", Size::of(*bytes)),
            Self::Keep(share) => write!(f, "keep {} headroom", Share(*share)),
            Self::MaxDensity => write!(f, "max density"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    #[test]
    fn the_three_goals_are_read_and_shown() {
        for (text, goal) in [
            ("free 8GiB", Goal::Free(8 * GIB)),
            ("free 8 GiB", Goal::Free(8 * GIB)),
            ("keep 15% headroom", Goal::Keep(0.15)),
            ("max density", Goal::MaxDensity),
        ] {
            assert_eq!(text.parse(), Ok(goal));
            let json = serde_json::to_string(&goal).unwrap();
            assert_eq!(serde_json::from_str::<Goal>(&json).unwrap(), goal, "{json}");
        }
        assert_eq!(Goal::Free(8 * GIB).to_string(), "free 8 GiB");
        assert_eq!(Goal::Keep(0.15).to_string(), "keep 15% headroom");
    }

    #[test]
    fn an_invalid_goal_is_refused() {
        let refused = [
            "",
            "free",
            "free lots",
            "free 0",
            "keep 15%",
            "keep 15 headroom",
            "max",
            "density max",
            "keep 99% headroom",
            "max density now",
            "free 8 GiB please",
        ];
        for text in refused {
            assert!(text.parse::<Goal>().is_err(), "{text}");
        }
        let said = "liberate 8GiB".parse::<Goal>().unwrap_err().to_string();
        assert!(said.contains("`liberate 8GiB`") && said.contains("max density"), "{said}");
    }

    #[test]
    fn verified_bytes_are_taken_off() {
        assert_eq!(Goal::Free(10).less(4), Goal::Free(6));
        assert_eq!(Goal::Free(10).less(-4), Goal::Free(14), "memory was given");
        assert_eq!(Goal::Free(10).less(i64::MAX), Goal::Free(0));
        assert_eq!(Goal::Free(u64::MAX).less(i64::MIN), Goal::Free(i64::MAX as u64));
        assert_eq!(Goal::Keep(0.2).less(4), Goal::Keep(0.2));
        let done = serde_json::to_string(&Goal::Free(0)).unwrap();
        assert_eq!(serde_json::from_str::<Goal>(&done).unwrap(), Goal::Free(0));
    }
}
