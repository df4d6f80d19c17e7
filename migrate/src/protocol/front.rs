//! What a source says to the node of the destination before the guest's own process takes over,
//! and when it has lost that process.

// An address; nothing here opens a socket.
use core::net::SocketAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Decision, DestinationMessage, MigrationId, Offer, Token};
use crate::guest::{GuestDescription, Refusal};
use crate::text::PeerText;

/// A question to a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FrontRequest {
    /// Asks for a process that takes this guest in.
    Admit {
        /// The migration to come.
        migration: MigrationId,
        /// What the source speaks.
        offer: Offer,
        /// The guest.
        guest: GuestDescription,
    },
    /// Tells what was decided about a migration whose process cannot be reached directly.
    Resolve {
        /// The migration.
        migration: MigrationId,
        /// Proof of having been admitted.
        token: Token,
        /// What the source's record says.
        decision: Decision,
    },
    /// Asks whether that host has a guest: one of this identity, or else one of this name.
    Find {
        /// The guest's identity.
        uuid: Uuid,
        /// Its name on the host that asks.
        name: PeerText,
    },
    /// Asks as `Find` does, and where the guest has gone since a migration in which both hosts took
    /// part. An earlier version does not know this question: it is asked `Find`.
    Trace {
        /// The guest's identity.
        uuid: Uuid,
        /// Its name on the host that asks.
        name: PeerText,
        /// The last migration that the asking host knows of. What came before it does not count.
        migration: MigrationId,
    },
}

/// A guest that a host has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FoundGuest {
    /// Its identity.
    pub uuid: Uuid,
    /// Its name there.
    pub name: PeerText,
    /// How it stands, in a word.
    pub state: PeerText,
    /// Whether it is that host's: it runs there, or would if its user let it. Otherwise it waits to
    /// be told whose it is.
    pub is_owned: bool,
}

impl FoundGuest {
    /// The state of a guest that is not there any more: it ran there, and has ended.
    pub const ENDED: &str = "ended there";
    /// What the state of a guest begins with that ran there and has moved on; where to follows.
    pub const MOVED: &str = "moved to ";
    /// What the state of a guest begins with that ran there and was being moved on, and of which
    /// that host cannot tell whether it has arrived; where to follows.
    pub const ON_ITS_WAY: &str = "on its way to ";

    /// Whether the guest is not there any more. A copy from before that is out of date.
    pub fn is_past(&self) -> bool {
        self.state.as_str() == Self::ENDED || self.destination().is_some() || self.is_on_its_way()
    }

    /// Whether that host cannot tell if the guest has arrived where it was being moved to.
    pub fn is_on_its_way(&self) -> bool {
        self.state.as_str().starts_with(Self::ON_ITS_WAY)
    }

    /// Where it has moved on to, as the user there named it (`HOST:PORT`).
    pub fn destination(&self) -> Option<&str> {
        self.state.as_str().strip_prefix(Self::MOVED)
    }
}

/// Where a guest went from a host that it has left, or is leaving.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Onward {
    /// The node there, as the user named it (`HOST:PORT`).
    pub destination: PeerText,
    /// Name that its certificate must carry.
    pub server_name: PeerText,
    /// The node's address.
    pub node_address: SocketAddr,
    /// The migration that took the guest there.
    pub migration: MigrationId,
}

/// The node's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FrontReply {
    /// A process waits for the guest.
    Admitted {
        /// UDP port of that process, on the node's address.
        port: u16,
        /// Secret to be shown on each connection to it.
        token: Token,
    },
    /// No, and why.
    Refused(Refusal),
    /// Answer to `Resolve`, from the record on disk; see [`crate::resolve::answer_for_dead`].
    Resolved(DestinationMessage),
    /// Answer to `Resolve`: the process lives; say it there.
    AskProcess {
        /// UDP port of that process.
        port: u16,
    },
    /// Answer to `Find`.
    Found(Option<FoundGuest>),
    /// Answer to `Trace`.
    Traced {
        /// The guest, or how it was last there.
        guest: Option<FoundGuest>,
        /// Where to go on asking when it has moved on, or may have.
        onward: Option<Onward>,
    },
}
