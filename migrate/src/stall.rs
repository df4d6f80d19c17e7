//! What a source does about a guest whose downtime does not fall below its limit.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What to do when a migration stalls: rounds no longer lower the expected downtime, and it is
/// still above its limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnStall {
    /// Send further rounds until the guest writes less or the migration times out.
    Wait,
    /// Slow the guest down, step by step, until rounds lower the downtime again.
    #[default]
    Throttle,
    /// Hand the guest over although that takes longer than the limit, when least is dirty.
    Force,
    /// Hand the guest over before its memory, which follows it while it runs at the destination; if
    /// one of the sides cannot do that, as [`OnStall::Wait`].
    Postcopy,
    /// Cancel the migration: the guest stays.
    Cancel,
}

impl OnStall {
    /// All values, in the order in which they are shown.
    pub const ALL: [Self; 5] =
        [Self::Throttle, Self::Force, Self::Postcopy, Self::Cancel, Self::Wait];

    /// Returns the name on the command line and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Throttle => "throttle",
            Self::Force => "force",
            Self::Postcopy => "postcopy",
            Self::Cancel => "cancel",
        }
    }
}

impl std::fmt::Display for OnStall {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// A stall of a migration, for its report.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Stall {
    /// What the source did about it; the last choice, if its operator changed that meanwhile.
    pub on_stall: OnStall,
    /// When it was noticed, counted from the start of the migration.
    pub noticed_seconds: f64,
    /// Number of the round after which it was noticed.
    pub round: u32,
    /// The most that the guest was slowed down: the largest share of the time that one of its vCPUs
    /// rested.
    pub throttle_percent_max: u8,
    /// How many of its vCPUs rested for a share of the time, at the end of the throttle.
    #[serde(default)]
    pub throttled_vcpus: u16,
    /// Whether the guest was handed over although the expected downtime was above its limit.
    pub forced: bool,
    /// Whether the guest was handed over before its memory.
    #[serde(default)]
    pub postcopy: bool,
}

impl Stall {
    /// Creates a stall about which nothing has been done yet.
    pub(crate) fn noticed(on_stall: OnStall, noticed_seconds: f64, round: u32) -> Self {
        Self {
            on_stall,
            noticed_seconds,
            round,
            throttle_percent_max: 0,
            throttled_vcpus: 0,
            forced: false,
            postcopy: false,
        }
    }

    /// Notes how much the guest is slowed down now.
    pub(crate) fn throttle(&mut self, percent: u8, vcpus: u16) {
        self.throttle_percent_max = self.throttle_percent_max.max(percent);
        self.throttled_vcpus = vcpus;
    }
}
