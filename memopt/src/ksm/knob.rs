//! The ksmd settings that a window changes, and their valid values.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::observe::{Advisor, KsmKnobs};

/// A file under `/sys/kernel/mm/ksm` that lighter writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Knob {
    /// 0 stops ksmd and keeps merged pages, 1 runs it. 2 (unmerge everything) is never written.
    Run,
    /// Pages that ksmd scans before it sleeps, from 1. The kernel refuses writes while its advisor
    /// is on.
    PagesToScan,
    /// How long ksmd sleeps between batches, in milliseconds.
    SleepMillisecs,
    /// Whether ksmd leaves pages that it found unique out of its next scans: 0 or 1.
    SmartScan,
    /// Whether ksmd merges pages of zeros with the kernel's zero page: 0 or 1.
    UseZeroPages,
    /// What sets `pages_to_scan`: 0 for user space (`none`), 1 for the kernel's advisor
    /// (`scan-time`).
    AdvisorMode,
}

impl Knob {
    /// Every file that a window may write.
    pub const ALL: [Self; 6] = [
        Self::Run,
        Self::PagesToScan,
        Self::SleepMillisecs,
        Self::SmartScan,
        Self::UseZeroPages,
        Self::AdvisorMode,
    ];

    /// Returns the name of the knob's file.
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

    /// Returns whether `value` may be written.
    #[must_use]
    pub const fn allows(self, value: u64) -> bool {
        match self {
            Self::Run | Self::SmartScan | Self::UseZeroPages | Self::AdvisorMode => value <= 1,
            Self::PagesToScan => value >= 1 && value <= u32::MAX as u64,
            Self::SleepMillisecs => value <= u32::MAX as u64,
        }
    }

    /// Returns the text that is written for `value`.
    #[must_use]
    pub fn text(self, value: u64) -> String {
        match (self, value) {
            (Self::AdvisorMode, 0) => "none".to_owned(),
            (Self::AdvisorMode, _) => "scan-time".to_owned(),
            _ => value.to_string(),
        }
    }

    /// Returns the knob's value in `knobs`; `None` if the kernel lacks the knob.
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

/// A knob and the value to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Set {
    /// The knob to write.
    pub knob: Knob,
    /// The value to write.
    pub value: u64,
}

impl Set {
    /// Creates the setting of `knob` to `value`; nothing is written yet.
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

/// A setting that another process (ksmtuned, an operator) changed after it was written here. It is
/// left alone from then on, and not restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Foreign {
    /// The changed knob.
    pub knob: Knob,
    /// The value that was written here.
    pub ours: u64,
    /// The value that was found.
    pub found: u64,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (knob, ours, found) =
            (self.knob, self.knob.text(self.ours), self.knob.text(self.found));
        write!(f, "another program set {knob} to {found} where this window had set {ours}")
    }
}
