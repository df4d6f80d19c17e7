//! The events of the source's state machine.

use std::time::Duration;

use crate::error::OperatorChoice;
use crate::guest::{GuestError, RunState, Throttled};
use crate::limits::LimitsChange;
use crate::memory::PageSet;
use crate::progress::Transfer;
use crate::protocol::{CodecError, DestinationMessage};
use crate::reason::Reason;
use crate::text::PeerText;

/// An event that the shell reports. Answers to actions that are obsolete (the migration was aborted
/// meanwhile) may still be reported; they are ignored.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The connection to the destination is up, with a new control stream: at the start, and as
    /// answer to [`super::Action::Reconnect`].
    Connected,
    /// The first connection could not be made.
    NotConnected {
        /// Why not, as a label.
        reason: Reason,
        /// The same in words, with the address or name that was tried.
        detail: PeerText,
    },
    /// The connection is lost, or could not be made again; also reported if one of its streams
    /// failed. Nothing sent before can be assumed to have been received.
    ConnectionLost {
        /// The transport's error.
        detail: PeerText,
    },
    /// A message arrived on the control stream.
    Message(DestinationMessage),
    /// Bytes arrived on the control stream that are not a valid message.
    Malformed(CodecError),
    /// Answer to [`super::Action::Record`]: the record is on disk.
    Recorded,
    /// Answer to [`super::Action::Record`]: the record may or may not be on disk.
    RecordFailed {
        /// The file system's error.
        detail: PeerText,
    },
    /// Answer to [`super::Action::StartPrecopy`].
    PrecopyStarted,
    /// Answer to [`super::Action::Probe`].
    Probed(Probe),
    /// Totals of the data streams since the migration began; reported about ten times a second.
    Transferred(Transfer),
    /// Answer to [`super::Action::SendRound`] and [`super::Action::SendFinalRound`]: the round's
    /// pages are handed to the transport, which still reaches the destination.
    RoundSent(RoundSent),
    /// Answer to [`super::Action::Throttle`].
    Throttled(Throttled),
    /// Answer to [`super::Action::Pause`]: the guest is paused.
    Paused {
        /// Whether the guest ran before.
        was: RunState,
    },
    /// Answer to [`super::Action::Pause`] and [`super::Action::Probe`]: some vCPUs may be paused,
    /// others not.
    PauseFailed {
        /// Whether the guest ran before.
        was: RunState,
        /// What went wrong.
        error: GuestError,
    },
    /// Answer to [`super::Action::FlushDisks`].
    Flushed {
        /// Number of the hand-over.
        attempt: u32,
    },
    /// Answer to [`super::Action::SaveState`].
    StateSaved {
        /// State of vCPUs and devices.
        state: Vec<u8>,
    },
    /// Answer to [`super::Action::SendRemainder`]: its pages and the end marker of every stream are
    /// handed to the transport.
    RemainderSent(FinalSent),
    /// Answer to [`super::Action::EndStreams`]: the streams have ended, and these pages are dirty
    /// or were not sent. The dirty log shows their next write.
    StreamsEnded(PageSet),
    /// Answer to [`super::Action::CollectMissing`]: the pages written since the streams ended.
    MissingCollected(PageSet),
    /// Answer to [`super::Action::ResumeGuest`].
    Resumed(Result<(), GuestError>),
    /// An action on the guest failed: start of the dirty log, a round, a flush, saving the state.
    /// Also reported if a message cannot be encoded.
    GuestFailed(GuestError),
    /// The guest ended on its own (it shut down, or crashed).
    GuestStopped {
        /// How it ended.
        detail: PeerText,
    },
    /// A user or component cancels the migration. [`super::Source::can_cancel`] says whether that
    /// is possible.
    Cancel {
        /// The user or component that cancels it.
        by: PeerText,
    },
    /// The operator changes the limits. See [`super::Source::can_change`].
    Change(LimitsChange),
    /// The operator wants the guest handed over before its memory. See
    /// [`super::Source::can_postcopy`].
    Postcopy,
    /// The operator decides for a source in doubt. See [`super::Source::can_resolve`].
    Resolve(OperatorChoice),
    /// The time of [`super::Source::deadline`] has come.
    Tick,
}

/// A dry run of the switchover, which measures the time it takes apart from sending memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Probe {
    /// Time to pause the guest and save its state (which is discarded).
    pub pause_and_save: Duration,
    /// How long the guest was paused; zero if it was already paused.
    pub stood: Duration,
    /// Time of a flush of the disks right after another one.
    pub flush: Duration,
    /// Round-trip time of the connection.
    pub round_trip: Duration,
}

/// The result of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundSent {
    /// Pages sent in this round, of memory and of disks, including zero pages.
    pub pages: u64,
    /// Zero pages among them.
    pub zero_pages: u64,
    /// Bytes handed to the transport for them.
    pub wire_bytes: u64,
    /// Pages that are dirty now; they make up the next round.
    pub dirty_pages: u64,
    /// Pages of disks among the dirty ones.
    pub dirty_disk_pages: u64,
    /// Time spent waiting for an acknowledgement after everything was handed to the transport; not
    /// counted for the bandwidth.
    pub waited: Duration,
}

impl RoundSent {
    /// Returns which part of the dirty pages is memory.
    pub(super) fn memory_part(&self) -> f64 {
        let disks = self.dirty_disk_pages as f64 / self.dirty_pages.max(1) as f64;
        1.0 - disks.min(1.0)
    }
}

/// The last pages and the end of the streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FinalSent {
    /// Pages sent: those dirtied by saving the state.
    pub pages: u64,
    /// Zero pages among them.
    pub zero_pages: u64,
    /// Bytes handed to the transport for them.
    pub wire_bytes: u64,
}
