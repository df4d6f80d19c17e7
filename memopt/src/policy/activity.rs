//! How lighter detects which of a guest's pages are written.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::one_of;

/// How lighter detects which of a guest's pages are written. QEMU's `calc-dirty-rate` offers the
/// same choice: `page-sampling`, or `dirty-bitmap` and `dirty-ring`, between which a guest of
/// lighter chooses when it starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// Reads a few pages of each 2 MiB twice and compares them. The guest is not affected, but
    /// writes to only a few places may be missed.
    #[default]
    PageSampling,
    /// KVM logs each page that the guest writes between two scans. This is exact, but the first
    /// write to each page costs the guest a fault. Only for guests that lighter runs.
    DirtyLog,
}

impl Activity {
    /// All ways to find out what is written, the default first.
    pub const ALL: [Self; 2] = [Self::PageSampling, Self::DirtyLog];

    /// Returns the name used in files.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PageSampling => "page-sampling",
            Self::DirtyLog => "dirty-log",
        }
    }
}

impl fmt::Display for Activity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Activity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        one_of(text, &Self::ALL, Self::name)
    }
}
