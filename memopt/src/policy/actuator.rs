//! The mechanisms that reclaim or return memory.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::one_of;

/// A mechanism that reclaims or returns memory. Each one is benched separately when it fails.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Actuator {
    /// The guest's balloon.
    Balloon,
    /// KSM, the kernel's samepage merging, on single chunks.
    Merge,
    /// Huge pages on single chunks.
    Huge,
    /// Dropping pages that equal those of the guest's template.
    Template,
    /// Returning pages of zeros to the host.
    Zeros,
    /// The host's hugetlb pools.
    Pool,
}

/// The actuators that may be used.
pub type Actuators = BTreeSet<Actuator>;

impl Actuator {
    /// All actuators, in their order in files.
    pub const ALL: [Self; 6] =
        [Self::Balloon, Self::Merge, Self::Huge, Self::Template, Self::Zeros, Self::Pool];

    /// Returns the name used in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Balloon => "balloon",
            Self::Merge => "merge",
            Self::Huge => "huge",
            Self::Template => "template",
            Self::Zeros => "zeros",
            Self::Pool => "pool",
        }
    }
}

impl fmt::Display for Actuator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Actuator {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        one_of(text, &Self::ALL, Self::name)
    }
}
