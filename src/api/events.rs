//! What happens to guests, as it is told: a line of JSON for each event.

use std::fmt;

use migrate::progress::Role;
use migrate::report::Outcome;
use migrate::{MigrationId, Phase, Report};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::names::GuestName;

/// Where a guest's process tells of its guest.
pub(crate) const EVENTS: &str = "/v1/guest/events";

/// The header of the answer with the number of the first event that is told, or will be.
pub(crate) const EVENTS_FROM: &str = "events-from";

/// `GET /v1/guest/events`: the query.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EventsRead {
    /// The number of the first event to be told; one that is still to come stands for the next one.
    pub(crate) from: u64,
    /// The process whose events `from` counts: another one tells all that it has. 0 is any.
    pub(crate) pid: u32,
}

/// Something that happened to a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Event {
    /// When, in milliseconds since 1970.
    pub(crate) time_unix_ms: u64,
    /// The guest's name on this host.
    pub(crate) guest: GuestName,
    /// The guest.
    pub(crate) uuid: Uuid,
    /// The guest's process.
    pub(crate) pid: u32,
    /// Its place among the events of that process, from 0. Where numbers are missing, the reader
    /// was too slow: a process keeps its last 256 events.
    pub(crate) number: u64,
    /// What happened.
    #[serde(flatten)]
    pub(crate) what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum What {
    /// It runs here, started, restored or arrived.
    Started,
    /// It is not here any more.
    Stopped {
        /// The end of the sentence "web-1 ...".
        reason: String,
    },
    /// Its vCPUs stand still.
    Paused,
    /// They run again.
    Resumed,
    /// It started over.
    Reset {
        /// Why.
        reason: String,
    },
    /// A migration from here or to here has begun.
    MigrationStarted {
        /// Which.
        migration_id: MigrationId,
        /// Which side of it this host is.
        role: Role,
    },
    /// It has come further.
    MigrationPhase {
        /// Which.
        migration_id: MigrationId,
        /// How far.
        phase: Phase,
    },
    /// It is over.
    MigrationEnded {
        /// Which.
        migration_id: MigrationId,
        /// Which side of it this host was.
        role: Role,
        /// How it ended.
        outcome: Outcome,
        /// Why it failed, if it did.
        error: Option<String>,
    },
    /// Nobody can tell at the moment which host has the guest.
    InDoubt {
        /// Why, and what to do.
        detail: String,
    },
}

impl What {
    /// The end that `report` tells of.
    pub(crate) fn ended(report: &Report) -> Self {
        Self::MigrationEnded {
            migration_id: report.migration,
            role: report.role,
            outcome: report.outcome,
            error: report.error.as_ref().map(|error| error.message.clone()),
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => write!(f, "started"),
            Self::Stopped { reason } => write!(f, "stopped: it {reason}"),
            Self::Paused => write!(f, "paused"),
            Self::Resumed => write!(f, "resumed"),
            Self::Reset { reason } => write!(f, "reset: {reason}"),
            Self::MigrationStarted { migration_id, .. } => {
                write!(f, "migration started: {migration_id}")
            }
            Self::MigrationPhase { phase, .. } => write!(f, "migration phase: {phase}"),
            Self::MigrationEnded { role, outcome, error, .. } => {
                let how = match (outcome, role) {
                    (Outcome::Migrated, Role::Source) => "the guest has left",
                    (Outcome::Migrated, Role::Destination) => "the guest has arrived",
                    (Outcome::StayedAtSource, _) => "the guest stayed at its source",
                    (Outcome::InDoubt, _) => "in doubt",
                    (Outcome::Lost, _) => "the guest is lost",
                };
                let error = error.as_ref().map(|error| format!(": {error}")).unwrap_or_default();
                write!(f, "migration ended: {how}{error}")
            }
            Self::InDoubt { detail } => write!(f, "in doubt: {detail}"),
        }
    }
}
