//! Settling a migration whose process is dead: pure functions for the node that finds its record.

use crate::protocol::{Complaint, DestinationMessage};
use crate::record::{DestinationState, SourceState};

/// What the node of a dead destination process must do when a source asks about its migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadAnswer {
    /// State to make durable in the record before answering, when it changes.
    pub record: Option<DestinationState>,
    /// The answer.
    pub answer: DestinationMessage,
}

/// Answers for a destination process that is dead; `state` is what its record says, none when there
/// is no record.
///
/// A copy that was loading or ready died with its process and had not run: once that is on disk,
/// the source may have the guest back. One that was running has run: it is gone, as after any crash.
pub fn answer_for_dead(state: Option<DestinationState>) -> DeadAnswer {
    match state {
        None => DeadAnswer { record: None, answer: DestinationMessage::Unknown },
        Some(DestinationState::Loading | DestinationState::Ready) => DeadAnswer {
            record: Some(DestinationState::Discarded),
            answer: DestinationMessage::Discarded,
        },
        Some(DestinationState::Discarded) => {
            DeadAnswer { record: None, answer: DestinationMessage::Discarded }
        }
        Some(DestinationState::Running) => DeadAnswer {
            record: None,
            answer: DestinationMessage::Running(crate::protocol::Takeover::default()),
        },
    }
}

/// What a destination's answer means for the record of a dead source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadSource {
    /// Over: make this durable.
    Settled(SourceState),
    /// The destination cannot tell: leave the record, show the operator.
    InDoubt,
    /// Not an answer to `Resolve`: ask again later.
    NoAnswer(Option<Complaint>),
}

/// Judges the answer to a `Resolve` that was sent for a dead source process.
pub fn judge_for_dead(state: SourceState, answer: &DestinationMessage) -> DeadSource {
    match (state, answer) {
        (SourceState::Done | SourceState::Aborted, _) => DeadSource::Settled(state),
        (_, DestinationMessage::Running(_)) => DeadSource::Settled(SourceState::Done),
        (_, DestinationMessage::Discarded) => DeadSource::Settled(SourceState::Aborted),
        // Nothing there, and nothing was to be: that is what was wanted.
        (SourceState::Undecided, DestinationMessage::Unknown) => {
            DeadSource::Settled(SourceState::Aborted)
        }
        (SourceState::Committed, DestinationMessage::Unknown) => DeadSource::InDoubt,
        (_, DestinationMessage::Abort(complaint)) => DeadSource::NoAnswer(Some(complaint.clone())),
        _ => DeadSource::NoAnswer(None),
    }
}
