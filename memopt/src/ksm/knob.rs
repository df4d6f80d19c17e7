//! The settings of ksmd that a window changes, and what they can be.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::observe::{Advisor, KsmKnobs};

/// A file under `/sys/kernel/mm/ksm` that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Knob {
    /// 0 stops ksmd and keeps what is merged, 1 has it run. 2 (unmerge everything) is never
    /// written.
    Run,
    /// Pages that ksmd looks at before it sleeps, from 1. The kernel refuses it while its advisor
    /// decides.
    PagesToScan,
    /// How long ksmd sleeps then, in milliseconds.
    SleepMillisecs,
    /// Whether pages that were found unique are left out for a while: 0 or 1.
    SmartScan,
    /// Whether pages of zeros become the kernel's zero page: 0 or 1.
    UseZeroPages,
    /// Who decides on `pages_to_scan`: 0 for whoever writes it, 1 for the kernel (`scan-time`).
    AdvisorMode,
}

impl Knob {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Run,
        Self::PagesToScan,
        Self::SleepMillisecs,
        Self::SmartScan,
        Self::UseZeroPages,
        Self::AdvisorMode,
    ];

    /// The file's name.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Run => "run",
            Self::PagesToScan => "pages_to_scan",
            Self::SleepMillisecs => "sleep_millisecs",
            Self::SmartScan => "smart_scan",
            Self::UseZeroPages => "use_zero_pages",
            Self::AdvisorMode => "advisor_mode",
        }
    }

    /// Whether `value` may be written.
    #[must_use]
    pub const fn allows(self, value: u64) -> bool {
        match self {
            Self::Run | Self::SmartScan | Self::UseZeroPages | Self::AdvisorMode => value <= 1,
            Self::PagesToScan => value >= 1 && value <= u32::MAX as u64,
            Self::SleepMillisecs => value <= u32::MAX as u64,
        }
    }

    /// What is written for `value`.
    #[must_use]
    pub fn text(self, value: u64) -> String {
        match (self, value) {
            (Self::AdvisorMode, 0) => "none".to_owned(),
            (Self::AdvisorMode, _) => "scan-time".to_owned(),
            _ => value.to_string(),
        }
    }

    /// Its value among those that were read; `None` when this kernel does not have it.
    #[must_use]
    pub fn of(self, knobs: &KsmKnobs) -> Option<u64> {
        match self {
            Self::Run => Some(knobs.run),
            Self::PagesToScan => Some(knobs.pages_to_scan),
            Self::SleepMillisecs => Some(knobs.sleep_millisecs),
            Self::SmartScan => knobs.smart_scan,
            Self::UseZeroPages => knobs.use_zero_pages,
            Self::AdvisorMode => knobs.advisor.map(|advisor| match advisor {
                Advisor::Off => 0,
                Advisor::ScanTime => 1,
            }),
        }
    }
}

impl fmt::Display for Knob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.file())
    }
}

/// A setting to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// Of what.
    pub knob: Knob,
    /// To what.
    pub value: u64,
}

impl Set {
    /// `knob` to `value`.
    #[must_use]
    pub const fn new(knob: Knob, value: u64) -> Self {
        Self { knob, value }
    }
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.knob, self.knob.text(self.value))
    }
}

/// A setting that somebody else changed in between (ksmtuned, an operator): it is theirs from then
/// on, and not put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// Of what.
    pub knob: Knob,
    /// What it had been set to here.
    pub ours: u64,
    /// What was found.
    pub found: u64,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (knob, ours, found) =
            (self.knob, self.knob.text(self.ours), self.knob.text(self.found));
        write!(f, "somebody else set {knob} to {found} where this window had set {ours}")
    }
}
