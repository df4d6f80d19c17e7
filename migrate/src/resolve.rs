//! Settles a migration whose process is dead: pure functions for the node that finds its record.

use crate::protocol::{Complaint, Decision, DestinationMessage, Takeover};
use crate::reason::Reason;
use crate::record::{DestinationState, SourceState};

/// What the node of a dead destination process must do when a source asks about its migration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadAnswer {
    /// State to make durable in the record before answering; none if it does not change.
    pub record: Option<DestinationState>,
    /// The answer to the source.
    pub answer: DestinationMessage,
}

/// Returns the answer for a destination process that is dead; `state` is its record's state, none
/// if there is no record.
///
/// A copy that was loading or ready died with its process and had not run: once that is on disk,
/// the source may take the guest back. One that was running did run, and is gone as after any
/// crash. For one that was about to run, it is unknown whether it did: the source, which still
/// holds the guest paused, asks its operator. If the source says that it has taken the guest back,
/// the migration is settled as well.
pub fn answer_for_dead(state: Option<DestinationState>, decision: Decision) -> DeadAnswer {
    use DestinationState::{Discarded, Failed, Fetching, Loading, Lost, Ready, Running, Taking};
    match (state, decision) {
        (None, _) => DeadAnswer { record: None, answer: DestinationMessage::Unknown },
        (Some(Loading | Ready), _) | (Some(Taking | Failed), Decision::Aborted) => {
            DeadAnswer { record: Some(Discarded), answer: DestinationMessage::Discarded }
        }
        (Some(Discarded), _) => DeadAnswer { record: None, answer: DestinationMessage::Discarded },
        (Some(Taking), Decision::Commit | Decision::Serve) => DeadAnswer {
            record: None,
            answer: DestinationMessage::Abort(Complaint::new(
                Reason::InDoubt,
                "the destination's process died when it was about to let the guest run",
            )),
        },
        (Some(Failed), Decision::Commit | Decision::Serve) => DeadAnswer {
            record: None,
            answer: DestinationMessage::Abort(Complaint::new(
                Reason::Guest,
                "the guest was taken over and could not be started",
            )),
        },
        // Both sides have died with a part of the guest's memory, or the destination has after the
        // guest had run: its disks have moved on.
        (Some(Taking | Failed), Decision::Lost) | (Some(Fetching), _) => {
            DeadAnswer { record: Some(Lost), answer: lost() }
        }
        (Some(Lost), _) => DeadAnswer { record: None, answer: lost() },
        (Some(Running), Decision::Serve) => {
            let answer = DestinationMessage::Complete { longest_wait_us: 0 };
            DeadAnswer { record: None, answer }
        }
        (Some(Running), _) => {
            DeadAnswer { record: None, answer: DestinationMessage::Running(Takeover::default()) }
        }
    }
}

fn lost() -> DestinationMessage {
    DestinationMessage::Lost(Complaint::new(
        Reason::Guest,
        "the guest has run at the destination and has ended before all of its memory was there",
    ))
}

/// What a destination's answer means for the record of a dead source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeadSource {
    /// Over: this state is to be made durable.
    Settled(SourceState),
    /// The destination cannot tell: the record stays as it is, for the operator.
    InDoubt,
    /// Not an answer to `Resolve`: the node asks again later.
    NoAnswer,
}

/// Judges the answer to a `Resolve` that was sent for a dead source process.
pub fn judge_for_dead(state: SourceState, answer: &DestinationMessage) -> DeadSource {
    match (state, answer) {
        (SourceState::Done | SourceState::Aborted, _) => DeadSource::Settled(state),
        (
            _,
            DestinationMessage::Running(_)
            | DestinationMessage::Complete { .. }
            | DestinationMessage::Lost(_),
        ) => DeadSource::Settled(SourceState::Done),
        (_, DestinationMessage::Discarded | DestinationMessage::GaveUp(_)) => {
            DeadSource::Settled(SourceState::Aborted)
        }
        // The destination has nothing, and was to have nothing.
        (SourceState::Undecided, DestinationMessage::Unknown) => {
            DeadSource::Settled(SourceState::Aborted)
        }
        (SourceState::Committed, DestinationMessage::Unknown) => DeadSource::InDoubt,
        (SourceState::Undecided, DestinationMessage::Abort(_)) => {
            DeadSource::Settled(SourceState::Aborted)
        }
        (SourceState::Committed, DestinationMessage::Abort(_)) => DeadSource::InDoubt,
        // Nothing is left here that an operator could run.
        (SourceState::Serving, DestinationMessage::Unknown | DestinationMessage::Abort(_)) => {
            DeadSource::Settled(SourceState::Done)
        }
        _ => DeadSource::NoAnswer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_died_before_it_ran_is_given_back_durably() {
        for state in [DestinationState::Loading, DestinationState::Ready] {
            let DeadAnswer { record, answer } = answer_for_dead(Some(state), Decision::Commit);
            assert_eq!(record, Some(DestinationState::Discarded));
            assert_eq!(answer, DestinationMessage::Discarded);
        }
    }

    #[test]
    fn a_copy_that_ran_is_never_given_back() {
        let DeadAnswer { record, answer } =
            answer_for_dead(Some(DestinationState::Running), Decision::Aborted);
        assert_eq!(record, None);
        assert!(matches!(answer, DestinationMessage::Running(_)));
        for state in [DestinationState::Taking, DestinationState::Failed] {
            let DeadAnswer { record, answer } = answer_for_dead(Some(state), Decision::Commit);
            assert_eq!(record, None);
            assert!(matches!(answer, DestinationMessage::Abort(_)));
            let DeadAnswer { record, .. } = answer_for_dead(Some(state), Decision::Aborted);
            assert_eq!(record, Some(DestinationState::Discarded), "the source has it again");
        }
    }

    #[test]
    fn a_copy_that_ran_without_all_of_its_memory_is_lost_with_its_process() {
        use DestinationState::{Fetching, Lost, Running, Taking};
        for decision in [Decision::Serve, Decision::Lost, Decision::Aborted] {
            let DeadAnswer { record, answer } = answer_for_dead(Some(Fetching), decision);
            assert_eq!(record, Some(Lost));
            assert!(matches!(answer, DestinationMessage::Lost(_)));
        }
        let both_died = answer_for_dead(Some(Taking), Decision::Lost);
        assert_eq!(both_died.record, Some(Lost));
        let all_was_there = answer_for_dead(Some(Running), Decision::Serve);
        assert_eq!(all_was_there.answer, DestinationMessage::Complete { longest_wait_us: 0 });
    }

    #[test]
    fn a_guest_resolved_to_run_at_its_destination_is_there() {
        let running = DestinationMessage::Running(Takeover::default());
        for state in [SourceState::Undecided, SourceState::Committed] {
            assert_eq!(judge_for_dead(state, &running), DeadSource::Settled(SourceState::Done));
        }
    }

    #[test]
    fn only_a_commit_unknown_to_the_destination_is_in_doubt() {
        let unknown = answer_for_dead(None, Decision::Commit).answer;
        assert_eq!(judge_for_dead(SourceState::Committed, &unknown), DeadSource::InDoubt);
        assert_eq!(
            judge_for_dead(SourceState::Undecided, &unknown),
            DeadSource::Settled(SourceState::Aborted)
        );
        assert_eq!(
            judge_for_dead(SourceState::Committed, &DestinationMessage::Prepared),
            DeadSource::NoAnswer
        );
    }
}
