//! The events of the destination's state machine.

use crate::error::OperatorChoice;
use crate::guest::{GuestError, Refusal};
use crate::progress::Transfer;
use crate::protocol::{CodecError, SourceMessage};
use crate::text::PeerText;
use crate::waits::PageWaits;

/// An event that the shell reports. Answers to actions that are obsolete (the migration was aborted
/// meanwhile) may still be reported; they are ignored.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The source, admitted by its token, has opened a control stream. It replaces an earlier one,
    /// from which nothing more may be reported.
    Connected,
    /// The connection with the control stream is lost.
    ConnectionLost {
        /// The transport's error.
        detail: PeerText,
    },
    /// A message arrived on the control stream.
    Message(SourceMessage),
    /// Bytes arrived on the control stream that are not a valid message.
    Malformed(CodecError),
    /// Answer to [`super::Action::Check`].
    Checked(Result<(), Refusal>),
    /// Answer to [`super::Action::Create`].
    Created(Result<(), Refusal>),
    /// A data stream ended properly: all frames up to its end marker are applied.
    StreamEnded {
        /// Number of the stream, from 0.
        stream: u16,
        /// Frames that the end marker counts.
        announced: u64,
        /// Frames that were applied to memory.
        applied: u64,
    },
    /// A data stream carried an invalid, damaged or misplaced frame.
    DataFailed {
        /// What is wrong with the frame.
        detail: PeerText,
    },
    /// Answer to [`super::Action::CountFrames`]: for each data stream, the frames that have been
    /// applied since the migration began.
    Counted(Vec<u64>),
    /// Totals of the data streams since the migration began; reported about ten times a second.
    Transferred(Transfer),
    /// How long the guest has waited for missing pages by now; reported as often.
    Waited(PageWaits),
    /// Answer to [`super::Action::LoadState`].
    Loaded(Result<(), GuestError>),
    /// Answer to [`super::Action::Clear`].
    Cleared(Result<(), GuestError>),
    /// After [`super::Action::Fetch`]: all missing pages are there, or the guest has ended and
    /// needs none.
    Fetched,
    /// Answer to [`super::Action::Record`]: the record is on disk.
    Recorded,
    /// Answer to [`super::Action::Record`]: the record may or may not be on disk.
    RecordFailed {
        /// The file system's error.
        detail: PeerText,
    },
    /// Answer to [`super::Action::AdoptGuest`].
    Adopted(Result<(), GuestError>),
    /// Answer to [`super::Action::ResumeGuest`].
    Resumed(Result<(), GuestError>),
    /// A user or component on this side cancels the migration.
    Cancel {
        /// The user or component that cancels it.
        by: PeerText,
    },
    /// The operator decides for a destination that waits for the source's decision.
    Resolve(OperatorChoice),
    /// The time of [`super::Destination::deadline`] has come.
    Tick,
}
