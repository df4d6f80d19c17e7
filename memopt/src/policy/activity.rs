//! How it is told which of a guest's pages are written.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::one_of;

/// How it is told which of a guest's pages are written. QEMU's `calc-dirty-rate` has the same
/// choice: `page-sampling`, and `dirty-bitmap` or `dirty-ring`, between which a guest chooses here
/// at its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Activity {
    /// A few pages of each 2 MiB are looked at twice: the guest notices nothing, and what it writes
    /// in few places may be missed.
    #[default]
    PageSampling,
    /// KVM logs each page that is written in between: exact, and each first write to a page costs
    /// the guest a fault meanwhile. Only of guests that lighter runs.
    DirtyLog,
}

impl Activity {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::PageSampling, Self::DirtyLog];

    /// As it is written in files.
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
