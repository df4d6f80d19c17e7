//! Why a migration failed: the phase, a reason from a bounded set, and a message.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::guest::{GuestError, Refusal, RefusalKind};
use crate::phase::Phase;
use crate::protocol::{CodecError, Complaint, PageMasks, VersionMismatch};
use crate::reason::Reason;
use crate::text::PeerText;

/// A failed migration. Its text says what happened and on what; the outcome that carries it says
/// where the guest is now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", sentence(*phase, failure))]
pub struct MigrationError {
    /// The phase in which it failed.
    pub phase: Phase,
    /// What went wrong in that phase.
    pub failure: Failure,
}

fn sentence(phase: Phase, failure: &Failure) -> String {
    match failure {
        Failure::Cancelled { .. } => format!("{failure} during {phase}"),
        Failure::Peer { reason: Reason::Cancelled, text } => {
            format!("{text} on the other host during {phase}")
        }
        Failure::ConnectionLost { detail } if phase == Phase::Connect => {
            format!("cannot connect: {detail}")
        }
        Failure::NotConnected { .. } => format!("cannot connect: {failure}"),
        _ => format!("migration failed during {phase}: {failure}"),
    }
}

impl MigrationError {
    /// Returns the reason, for use as a label.
    pub const fn reason(&self) -> Reason {
        self.failure.reason()
    }

    /// Returns the failure as it is sent to the peer.
    pub fn complaint(&self) -> Complaint {
        Complaint::new(self.reason(), self.failure.to_string())
    }
}

/// The ways in which a migration can fail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No version in common.
    #[error(transparent)]
    Version(#[from] VersionMismatch),
    /// The destination refuses the guest.
    #[error("the destination refused the guest: {0}")]
    Refused(Refusal),
    /// Cancelled on this side.
    #[error("cancelled by {by}")]
    Cancelled {
        /// The user or component that cancelled it.
        by: PeerText,
    },
    /// The time limit for the whole migration has passed.
    #[error("not finished after {} s, the limit that was set{why}", limit.as_secs_f64())]
    Timeout {
        /// The limit, counted from the start of the migration.
        limit: Duration,
        /// Why the rounds had not ended: the guest dirties memory too fast, or its pause takes too
        /// long even without dirty memory; empty if neither is so.
        why: PeerText,
    },
    /// Rounds do not bring the downtime within its limit, and the migration is not to wait.
    #[error(
        "it has stalled{why}; allow more with --downtime or --downtime-max, or choose another --on-stall"
    )]
    Stalled {
        /// Why: the guest dirties memory too fast, or its pause takes too long even without dirty
        /// memory.
        why: PeerText,
    },
    /// The guest was paused for too long before the decision to hand it over.
    #[error(
        "the hand-over took longer than {} s (the bound for a downtime limit of {} s): {why}; try again, \
         or allow more with --downtime",
        allowed.as_secs_f64(),
        limit.as_secs_f64()
    )]
    Downtime {
        /// The longest pause allowed: [`crate::Limits::standstill`].
        allowed: Duration,
        /// The downtime limit.
        limit: Duration,
        /// The steps that were not finished.
        why: PeerText,
    },
    /// The peer is connected but does not answer.
    #[error("no {expected} from the other side within {} s", limit.as_secs_f64())]
    NoAnswer {
        /// Name of the message that did not come.
        expected: &'static str,
        /// How long this side waited for it.
        limit: Duration,
    },
    /// The connection could not be made, or was lost.
    #[error("connection lost: {detail}")]
    ConnectionLost {
        /// The transport's error.
        detail: PeerText,
    },
    /// The destination could not be reached at first.
    #[error("{detail}")]
    NotConnected {
        /// Why not, as a label.
        reason: Reason,
        /// The same in words, with the address or name that was tried.
        detail: PeerText,
    },
    /// The peer broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(ProtocolError),
    /// Pages of memory or of disks arrived damaged or incomplete, or cannot be written here.
    #[error("damaged or unusable data: {detail}")]
    Data {
        /// Why not.
        detail: PeerText,
    },
    /// A call to the guest failed.
    #[error("guest error: {0}")]
    Guest(GuestError),
    /// The guest ended on its own while it was being migrated.
    #[error("the guest has ended: {detail}")]
    GuestStopped {
        /// How it ended: it shut down, or crashed.
        detail: PeerText,
    },
    /// A durable record could not be written.
    #[error("the migration's record cannot be written: {detail}")]
    Record {
        /// The file system's error.
        detail: PeerText,
    },
    /// The other side failed and said why.
    #[error("the other side gave up: {text}")]
    Peer {
        /// The reason that it gave.
        reason: Reason,
        /// The text that it gave.
        text: PeerText,
    },
    /// After the commit, the destination does not know the migration.
    #[error(
        "the destination does not know this migration any more, although it was told to run the guest"
    )]
    Forgotten,
    /// The source's process has ended, and with it memory that the guest at the destination lacks.
    #[error(
        "the source has ended before all memory of the guest had arrived: the guest cannot continue"
    )]
    MemoryLost,
    /// Source and destination may both run the guest: an operator forced the destination to, while
    /// the source had kept it.
    #[error(
        "the destination was made to run the guest by its operator, while the source had kept it: stop one of them"
    )]
    Forced,
    /// An operator resolved a migration by hand.
    #[error("resolved by the operator: {choice}")]
    Operator {
        /// The operator's choice.
        choice: OperatorChoice,
    },
}

