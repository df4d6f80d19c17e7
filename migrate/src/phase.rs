//! The phases of a migration, in their order. Documents, logs, metrics and errors use these names.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The phase of a migration.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// QUIC with mutual TLS is set up; version and features are agreed.
    Connect,
    /// The source describes the guest; the destination checks all of it, then builds it.
    Prepare,
    /// Rounds of dirty pages while the guest runs.
    Precopy,
    /// The guest is paused: the last pages and its state are sent.
    Switchover,
    /// Everything is sent: the source waits for the destination to be ready, or, if the commit is
    /// early, for the record of that.
    Ready,
    /// The source has the destination run the guest.
    Commit,
    /// The destination runs the guest; the source cleans up.
    Resume,
    /// The destination runs the guest and fetches the rest of its memory.
    Postcopy,
}

impl Phase {
    /// All phases, in their order.
    pub const ALL: [Self; 8] = [
        Self::Connect,
        Self::Prepare,
        Self::Precopy,
        Self::Switchover,
        Self::Ready,
        Self::Commit,
        Self::Resume,
        Self::Postcopy,
    ];

    /// Returns the name of the phase, which is also its metric label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Prepare => "prepare",
            Self::Precopy => "precopy",
            Self::Switchover => "switchover",
            Self::Ready => "ready",
            Self::Commit => "commit",
            Self::Resume => "resume",
            Self::Postcopy => "postcopy",
        }
    }
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The duration of one phase of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct PhaseTime {
    /// The phase.
    pub phase: Phase,
    /// How long it lasted.
    pub seconds: f64,
}
