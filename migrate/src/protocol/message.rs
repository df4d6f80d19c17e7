//! The messages of the control stream.

use std::num::NonZeroU16;

use serde::{Deserialize, Serialize};

use super::{Features, MigrationId, Offer, PageMasks, Version};
use crate::guest::{DiskCopy, GuestDescription, Refusal, RunState};
use crate::reason::Reason;
use crate::text::{Blob, PeerText};

/// Most data streams of one migration.
pub const MAX_STREAMS: u16 = 64;

/// Most links that one migration uses at once.
pub const MAX_LINKS: usize = 4;

/// A message from the source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum SourceMessage {
    /// First message on the control stream of a new migration.
    Hello {
        /// Id of the new migration.
        migration: MigrationId,
        /// Versions and features of the source.
        offer: Offer,
    },
    /// First message on a control stream that replaces a lost one: the source's decision.
    Resolve {
        /// Id of the migration that the lost stream belonged to.
        migration: MigrationId,
        /// The decision in the source's record.
        decision: Decision,
    },
    /// Describes the guest that will be sent.
    Prepare(Prepare),
    /// The source is pausing the guest; the last pages and its state follow.
    Switchover,
    /// The guest's state. Once all data streams have ended as well, the destination has everything.
    State(SavedState),
    /// The destination is to run the guest. The source has made that decision durable. It follows
    /// `Ready`; or, if both sides have [`super::FEATURE_EARLY_COMMIT`], all that the destination
    /// needs to be ready.
    Commit,
    /// The source keeps the guest; the destination discards its copy and says so.
    Abort(Complaint),
    /// The source has heard that the guest runs, and has cleaned up.
    Finish,
    /// The disks that are copied with the guest; sent before `Prepare`, and only if there are any
    /// and both sides have [`super::FEATURE_DISKS`].
    Disks(Vec<DiskCopy>),
    /// Where the node of the source's host listens; sent before `Prepare`, and only if a node runs
    /// there and both sides have [`super::FEATURE_NODE`].
    Node {
        /// UDP port of the node.
        port: NonZeroU16,
    },
    /// The hand-over took too long and is called off: the guest runs on at the source, rounds go
    /// on, and another `Switchover` follows. Sent only before the data streams end, and if both
    /// sides have [`super::FEATURE_RECONNECT`].
    Return,
    /// Pages that the destination lacks, or of which its copy is out of date: it drops them, and
    /// fetches them after the hand-over. Sent twice, if both sides have
    /// [`super::FEATURE_POSTCOPY`]: when the data streams have ended, while the guest runs; and
    /// after `Switchover`, with what was written since.
    Missing(PageMasks),
    /// The hand-over takes too long: unless the destination is already taking the guest over, it
    /// discards its copy and says so. Sent only after `Commit`, and if both sides have
    /// [`super::FEATURE_EARLY_COMMIT`].
    Withdraw(Complaint),
    /// First message on a control stream that replaces one that was lost while rounds were sent:
    /// nothing is decided, and they go on. Sent only if both sides have
    /// [`super::FEATURE_RECONNECT`].
    Continue {
        /// Id of the migration that the lost stream belonged to.
        migration: MigrationId,
    },
}