impl Failure {
    /// Returns the reason, for use as a label.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Version(_) => Reason::Version,
            Self::Refused(refusal) if matches!(refusal.kind, RefusalKind::Version) => {
                Reason::Version
            }
            Self::Refused(_) => Reason::Refused,
            Self::Cancelled { .. } => Reason::Cancelled,
            Self::Timeout { .. } => Reason::Timeout,
            Self::Stalled { .. } => Reason::Stalled,
            Self::Downtime { .. } => Reason::Downtime,
            Self::NoAnswer { .. } => Reason::NoAnswer,
            Self::ConnectionLost { .. } => Reason::ConnectionLost,
            Self::NotConnected { reason, .. } => *reason,
            Self::Protocol(_) => Reason::Protocol,
            Self::Data { .. } | Self::MemoryLost => Reason::Data,
            Self::Guest(_) => Reason::Guest,
            Self::GuestStopped { .. } => Reason::GuestStopped,
            Self::Record { .. } => Reason::Record,
            Self::Peer { reason, .. } => *reason,
            Self::Forgotten | Self::Forced => Reason::InDoubt,
            Self::Operator { .. } => Reason::Operator,
        }
    }
}

impl From<&Complaint> for Failure {
    fn from(complaint: &Complaint) -> Self {
        Self::Peer { reason: complaint.reason(), text: complaint.text.clone() }
    }
}

/// The ways in which a peer can break the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Bytes that are not a message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A message that is not allowed in the current state.
    #[error("unexpected {message} while {waiting}")]
    Unexpected {
        /// Name of the message, such as `Prepare`.
        message: &'static str,
        /// What this side was doing.
        waiting: &'static str,
    },
    /// A message that contradicts earlier ones.
    #[error("{0}")]
    Invalid(String),
}

/// An operator's choice for a guest whose migration is in doubt, on the host where it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperatorChoice {
    /// Run the copy on this host. Safe only if the other host will not run its own.
    Run,
    /// Destroy the copy on this host.
    Discard,
}

impl std::fmt::Display for OperatorChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Run => "run",
            Self::Discard => "discard",
        })
    }
}

/// Why a migration can no longer be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CancelRefused {
    /// The destination is ready: only the source can tell it to discard the guest.
    #[error(
        "too late to cancel at the destination: it is ready and the source decides; cancel there"
    )]
    SourceDecides,
    /// The commit is decided; its record is being written, or is on disk.
    #[error("too late to cancel: the destination has been told to run the guest")]
    Committed,
    /// The migration is over.
    #[error("nothing to cancel: the migration is over")]
    Over,
}

/// Why the guest cannot be handed over before its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PostcopyRefused {
    /// The source hands the guest over.
    #[error("the source hands the guest over: order it there")]
    NotHere,
    /// One of the sides cannot.
    #[error("the destination's or this host's release or kernel knows no post-copy")]
    Unsupported,
    /// The disks that are copied must be complete first.
    #[error("disks that are copied with the guest must be complete first: share them instead")]
    Disks,
    /// What is missing of its memory does not fit into one message.
    #[error(
        "guests of more than {} GiB cannot run before their memory is there",
        PageMasks::GIB_MAX
    )]
    TooLarge,
    /// It has been asked for already, or the guest is being handed over.
    #[error("too late for post-copy: the guest is being handed over already")]
    Late,
    /// The migration is over.
    #[error("nothing to hand over: the migration is over")]
    Over,
}

impl PostcopyRefused {
    /// Returns whether this migration will never be able to, however early it is asked.
    pub const fn is_permanent(self) -> bool {
        match self {
            Self::NotHere | Self::Unsupported | Self::Disks | Self::TooLarge => true,
            Self::Late | Self::Over => false,
        }
    }
}

/// Why the limits of a migration can no longer be changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeRefused {
    /// The source applies the limits.
    #[error("the source applies the limits of a migration: change them there")]
    NotHere,
    /// The guest is being handed over, or the migration is being undone.
    #[error("too late to change it: the guest is being handed over")]
    Late,
    /// The guest is handed over, and its memory follows it.
    #[error("too late for other limits: the guest is handed over, only the bandwidth can change")]
    OnlyBandwidth,
    /// The most to which the downtime limit may be raised is below it.
    #[error("downtime-max must be at least the downtime limit, {} s", limit.as_secs_f64())]
    BelowLimit {
        /// The downtime limit that the operator has set, or sets as well.
        limit: Duration,
    },
    /// The migration is over.
    #[error("nothing to change: the migration is over")]
    Over,
}

/// Why another address of the destination is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecoverRefused {
    /// Only the source connects.
    #[error("the source connects to the destination: give the address there")]
    NotHere,
    /// The guest is still here, and the destination is in reach.
    #[error(
        "nothing to recover: the destination is in reach, and the guest has not been handed over"
    )]
    NotCommitted,
    /// The migration is over.
    #[error("nothing to recover: the migration is over")]
    Over,
    /// After a crash, only the record says where the destination is.
    #[error("it cannot be recorded, so the former address stays: {detail}")]
    Unrecorded {
        /// The file system's error.
        detail: PeerText,
    },
}

/// Why an operator's choice is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveRefused {
    /// Source and destination are connected and about to agree.
    #[error(
        "nothing to resolve: source and destination are connected and will agree by themselves"
    )]
    Connected,
    /// Nothing has been decided yet: the operator can cancel instead.
    #[error("nothing to resolve: the migration is under way and can be cancelled")]
    NotInDoubt,
    /// The guest has run at the destination and has written its disks.
    #[error(
        "the guest has run at the destination and has written its disks: the copy here is out of date"
    )]
    RunsThere,
    /// The guest runs at this destination, or is about to.
    #[error("the guest has been handed over to this host: `lighter destroy` ends it")]
    RunsHere,
    /// Memory of the guest is still at the source.
    #[error("a part of the guest's memory is still at its source: it cannot run without that")]
    MemoryElsewhere,
    /// The migration is over.
    #[error("nothing to resolve: the migration is over")]
    Over,
}
