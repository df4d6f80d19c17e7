//! What can happen to a destination.

use crate::error::OperatorChoice;
use crate::guest::{GuestError, Refusal};
use crate::progress::Transfer;
use crate::protocol::{CodecError, SourceMessage};
use crate::text::PeerText;

/// Something that happened, as the shell tells it. Answers to actions that have been overtaken (the
/// migration was aborted meanwhile) may still be told; they are ignored.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The source, admitted by its token, has opened a control stream. It replaces the one before,
    /// if there was one: nothing more may come of that.
    Connected,
    /// The connection with the control stream is gone.
    ConnectionLost {
        /// What the transport said.
        detail: PeerText,
    },
    /// A message came on the control stream.
    Message(SourceMessage),
    /// Bytes came on the control stream that are no message.
    Malformed(CodecError),
    /// Answer to [`super::Action::Check`].
    Checked(Result<(), Refusal>),
    /// Answer to [`super::Action::Create`].
    Created(Result<(), Refusal>),
    /// A data stream ended as it should: all frames that its end marker announces are applied.
    StreamEnded {
        /// Which stream, from 0.
        stream: u16,
        /// Frames that the end marker announces.
        announced: u64,
        /// Frames that were applied to memory.
        applied: u64,
    },
    /// A data stream brought something that is no frame, or damaged, or out of place.
    DataFailed {
        /// What is wrong with it.
        detail: PeerText,
    },
    /// Totals of the data streams since the migration began; about ten times a second.
    Transferred(Transfer),
    /// Answer to [`super::Action::LoadState`].
    Loaded(Result<(), GuestError>),
    /// Answer to [`super::Action::Record`]: it is on disk.
    Recorded,
    /// Answer to [`super::Action::Record`]: whether it is on disk is not known.
    RecordFailed {
        /// What the file system said.
        detail: PeerText,
    },
    /// Answer to [`super::Action::AdoptGuest`].
    Adopted(Result<(), GuestError>),
    /// Answer to [`super::Action::ResumeGuest`].
    Resumed(Result<(), GuestError>),
    /// Somebody on this side wants the migration called off.
    Cancel {
        /// Who.
        by: PeerText,
    },
    /// The operator decides for a destination that waits to be told.
    Resolve(OperatorChoice),
    /// [`super::Destination::deadline`] has come.
    Tick,
}
