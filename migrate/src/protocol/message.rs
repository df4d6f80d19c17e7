//! The messages of the control stream.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::{Features, MigrationId, Offer, Version};
use crate::guest::{DiskCopy, GuestDescription, Refusal, RunState};
use crate::reason::Reason;
use crate::text::{Blob, PeerText};

/// Most data streams of one migration.
pub const MAX_STREAMS: u16 = 64;

/// What the source says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceMessage {
    /// First word on a new migration's control stream.
    Hello {
        /// The migration this is about.
        migration: MigrationId,
        /// What the source speaks.
        offer: Offer,
    },
    /// First word on a control stream that replaces a lost one: what has been decided.
    Resolve {
        /// The migration this is about.
        migration: MigrationId,
        /// What the source's record says.
        decision: Decision,
    },
    /// The guest that is to come.
    Prepare(Prepare),
    /// The guest stands; the last pages and its state are coming.
    Switchover,
    /// The guest's state. With the end of all data streams, the destination has everything.
    State(SavedState),
    /// The destination is to run the guest. The decision is on disk at the source.
    Commit,
    /// The source keeps the guest; the destination discards its copy and says so.
    Abort(Complaint),
    /// The source has heard that the guest runs and has cleaned up.
    Finish,
    /// The disks that come along with the guest; said before `Prepare`, and only if there are any
    /// and both sides have [`super::FEATURE_DISKS`].
    Disks(Vec<DiskCopy>),
    /// Where the node of the source's host listens; said before `Prepare`, and only if there is one
    /// and both sides have [`super::FEATURE_NODE`].
    Node {
        /// Its UDP port.
        port: NonZeroU16,
    },
}

/// What the destination says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DestinationMessage {
    /// Answer to `Hello`: what is spoken from now on.
    Welcome {
        /// Newest version that both speak.
        version: Version,
        /// Features that both have.
        features: Features,
    },
    /// Answer to `Hello` or `Prepare`: no, and why. Nothing was created, or it is gone again.
    Refused(Refusal),
    /// Answer to `Prepare`: the guest is built, its memory reserved; pages may come.
    Prepared,
    /// All pages and the state are loaded; a durable record says so. Waits to be told.
    Ready {
        /// Time that loading the state took, in microseconds.
        load_us: u64,
    },
    /// Answer to `Commit`, or to `Resolve` of a commit: the guest is the destination's (and runs,
    /// unless its user had paused it). Said again each time it is asked.
    Running(Takeover),
    /// The destination failed and gives up; its copy is gone.
    Abort(Complaint),
    /// The copy is gone and will never run, a durable record says so: answer to `Abort` and
    /// `Resolve`.
    Discarded,
    /// Answer to `Resolve`: nothing is known here of such a migration.
    Unknown,
    /// Answer to `Commit`, or to `Resolve` of a commit: the guest could not be taken over, and
    /// nothing of it has run. The copy stays until the source has said again whose the guest is;
    /// told that it is the destination's, the destination tries again.
    NotTaken(Complaint),
}

/// Description of the guest and of how it will be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// The guest.
    pub guest: GuestDescription,
    /// Data streams that its pages will come on, 1 to [`MAX_STREAMS`]: chunk `c` on stream
    /// `c % streams`.
    pub streams: u16,
}

/// Saved state of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    /// Whether the guest is to run after the migration.
    pub run_state: RunState,
    /// State of vCPUs and devices, as `SourceGuest::save_state` gave it.
    pub state: Blob,
}

/// How the destination took the guest over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Takeover {
    /// From hearing `Commit` to the guest running, in microseconds; 0 when not known any more.
    pub resume_us: u64,
}

/// What the source has decided about a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// The destination runs the guest.
    Commit,
    /// The source keeps it.
    Aborted,
}

/// A failure as it is told to the other side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// [`Reason::code`] of the failure; codes of newer releases read as [`Reason::Other`].
    pub code: u16,
    /// What happened, for a human.
    pub text: PeerText,
}

impl Complaint {
    /// A complaint with this reason and text.
    pub fn new(reason: Reason, text: impl AsRef<str>) -> Self {
        Self { code: reason.code(), text: PeerText::new(text.as_ref()) }
    }

    /// The reason, as far as this release knows it.
    pub fn reason(&self) -> Reason {
        Reason::from_code(self.code)
    }
}

impl SourceMessage {
    /// The name of the message, for logs and errors.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::Resolve { .. } => "Resolve",
            Self::Prepare(_) => "Prepare",
            Self::Disks(_) => "Disks",
            Self::Node { .. } => "Node",
            Self::Switchover => "Switchover",
            Self::State(_) => "State",
            Self::Commit => "Commit",
            Self::Abort(_) => "Abort",
            Self::Finish => "Finish",
        }
    }
}

impl DestinationMessage {
    /// The name of the message, for logs and errors.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Welcome { .. } => "Welcome",
            Self::Refused(_) => "Refused",
            Self::Prepared => "Prepared",
            Self::Ready { .. } => "Ready",
            Self::Running(_) => "Running",
            Self::Abort(_) => "Abort",
            Self::Discarded => "Discarded",
            Self::Unknown => "Unknown",
            Self::NotTaken(_) => "NotTaken",
        }
    }
}
