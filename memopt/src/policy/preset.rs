//! The presets that a policy starts from; their values are in `numbers.rs`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::units::one_of;

/// The defaults that a policy starts from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Preset {
    /// Only what guests do not notice: large reserves, small steps, no merging.
    Safe,
    /// The defaults of comparable systems, plus merging within the domains that the operator named.
    #[default]
    Balanced,
    /// As many guests as fit: small reserves, all actuators, all the time.
    Dense,
}

impl Preset {
    /// All presets, from the most careful to the densest.
    pub const ALL: [Self; 3] = [Self::Safe, Self::Balanced, Self::Dense];

    /// Returns the name used in files.
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