/// A message from the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DestinationMessage {
    /// Answer to `Hello`: the version and features in use from now on.
    Welcome {
        /// Newest version that both sides speak.
        version: Version,
        /// Features that both sides have.
        features: Features,
    },
    /// Answer to `Hello` or `Prepare`: the guest is refused, with the reason. Nothing was created,
    /// or it has been destroyed.
    Refused(Refusal),
    /// Answer to `Prepare`: the guest is built and its memory reserved; the source may send pages.
    Prepared,
    /// All pages and the state are loaded, and the destination has recorded that durably. It waits
    /// for the source's decision. Not sent if both sides have [`super::FEATURE_EARLY_COMMIT`].
    Ready {
        /// Time to load the state, in microseconds.
        load_us: u64,
    },
    /// Answer to `Commit`, or to `Resolve` of a commit: the destination owns the guest (which runs,
    /// unless its user had paused it). Repeated each time the source asks.
    Running(Takeover),
    /// The destination has failed and destroyed its copy. After a commit, some of it may have run.
    Abort(Complaint),
    /// The copy is destroyed and will never run, as a durable record says: answer to `Abort` and
    /// `Resolve`.
    Discarded,
    /// Answer to `Resolve`: this migration is not known here.
    Unknown,
    /// Answer to `Commit`, or to `Resolve` of a commit: taking the guest over failed, and nothing
    /// of it has run. The copy stays until the source says again who owns the guest; if the
    /// destination does, it tries again.
    NotTaken(Complaint),
    /// Answer to the first `Missing`: these pages are dropped.
    Cleared,
    /// The pages that the destination still lacks: follows the answer to a `Resolve` of
    /// [`Decision::Serve`].
    Missing(PageMasks),
    /// The destination has recorded that the guest runs and all of its memory is there: the source
    /// may forget it.
    Complete {
        /// The longest time that the guest waited for a page, in microseconds; 0 if it never did,
        /// or that is no longer known.
        longest_wait_us: u64,
    },
    /// The guest has run here, and never will again: it, or the memory that it lacked, is gone.
    Lost(Complaint),
    /// The destination has failed before the guest ran: the copy is destroyed and will never run,
    /// as a durable record says. Sent instead of `Abort` if both sides have
    /// [`super::FEATURE_EARLY_COMMIT`], since the source may have committed.
    GaveUp(Complaint),
    /// Answer to `Continue`: all that came on the lost data streams is applied, and new ones may be
    /// opened.
    Applied {
        /// For each data stream, how many frames have been applied since the migration began, of
        /// all that had its number. Of several links, which have one number: only whether more
        /// have come than before says anything, since their frames are acknowledged.
        frames: Vec<u64>,
    },
    /// Answer to `Return`: what came of the hand-over is forgotten. Sent if both sides have
    /// [`super::FEATURE_RECONNECT`].
    Returned,
}

/// Description of the guest and of how it will be sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// The guest, without its copied disks, which are announced in [`SourceMessage::Disks`].
    pub guest: GuestDescription,
    /// Number of data streams, 1 to [`MAX_STREAMS`]: chunk `c` is sent on stream `c % streams`.
    pub streams: u16,
}

/// Saved state of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SavedState {
    /// Whether the guest is to run after the migration.
    pub run_state: RunState,
    /// State of vCPUs and devices, as returned by `SourceGuest::save_state`.
    pub state: Blob,
}

/// How the destination took over the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Takeover {
    /// Time from hearing `Commit` until the guest ran, in microseconds; 0 if no longer known.
    pub resume_us: u64,
}

/// The source's decision about a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// The destination runs the guest.
    Commit,
    /// The source keeps the guest.
    Aborted,
    /// The destination runs the guest, and fetches the memory that it lacks from the source. Only
    /// if both sides have [`super::FEATURE_POSTCOPY`].
    Serve,
    /// As `Serve`, but the source's process has ended, and with it the memory that it had not sent.
    Lost,
}

/// A failure as it is reported to the other side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Complaint {
    /// [`Reason::code`] of the failure; codes of newer releases read as [`Reason::Other`].
    pub code: u16,
    /// What happened, for a person.
    pub text: PeerText,
}

impl Complaint {
    /// Creates a complaint with this reason and text.
    pub fn new(reason: Reason, text: impl AsRef<str>) -> Self {
        Self { code: reason.code(), text: PeerText::new(text.as_ref()) }
    }

    /// Returns the reason; [`Reason::Other`] if this release does not know it.
    pub fn reason(&self) -> Reason {
        Reason::from_code(self.code)
    }
}

impl SourceMessage {
    /// Returns the name of the message, for logs and errors.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello { .. } => "Hello",
            Self::Resolve { .. } => "Resolve",
            Self::Prepare(_) => "Prepare",
            Self::Disks(_) => "Disks",
            Self::Node { .. } => "Node",
            Self::Return => "Return",
            Self::Missing(_) => "Missing",
            Self::Switchover => "Switchover",
            Self::State(_) => "State",
            Self::Commit => "Commit",
            Self::Abort(_) => "Abort",
            Self::Finish => "Finish",
            Self::Withdraw(_) => "Withdraw",
            Self::Continue { .. } => "Continue",
        }
    }
}

impl DestinationMessage {
    /// Returns the name of the message, for logs and errors.
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
            Self::Cleared => "Cleared",
            Self::Missing(_) => "Missing",
            Self::Complete { .. } => "Complete",
            Self::Lost(_) => "Lost",
            Self::GaveUp(_) => "GaveUp",
            Self::Applied { .. } => "Applied",
            Self::Returned => "Returned",
        }
    }
}
