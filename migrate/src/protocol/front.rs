//! What a source says to the node of the destination before the guest's own process takes over,
//! and when it has lost that process.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Decision, DestinationMessage, MigrationId, Offer, PeerText, Token};
use crate::guest::{GuestDescription, Refusal};

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
    /// Whether it is that host's: it runs there, or would if its user let it. Otherwise it waits to be told whose it is.
    pub is_owned: bool,
}

impl FoundGuest {
    /// The state of a guest that is not there any more: it ran there, and has ended.
    pub const ENDED: &str = "ended there";
    /// What the state of a guest begins with that ran there and has moved on; where to follows.
    pub const MOVED: &str = "moved to ";

    /// Whether the guest is not there any more. A copy from before that is out of date.
    pub fn is_past(&self) -> bool {
        self.state.as_str() == Self::ENDED || self.state.as_str().starts_with(Self::MOVED)
    }
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
}
