//! Durable records, which decide who may run the guest after a crash.
//!
//! Each side keeps one small file per migration, in the node's state folder rather than the guest's
//! process. It is on disk *before* the message that depends on it is sent:
//!
//! | source's record | destination's record | meaning |
//! |---|---|---|
//! | undecided | loading | the source runs the guest; the destination discards its copy |
//! | undecided | ready | the destination waits to be told; it never starts the guest on its own |
//! | committed | loading | early commits: the source hands the guest over, or is about to |
//! | committed | ready | the source never runs the guest again; the destination will be told to |
//! | committed | taking | the destination owns the guest, and is about to run it |
//! | committed | running | the destination runs it; the source has not heard so yet |
//! | serving | ready, taking | as committed, but memory that the destination lacks is at the source |
//! | serving | fetching | the destination runs the guest, and fetches that memory |
//! | serving | running | the destination has all memory; the source has not heard so yet |
//! | done | running | the migration is over |
//! | aborted | discarded | the migration is over |

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
pub(crate) use store::unix_ms;
pub use store::{RecordStore, Rehearsal};

/// The source's decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum SourceState {
    /// None yet: the source owns the guest.
    Undecided,
    /// The destination owns the guest.
    Committed,
    /// The destination owns the guest, and fetches memory from this process.
    Serving,
    /// The destination has said that it runs the guest; the migration is over.
    Done,
    /// The destination has said that its copy is gone, or never had one to keep; the migration is
    /// over.
    Aborted,
}

impl SourceState {
    /// Returns what the node must still tell the destination if it finds this record without its
    /// process; none if the migration is over.
    pub const fn decision(self) -> Option<Decision> {
        match self {
            Self::Undecided => Some(Decision::Aborted),
            Self::Committed => Some(Decision::Commit),
            Self::Serving => Some(Decision::Lost),
            Self::Done | Self::Aborted => None,
        }
    }
}

/// The destination's progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DestinationState {
    /// It receives the guest, or has received everything; a copy that dies in it has not run.
    Loading,
    /// It has received everything and waits for the decision. Not recorded if the source commits
    /// early, unless the guest could not be taken over.
    Ready,
    /// It owns the guest and is about to run it: from here on no other host may run it on its own.
    Taking,
    /// It has started the guest, of whose memory a part is still at the source.
    Fetching,
    /// It has started the guest, and has all of its memory.
    Running,
    /// It owns the guest but could not run it: an operator must decide.
    Failed,
    /// Its copy is gone and will never run.
    Discarded,
    /// The guest has run here and never will again: it ended, or its source did, before all memory
    /// was here.
    Lost,
}

/// One side's record of one migration.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Id of the migration, the same on both sides.
    pub migration: MigrationId,
    /// The guest's name.
    pub guest: String,
    /// The guest's identity.
    pub guest_uuid: Uuid,
    /// Process that owns this record while it is alive.
    pub pid: u32,
    /// When the migration began, milliseconds since 1970.
    pub started_unix_ms: u64,
    /// When this record was written, milliseconds since 1970.
    pub updated_unix_ms: u64,
    /// Which side this is, its state, and how to reach the other side.
    pub side: Side,
    /// The final report, once the migration is over.
    pub report: Option<Report>,
}

/// Identifies a record among all records of a host. The id of its migration is not enough: a
/// guest's process may write any id into a record of its guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// Id of the migration, the same on both sides.
    pub migration: MigrationId,
    /// The side of the migration that this host is.
    pub role: Role,
    /// The guest's name.
    pub guest: String,
    /// The guest's identity.
    pub guest_uuid: Uuid,
}

impl Record {
    /// Returns its key among all records of this host.
    pub fn key(&self) -> RecordKey {
        let (guest, guest_uuid) = (self.guest.clone(), self.guest_uuid);
        RecordKey { migration: self.migration, role: self.role(), guest, guest_uuid }
    }

    /// Returns whether this side of the migration is over: no copy runs, or may still be run, other
    /// than as the record says.
    pub const fn is_settled(&self) -> bool {
        match self.side {
            Side::Source { state, .. } => matches!(state, SourceState::Done | SourceState::Aborted),
            Side::Destination { state, .. } => {
                matches!(
                    state,
                    DestinationState::Running
                        | DestinationState::Discarded
                        | DestinationState::Lost
                )
            }
        }
    }

    /// Returns whether this host had the guest during this migration, as far as the record tells.
    pub const fn had_guest(&self) -> bool {
        match self.side {
            Side::Source { .. } => true,
            Side::Destination { state, .. } => !matches!(
                state,
                DestinationState::Loading | DestinationState::Ready | DestinationState::Discarded
            ),
        }
    }

    /// Returns whether the destination owns the guest, by the decision of this host as its source.
    pub const fn has_left(&self) -> bool {
        match self.side {
            Side::Source { state, .. } => {
                matches!(state, SourceState::Committed | SourceState::Serving | SourceState::Done)
            }
            Side::Destination { .. } => false,
        }
    }

    /// Returns which side this is.
    pub const fn role(&self) -> Role {
        match self.side {
            Side::Source { .. } => Role::Source,
            Side::Destination { .. } => Role::Destination,
        }
    }
}

/// The part of a record that only one of the sides has.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
pub enum Side {
    /// The side that the guest leaves.
    Source {
        /// What the source has decided about the guest's owner.
        state: SourceState,
        /// The destination's node, as the user named it (`HOST:PORT`).
        destination: String,
        /// Name that the destination's certificate must carry.
        server_name: String,
        /// The node's address.
        node_address: SocketAddr,
        /// Address of the process that receives the guest.
        process_address: SocketAddr,
        /// Secret that connections to that process must show.
        token: Token,
    },
    /// The side that receives the guest.
    Destination {
        /// How far the destination has got.
        state: DestinationState,
        /// Address that the source connected from.
        source_address: SocketAddr,
        /// A name in the certificate of the source's host; absent before the source connected, and
        /// in records of versions that did not keep it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_name: Option<String>,
        /// UDP port of the node on the source's host; absent if no node runs there, before the
        /// source has sent it, and if either version does not know this field.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_node_port: Option<NonZeroU16>,
        /// Port on which this process waits for the source.
        port: u16,
        /// Secret that the source must show.
        token: Token,
    },
}
