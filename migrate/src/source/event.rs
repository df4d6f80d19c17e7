//! What can happen to a source.

use std::time::Duration;

use crate::error::OperatorChoice;
use crate::guest::{GuestError, RunState};
use crate::progress::Transfer;
use crate::protocol::{CodecError, DestinationMessage};
use crate::text::PeerText;

/// Something that happened, as the shell tells it. Answers to actions that have been overtaken (the
/// migration was aborted meanwhile) may still be told; they are ignored.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The connection to the destination stands and a fresh control stream is open on it: at the
    /// start, and as answer to [`super::Action::Reconnect`].
    Connected,
    /// There is no connection (any more), or it could not be made; also when a stream of it failed.
    /// Nothing that was sent before may be taken as received.
    ConnectionLost {
        /// What the transport said.
        detail: PeerText,
    },
    /// A message came on the control stream.
    Message(DestinationMessage),
    /// Bytes came on the control stream that are no message.
    Malformed(CodecError),
    /// Answer to [`super::Action::Record`]: it is on disk.
    Recorded,
    /// Answer to [`super::Action::Record`]: whether it is on disk is not known.
    RecordFailed {
        /// What the file system said.
        detail: PeerText,
    },
    /// Answer to [`super::Action::StartPrecopy`].
    PrecopyStarted,
    /// Answer to [`super::Action::Probe`].
    Probed(Probe),
    /// Totals of the data streams since the migration began; about ten times a second.
    Transferred(Transfer),
    /// Answer to [`super::Action::SendRound`] and [`super::Action::SendFinalRound`]: its pages are
    /// handed over to the transport.
    RoundSent(RoundSent),
    /// Answer to [`super::Action::Pause`]: the guest stands.
    Paused {
        /// What it did before.
        was: RunState,
    },
    /// Answer to [`super::Action::Pause`]: some of it may stand, some may not.
    PauseFailed {
        /// What it did before.
        was: RunState,
        /// What went wrong.
        error: GuestError,
    },
    /// Answer to [`super::Action::FlushDisks`].
    Flushed,
    /// Answer to [`super::Action::SaveState`].
    StateSaved {
        /// The state.
        state: Vec<u8>,
    },
    /// Answer to [`super::Action::SendRemainder`]: its pages and the end marker of every stream are
    /// handed over to the transport.
    RemainderSent(FinalSent),
    /// Answer to [`super::Action::ResumeGuest`].
    Resumed(Result<(), GuestError>),
    /// An action on the guest failed: start, probe, round, flush, save.
    GuestFailed(GuestError),
    /// The guest ended by itself (it shut down, or crashed).
    GuestStopped {
        /// How it ended.
        detail: PeerText,
    },
    /// Somebody wants the migration called off. See [`super::Source::can_cancel`] for the answer.
    Cancel {
        /// Who.
        by: PeerText,
    },
    /// The operator decides for a source in doubt. See [`super::Source::can_resolve`].
    Resolve(OperatorChoice),
    /// [`super::Source::deadline`] has come.
    Tick,
}

/// A dry run of the last step, to learn how long it takes whatever the memory does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Probe {
    /// Pausing the guest and saving its state (which is thrown away).
    pub pause_and_save: Duration,
    /// For how long the guest stood; zero if it was paused before.
    pub stood: Duration,
    /// A flush of the disks, soon after another one.
    pub flush: Duration,
    /// Round-trip time of the connection.
    pub round_trip: Duration,
}

/// A round that has been sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundSent {
    /// Pages sent in this round, of memory and of disks, those that are zero included.
    pub pages: u64,
    /// Pages among them that are zero.
    pub zero_pages: u64,
    /// Bytes handed to the transport for them.
    pub wire_bytes: u64,
    /// Pages that are dirty now and make up the next round.
    pub dirty_pages: u64,
    /// Pages of disks among them.
    pub dirty_disk_pages: u64,
}

/// The very last pages and the end of the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FinalSent {
    /// Pages sent: those that saving the state had dirtied.
    pub pages: u64,
    /// Pages among them that are zero.
    pub zero_pages: u64,
    /// Bytes handed to the transport for them.
    pub wire_bytes: u64,
}
