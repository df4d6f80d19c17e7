//! The means by which memory is moved.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::one_of;

/// A means by which memory is moved. What is benched, is benched by it.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Actuator {
    /// The guest's balloon.
    Balloon,
    /// The kernel's samepage merging of single chunks.
    Merge,
    /// Huge pages of single chunks.
    Huge,
    /// Dropping pages that equal the guest's template.
    Template,
    /// Giving pages of zeros back.
    Zeros,
    /// The host's hugetlb pools.
    Pool,
}

/// Which of them may be used.
pub type Actuators = BTreeSet<Actuator>;

impl Actuator {
    /// All of them, in the order of their names in files.
    pub const ALL: [Self; 6] =
        [Self::Balloon, Self::Merge, Self::Huge, Self::Template, Self::Zeros, Self::Pool];

    /// As it is written in files.
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
