//! The presets that a policy begins from; their numbers are in `numbers.rs`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::one_of;

/// What a policy begins from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Only what no guest notices: large reserves, small steps, no merging.
    Safe,
    /// What peers do by default, and merging within the domains that the operator named.
    #[default]
    Balanced,
    /// As many guests as fit: small reserves, everything allowed, all the time.
    Dense,
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Safe, Self::Balanced, Self::Dense];

    /// As it is written in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Safe => "safe",
            Self::Balanced => "balanced",
            Self::Dense => "dense",
        }
    }
}

impl fmt::Display for Preset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Preset {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        one_of(text, &Self::ALL, Self::name)
    }
}
