//! Events of guests in the API: a line of JSON for each.

use std::fmt;
use std::net::IpAddr;

use migrate::decisions::DecidedAt;
use migrate::progress::Role;
use migrate::report::Outcome;
use migrate::{MigrationId, Phase, Report};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::decisions;
use crate::names::GuestName;

/// The route on which a guest's process streams its events.
pub(crate) const EVENTS: &str = "/v1/guest/events";

/// Response header with the number of the first event in the stream.
pub(crate) const EVENTS_FROM: &str = "events-from";

/// `GET /v1/guest/events`: the query.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EventsRead {
    /// Number of the first event to send; a number that is not reached yet means the next event.
    pub(crate) from: u64,
    /// PID of the process whose events `from` counts; a process with another PID sends all events
    /// that it keeps. 0 matches any process.
    pub(crate) pid: u32,
}

/// Something that happened to a guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Event {
    /// Time of the event, in milliseconds since 1970.
    pub(crate) time_unix_ms: u64,
    /// The guest's name on this host.
    pub(crate) guest: GuestName,
    /// Identity of the guest, the same on every host.
    pub(crate) uuid: Uuid,
    /// The guest's process.
    pub(crate) pid: u32,
    /// Number of the event in that process, from 0. A gap means that the reader was too slow: a
    /// process keeps its last 256 events.
    pub(crate) number: u64,
    /// What happened.
    #[serde(flatten)]
    pub(crate) what: What,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum What {
    /// The guest runs on this host: it was started, restored, or has arrived.
    Started,
    /// The guest is no longer on this host.
    Stopped {
        /// Completes the sentence "web-1 ...", such as "powered off".
        reason: String,
        /// Whether it ended by an error: it crashed, or its process died.
        #[serde(default)]
        failed: bool,
    },
    /// The guest's vCPUs are stopped.
    Paused,
    /// The guest's vCPUs run again.
    Resumed,
    /// The guest was reset.
    Reset {
        /// Why it was reset.
        reason: String,
    },
    /// The guest's firmware has found nothing to boot, and waits at its console.
    NothingToBoot,
    /// A device was attached to the guest.
    DeviceAttached {
        /// The device: "disk" and its path, or "network device" and its address.
        device: String,
        /// Where the guest finds it: its address on the PCI bus, as lspci has it.
        address: String,
    },
    /// The guest has let go of a device, which is detached from it.
    DeviceDetached {
        /// The device, as when it was attached.
        device: String,
        /// Why the last of what the guest has written to it may be lost.
        error: Option<String>,
    },
    /// A migration from or to this host has started.
    MigrationStarted {
        /// Id of the migration.
        migration_id: MigrationId,
        /// Which side of the migration this host is.
        role: Role,
    },
    /// The migration has entered another phase.
    MigrationPhase {
        /// Id of the migration.
        migration_id: MigrationId,
        /// The phase that it is in now.
        phase: Phase,
    },
    /// The source of the migration, on this host, has decided something on its way: the migration
    /// stalls, and what is done about that; or its operator has changed a limit.
    MigrationDecided {
        /// Id of the migration.
        migration_id: MigrationId,
        /// What it has decided, and when.
        #[serde(flatten)]
        decided: DecidedAt,
    },
    /// One of several links of a migration from this host is lost; the others go on.
    LinkLost {
        /// Id of the migration.
        migration_id: MigrationId,
        /// Address of the destination on this link.
        address: IpAddr,
        /// Why it is lost.
        detail: String,
    },
    /// The guest, which runs here before its memory, has waited for a page for a long time: its
    /// source does not send it, or is out of reach.
    WaitsForMemory {
        /// Id of the migration.
        migration_id: MigrationId,
        /// How long it has waited by now.
        seconds: f64,
    },
    /// The migration is over.
    MigrationEnded {
        /// Id of the migration.
        migration_id: MigrationId,
        /// Which side of the migration this host was.
        role: Role,
        /// How it ended.
        outcome: Outcome,
        /// Why it failed, if it did.
        error: Option<String>,
    },
    /// It cannot be determined at the moment which host has the guest.
    InDoubt {
        /// Why, and what to do.
        detail: String,
    },
}

impl What {
    /// The end of the migration in `report`.
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
            Self::Stopped { reason, .. } => write!(f, "stopped: it {reason}"),
            Self::Paused => write!(f, "paused"),
            Self::Resumed => write!(f, "resumed"),
            Self::Reset { reason } => write!(f, "reset: {reason}"),
            Self::NothingToBoot => {
                write!(f, "nothing to boot: its firmware waits at its console")
            }
            Self::DeviceAttached { device, address } => write!(f, "{device} attached at {address}"),
            Self::DeviceDetached { device, error: None } => write!(f, "{device} detached"),
            Self::DeviceDetached { device, error: Some(error) } => {
                write!(f, "{device} detached, and its last writes may be lost: {error}")
            }
            Self::MigrationStarted { migration_id, .. } => {
                write!(f, "migration started: {migration_id}")
            }
            Self::MigrationPhase { phase, .. } => write!(f, "migration phase: {phase}"),
            Self::MigrationDecided { decided, .. } => {
                write!(f, "migration: {}", decisions::text(&decided.what))
            }
            Self::LinkLost { address, detail, .. } => {
                write!(f, "link {address} of the migration is lost: {detail}")
            }
            Self::WaitsForMemory { seconds, .. } => {
                write!(f, "waits for memory that is still at its source, for {seconds:.1} s by now")
            }
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
