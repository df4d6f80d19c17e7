//! Durable records: who may run the guest after a crash.
//!
//! Each side keeps one small file for each migration, in the node's state folder and not in the
//! guest's process. It is on disk *before* the message that depends on it is sent:
//!
//! | source's record | destination's record | meaning |
//! |---|---|---|
//! | undecided | loading | the source runs the guest; the destination discards |
//! | undecided | ready | the destination waits to be told; it never starts on its own |
//! | committed | ready | the source never runs the guest again; the destination will be told to |
//! | committed | taking | the guest is the destination's, which is about to let it run |
//! | committed | running | the destination runs it; the source has yet to hear so |
//! | done | running | it is over |
//! | aborted | discarded | it is over |

mod file;
mod slot;
mod store;

use std::net::SocketAddr;
use std::num::NonZeroU16;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::progress::Role;
use crate::protocol::{Decision, MigrationId, Token};
use crate::report::Report;

pub use file::{RecordError, RecordFile};
pub(crate) use slot::RecordSlot;
pub use store::RecordStore;
pub(crate) use store::unix_ms;

/// What the source has decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// Nothing yet: the guest is the source's.
    Undecided,
    /// The guest is the destination's.
    Committed,
    /// The destination has said that it runs the guest: over.
    Done,
    /// The destination has said that its copy is gone, or never had one to keep: over.
    Aborted,
}

impl SourceState {
    /// What the destination must still be told, by whoever finds this record without its process;
    /// none when it is over.
    pub const fn decision(self) -> Option<Decision> {
        match self {
            Self::Undecided => Some(Decision::Aborted),
            Self::Committed => Some(Decision::Commit),
            Self::Done | Self::Aborted => None,
        }
    }
}

/// How far the destination has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DestinationState {
    /// It is being sent the guest; when the source is gone, it discards.
    Loading,
    /// It has everything and waits to be told.
    Ready,
    /// The guest is its own, and about to run: from here on nobody else may run it unasked.
    Taking,
    /// It has let the guest run.
    Running,
    /// The guest was given to it, and it could not let it run: an operator must look.
    Failed,
    /// Its copy is gone and will never run.
    Discarded,
}

/// One side's record of one migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The migration.
    pub migration: MigrationId,
    /// The guest's name.
    pub guest: String,
    /// The guest's identity.
    pub guest_uuid: Uuid,
    /// Process that owns this record while it lives.
    pub pid: u32,
    /// When the migration began, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// When this was written, milliseconds since 1970.
    pub updated_unix_ms: u64,
    /// Which side this is, how far it has come, and how to reach the other.
    pub side: Side,
    /// The final report, when it is over.
    pub report: Option<Report>,
}

/// What tells a record from all others of a host. The id of its migration alone does not: a guest's
/// process writes what it likes into a record of its guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// The migration.
    pub migration: MigrationId,
    /// Which side of it this host is.
    pub role: Role,
    /// The guest's name.
    pub guest: String,
    /// The guest's identity.
    pub guest_uuid: Uuid,
}

impl Record {
    /// What tells it from all others of this host.
    pub fn key(&self) -> RecordKey {
        let (guest, guest_uuid) = (self.guest.clone(), self.guest_uuid);
        RecordKey { migration: self.migration, role: self.role(), guest, guest_uuid }
    }

    /// Whether this side of the migration is over: no copy of it runs, or may yet be let run, but
    /// as the record says.
    pub const fn is_settled(&self) -> bool {
        match self.side {
            Side::Source { state, .. } => matches!(state, SourceState::Done | SourceState::Aborted),
            Side::Destination { state, .. } => {
                matches!(state, DestinationState::Running | DestinationState::Discarded)
            }
        }
    }

    /// Whether this host had the guest in the course of this migration, as far as it knows.
    pub const fn had_guest(&self) -> bool {
        match self.side {
            Side::Source { .. } => true,
            Side::Destination { state, .. } => !matches!(
                state,
                DestinationState::Loading | DestinationState::Ready | DestinationState::Discarded
            ),
        }
    }

    /// Whether the guest is the destination's, by the decision of this host, which was its source.
    pub const fn has_left(&self) -> bool {
        match self.side {
            Side::Source { state, .. } => {
                matches!(state, SourceState::Committed | SourceState::Done)
            }
            Side::Destination { .. } => false,
        }
    }

    /// Which side this is.
    pub const fn role(&self) -> Role {
        match self.side {
            Side::Source { .. } => Role::Source,
            Side::Destination { .. } => Role::Destination,
        }
    }
}

/// What only one of the sides records.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Side {
    /// The side that the guest leaves.
    Source {
        /// What has been decided.
        state: SourceState,
        /// The destination's node, as the user named it (`HOST:PORT`).
        destination: String,
        /// Name that the destination's certificate must carry.
        server_name: String,
        /// The node's address.
        node_address: SocketAddr,
        /// Address of the process that takes the guest in.
        process_address: SocketAddr,
        /// Secret to be shown to it.
        token: Token,
    },
    /// The side that it goes to.
    Destination {
        /// How far it has come.
        state: DestinationState,
        /// Address from which the source came.
        source_address: SocketAddr,
        /// A name in its host's certificate; absent before it came, and in records of a lighter
        /// that did not keep it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_name: Option<String>,
        /// UDP port of the node of its host; absent when no node ran there, before the source said
        /// it, and when either lighter did not know of this field.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_node_port: Option<NonZeroU16>,
        /// Port on which this process waits for the source.
        port: u16,
        /// Secret that the source must show.
        token: Token,
    },
}
