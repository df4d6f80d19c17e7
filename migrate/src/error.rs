//! Why a migration failed: in which phase, with a reason from a bounded set, and in words.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::guest::{GuestError, Refusal, RefusalKind};
use crate::phase::Phase;
use crate::protocol::{CodecError, Complaint, VersionMismatch};
use crate::reason::Reason;
use crate::text::PeerText;

/// A failed migration. Its text says what happened, on what, and where the guest is now is said by
/// the outcome that carries it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", sentence(*phase, failure))]
pub struct MigrationError {
    /// The phase in which it failed.
    pub phase: Phase,
    /// What happened.
    pub failure: Failure,
}

fn sentence(phase: Phase, failure: &Failure) -> String {
    match failure {
        Failure::Cancelled { .. } => format!("{failure} during {phase}"),
        Failure::ConnectionLost { detail } if phase == Phase::Connect => {
            format!("cannot connect: {detail}")
        }
        _ => format!("migration failed during {phase}: {failure}"),
    }
}

impl MigrationError {
    /// The reason, as a label.
    pub const fn reason(&self) -> Reason {
        self.failure.reason()
    }

    /// The failure as it is told to the peer.
    pub fn complaint(&self) -> Complaint {
        Complaint::new(self.reason(), self.failure.to_string())
    }
}

/// What can go wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No version in common.
    #[error(transparent)]
    Version(#[from] VersionMismatch),
    /// The destination will not take the guest.
    #[error("the destination refused the guest: {0}")]
    Refused(Refusal),
    /// Called off on this side.
    #[error("cancelled by {by}")]
    Cancelled {
        /// By whom or what.
        by: PeerText,
    },
    /// The total time is over.
    #[error("not finished after {} s, the limit that was set{why}", limit.as_secs_f64())]
    Timeout {
        /// The limit.
        limit: Duration,
        /// What it was waiting for, if it was the guest.
        why: PeerText,
    },
    /// The guest stood still for too long before the decision to hand it over.
    #[error(
        "the hand-over took longer than {} s (the bound for --downtime {}s): {why}; try again, or allow \
         more with --downtime",
        allowed.as_secs_f64(),
        limit.as_secs_f64()
    )]
    Downtime {
        /// For how long it may stand still: [`crate::Limits::standstill`].
        allowed: Duration,
        /// The downtime limit.
        limit: Duration,
        /// What it was waiting for.
        why: PeerText,
    },
    /// The peer is connected and does not answer.
    #[error("no {expected} from the other side within {} s", limit.as_secs_f64())]
    NoAnswer {
        /// The message that did not come.
        expected: &'static str,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The connection could not be made, or is gone.
    #[error("connection lost: {detail}")]
    ConnectionLost {
        /// What the transport said.
        detail: PeerText,
    },
    /// The peer broke the protocol.
    #[error("protocol error: {0}")]
    Protocol(ProtocolError),
    /// Memory pages arrived damaged or incomplete.
    #[error("damaged data: {detail}")]
    Data {
        /// What is wrong with them.
        detail: PeerText,
    },
    /// The guest did not do what was asked.
    #[error("guest error: {0}")]
    Guest(GuestError),
    /// The guest ended while it was being migrated.
    #[error("the guest has ended: {detail}")]
    GuestStopped {
        /// How it ended.
        detail: PeerText,
    },
    /// A durable record could not be written.
    #[error("the migration's record cannot be written: {detail}")]
    Record {
        /// What the file system said.
        detail: PeerText,
    },
    /// The other side failed and told why.
    #[error("the other side gave up: {text}")]
    Peer {
        /// Its reason.
        reason: Reason,
        /// Its words.
        text: PeerText,
    },
    /// After the commit, the destination says that it does not know the migration.
    #[error(
        "the destination does not know this migration any more, although it was told to run the guest"
    )]
    Forgotten,
    /// Source and destination may both run the guest: an operator has forced it.
    #[error(
        "the destination was made to run the guest by its operator, while the source had kept it: stop one of them"
    )]
    Forced,
    /// An operator resolved a migration by hand.
    #[error("resolved by the operator: {choice}")]
    Operator {
        /// What was chosen.
        choice: OperatorChoice,
    },
}

impl Failure {
    /// The reason, as a label.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Version(_) => Reason::Version,
            Self::Refused(refusal) if matches!(refusal.kind, RefusalKind::Version) => {
                Reason::Version
            }
            Self::Refused(_) => Reason::Refused,
            Self::Cancelled { .. } => Reason::Cancelled,
            Self::Timeout { .. } => Reason::Timeout,
            Self::Downtime { .. } => Reason::Downtime,
            Self::NoAnswer { .. } => Reason::NoAnswer,
            Self::ConnectionLost { .. } => Reason::ConnectionLost,
            Self::Protocol(_) => Reason::Protocol,
            Self::Data { .. } => Reason::Data,
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

/// How a peer can break the protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Bytes that are no message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A message that has no place here.
    #[error("unexpected {message} while {waiting}")]
    Unexpected {
        /// The message.
        message: &'static str,
        /// What this side was doing.
        waiting: &'static str,
    },
    /// A message that contradicts what was said before.
    #[error("{0}")]
    Invalid(String),
}

/// What an operator orders for a guest whose migration is in doubt, on the host where it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OperatorChoice {
    /// Run the copy on this host. Safe only when the other host will not run its own.
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

/// Why a migration cannot be called off any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CancelRefused {
    /// The destination is ready: only the source can tell it to give up.
    #[error(
        "too late to cancel at the destination: it is ready and the source decides; cancel there"
    )]
    SourceDecides,
    /// The decision is made, and on disk.
    #[error("too late to cancel: the destination has been told to run the guest")]
    Committed,
    /// There is nothing to cancel.
    #[error("nothing to cancel: the migration is over")]
    Over,
}

/// Why an operator's choice is not heeded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ResolveRefused {
    /// Source and destination are about to agree by themselves.
    #[error(
        "nothing to resolve: source and destination are connected and will agree by themselves"
    )]
    Connected,
    /// Nothing has been decided yet: cancel is what is wanted.
    #[error("nothing to resolve: the migration is under way and can be cancelled")]
    NotInDoubt,
    /// It is decided.
    #[error("nothing to resolve: the migration is over")]
    Over,
}
