//! From being ready, or earlier if the source commits early, until the guest runs here or is
//! discarded.

use std::time::Duration;

use super::state::{Discard, State};
use super::{Action, Destination};
use crate::error::{Failure, OperatorChoice, ProtocolError};
use crate::guest::{GuestError, RunState};
use crate::phase::Phase;
use crate::protocol::{
    Complaint, Decision, DestinationMessage, MigrationId, SourceMessage, Takeover,
};
use crate::record::DestinationState;
use crate::report::Outcome;
use crate::text::PeerText;

/// Time until a record that could not be written is tried again.
const RECORD_PAUSE: Duration = Duration::from_secs(10);

impl Destination {
    /// The record that everything is here is written, so the source may be told. If it is
    /// disconnected, it will reconnect and ask.
    pub(super) fn on_ready_recorded(&mut self, answer: Result<(), PeerText>) {
        let State::RecordingReady { load } = self.state else { return };
        match answer {
            Ok(()) => {
                self.state = State::Ready;
                let load_us = load.as_micros().try_into().unwrap_or(u64::MAX);
                self.say(DestinationMessage::Ready { load_us });
            }
            Err(detail) => self.give_up(Failure::Record { detail }),
        }
    }

    pub(super) fn on_message_from_ready(&mut self, message: &SourceMessage) {
        let decision = match message {
            SourceMessage::Commit => Decision::Commit,
            SourceMessage::Abort(_) => Decision::Aborted,
            SourceMessage::Resolve { migration, decision } => {
                if *migration != self.config.migration {
                    return self.say(DestinationMessage::Unknown);
                }
                *decision
            }
            // It has not heard that the copy is gone.
            SourceMessage::Continue { migration } => return self.answer_to_continue(*migration),
            SourceMessage::Finish if matches!(self.state, State::Running { .. }) => {
                return self.on_goodbye();
            }
            SourceMessage::Withdraw(complaint) if self.is_early() => {
                return self.on_withdrawn(complaint);
            }
            SourceMessage::Disks(_)
            | SourceMessage::Missing(_)
            | SourceMessage::Node { .. }
            | SourceMessage::Prepare(_)
            | SourceMessage::Switchover
            | SourceMessage::State(_)
            | SourceMessage::Return
                if self.has_given_up() =>
            {
                return;
            }
            message => {
                let (message, waiting) = (message.name(), self.state.name());
                return self.on_violation(ProtocolError::Unexpected { message, waiting });
            }
        };
        self.on_decision(decision, message);
    }

    /// Tells a source that would go on with rounds that there is no copy.
    fn answer_to_continue(&mut self, migration: MigrationId) {
        if migration != self.config.migration {
            return self.say(DestinationMessage::Unknown);
        }
        match self.state {
            State::Discarding(_) => self.answer_when_discarded(),
            State::Discarded => self.say(DestinationMessage::Discarded),
            ref state => {
                let waiting = state.name();
                self.on_violation(ProtocolError::Unexpected { message: "Continue", waiting });
            }
        }
    }

    /// Returns whether this side has failed, which the source may not have heard when it sent its
    /// message.
    fn has_given_up(&self) -> bool {
        matches!(self.state, State::Discarding(_) | State::Discarded)
    }

    fn on_decision(&mut self, decision: Decision, message: &SourceMessage) {
        self.is_asked = matches!(decision, Decision::Commit | Decision::Serve);
        let why = withdrawal(decision, message);
        self.withdrawn = why.clone().or_else(|| self.withdrawn.take());
        match (&self.state, decision) {
            (State::Ready, Decision::Commit | Decision::Serve) => self.take_over(),
            (State::Ready, Decision::Lost) if !self.is_fetching => self.take_over(),
            (State::Loading { .. }, Decision::Commit | Decision::Serve) => self.is_committed = true,
            (State::Loading { .. }, Decision::Lost) if !self.is_fetching => {
                self.is_committed = true;
            }
            (State::Fetching { resume }, Decision::Commit | Decision::Serve) => {
                let resume_us = resume.as_micros().try_into().unwrap_or(u64::MAX);
                self.say(DestinationMessage::Running(Takeover { resume_us }));
            }
            (State::Ready | State::Loading { .. }, Decision::Aborted | Decision::Lost)
            | (State::RecordingReady { .. }, Decision::Aborted) => {
                if let Some(why) = why {
                    self.discard(why, DestinationMessage::Discarded);
                }
            }
            (State::Fetching { .. }, Decision::Aborted | Decision::Lost) => {
                if let Some(why) = why {
                    self.strand(why);
                }
            }
            (State::RecordingReady { .. }, _) => {
                let error = ProtocolError::Invalid("a commit before all was ready".to_owned());
                self.give_up(Failure::Protocol(error));
            }
            (State::Running { resume, .. }, _) => {
                let resume_us = resume.as_micros().try_into().unwrap_or(u64::MAX);
                self.say(DestinationMessage::Running(Takeover { resume_us }));
                self.say_complete();
            }
            (State::Failed { answer }, _) => {
                let answer = answer.clone();
                self.say(answer);
            }
            (State::Discarded, _) => self.say(DestinationMessage::Discarded),
            (State::Discarding(_), _) => self.answer_when_discarded(),
            // The guest is being taken over, or has been stopped; the answer follows when that step
            // ends.
            _ => {}
        }
        if decision == Decision::Serve && self.is_fetching {
            // The source has a new connection, and does not know what has come.
            self.push(Action::ReportMissing);
        }
    }

    /// The source asks for the guest. What is already taking it over goes on, and the answer
    /// follows when that ends.
    fn on_withdrawn(&mut self, complaint: &Complaint) {
        match self.state {
            State::Loading { .. } | State::Ready => {
                self.discard(Failure::from(complaint), DestinationMessage::Discarded);
            }
            State::Discarding(_) => self.answer_when_discarded(),
            State::Discarded => self.say(DestinationMessage::Discarded),
            _ => {}
        }
    }

    /// Returns why memory that is missing will never come, if so.
    fn starves(&self) -> Option<Failure> {
        self.withdrawn.clone().filter(|_| self.is_fetching)
    }

    /// Takes over the guest: first in the record, then in fact.
    pub(super) fn take_over(&mut self) {
        self.notes.enter(Phase::Commit, self.now);
        self.wait_until = None;
        self.state = State::TakingOver { asked: self.now };
        self.record(DestinationState::Taking);
    }

    pub(super) fn on_takeover_recorded(&mut self, answer: Result<(), PeerText>) {
        let State::TakingOver { asked } = self.state else { return };
        if let Some(why) = self.starves() {
            return self.discard(why, DestinationMessage::Discarded);
        }
        if let Err(detail) = answer {
            return self.stay_ready(Failure::Record { detail });
        }
        self.notes.enter(Phase::Resume, self.now);
        self.state = State::Adopting { asked };
        self.push(Action::AdoptGuest);
    }

    pub(super) fn on_adopted(&mut self, answer: Result<(), GuestError>) {
        let State::Adopting { asked } = self.state else { return };
        if let Some(why) = self.starves() {
            // Nothing of it has run.
            return self.discard(why, DestinationMessage::Discarded);
        }
        match answer {
            Ok(()) => {
                self.state = State::Resuming { asked };
                match self.run_state {
                    RunState::Running => self.push(Action::ResumeGuest),
                    RunState::Paused => self.on_resumed(Ok(())),
                }
            }
            Err(error) => self.stay_ready(Failure::Guest(error)),
        }
    }

    /// The guest could not be taken over, and nothing of it has run. The copy is kept, since it may
    /// by now be the only one, until the source or an operator says again who owns the guest.
    fn stay_ready(&mut self, failure: Failure) {
        let complaint = self.error(failure).complaint();
        self.state = State::Ready;
        self.forced = false;
        self.not_taken = Some(complaint.text.clone());
        self.record(DestinationState::Ready);
        // A source that has reconnected meanwhile is about to ask. If it heard this now, it would
        // take the guest back and also have this side try again.
        if self.is_asked {
            self.say(DestinationMessage::NotTaken(complaint));
        }
    }

    pub(super) fn on_resumed(&mut self, answer: Result<(), GuestError>) {
        let State::Resuming { asked } = self.state else { return };
        let forced =
            self.forced.then(|| self.error(Failure::Operator { choice: OperatorChoice::Run }));
        match answer {
            Ok(()) => {
                let resume = self.now.saturating_sub(asked);
                self.notes.runs(self.now);
                if let Some(why) = self.starves() {
                    return self.strand(why);
                }
                let resume_us = resume.as_micros().try_into().unwrap_or(u64::MAX);
                self.say(DestinationMessage::Running(Takeover { resume_us }));
                if self.is_fetching {
                    return self.begin_to_fetch(resume);
                }
                self.state = State::Running { resume, is_recorded: false };
                self.record(DestinationState::Running);
                self.finish(Outcome::Migrated, forced.as_ref());
            }
            Err(error) => {
                // Some of it may have run, so the source must not resume its copy automatically;
                // but none of it will run from here on, so its operator may resume it.
                self.push(Action::Discard);
                let error = self.error(Failure::Guest(error));
                let answer = DestinationMessage::Abort(error.complaint());
                self.state = State::Failed { answer: answer.clone() };
                self.record(DestinationState::Failed);
                self.say(answer);
                self.finish(Outcome::Lost, Some(&error));
            }
        }
    }

    /// The guest's fate is recorded, so the node can report it when this side no longer listens; or
    /// it could not be recorded, and this is retried, since the record still says that the outcome
    /// is unknown.
    pub(super) fn on_fate_recorded(&mut self, fate: DestinationState, is_written: bool) {
        if !matches!(
            self.state,
            State::Fetching { .. } | State::Running { .. } | State::Failed { .. }
        ) || self.records.last_asked() != Some(fate)
        {
            return;
        }
        if let State::Running { is_recorded, .. } = &mut self.state {
            *is_recorded = is_written;
        }
        self.unrecorded = (!is_written).then_some(fate);
        let wait = match (&self.state, is_written) {
            (_, false) => Some(RECORD_PAUSE),
            // The source is awaited without limit.
            (State::Fetching { .. }, true) => None,
            (_, true) => Some(self.config.linger),
        };
        self.wait_until = wait.map(|wait| self.now.saturating_add(wait));
        self.say_complete();
    }

    /// The source knows that the guest runs here. Others learn it from the record, so this side
    /// does not end before the record is written.
    fn on_goodbye(&mut self) {
        self.config.linger = Duration::ZERO;
        if matches!(self.state, State::Running { is_recorded: true, .. }) {
            self.settle();
        }
    }

    /// Fails this side: the copy is discarded, then the source hears why.
    pub(super) fn give_up(&mut self, failure: Failure) {
        let complaint = self.error(failure.clone()).complaint();
        let farewell = match self.is_early() {
            true => DestinationMessage::GaveUp(complaint),
            false => DestinationMessage::Abort(complaint),
        };
        self.discard(failure, farewell);
    }

    /// Discards the copy and records that; then the source hears `farewell`. If the guest stands
    /// still at the source until then, that does not wait until the copy can be destroyed.
    pub(super) fn discard(&mut self, failure: Failure, farewell: DestinationMessage) {
        let error = self.error(failure);
        let (busy, is_awaited) = (self.state.is_busy(), self.is_kept());
        if matches!(self.state, State::Loading { .. }) && self.is_fetching {
            // Loading may wait for a page that does not come any more.
            self.push(Action::AbandonMissing);
        }
        self.wait_until = None;
        let farewell = Some(farewell);
        self.state = State::Discarding(Discard { error, farewell, busy, is_recorded: false });
        if !busy {
            self.destroy();
        } else if is_awaited {
            self.record(DestinationState::Discarded);
        }
    }

    /// Building or loading has ended, and the guest is no longer wanted.
    pub(super) fn on_work_done(&mut self) {
        if let State::Discarding(discard) = &mut self.state
            && std::mem::replace(&mut discard.busy, false)
        {
            self.destroy();
        }
    }

    fn destroy(&mut self) {
        self.push(Action::Discard);
        match self.records.last_asked() {
            // The answer is to come, if it has not.
            Some(DestinationState::Discarded) => self.end_discard(),
            Some(_) => self.record(DestinationState::Discarded),
            None => self.on_discard_recorded(),
        }
    }

    /// The source has reconnected while the copy is being discarded: the farewell becomes its
    /// answer.
    fn answer_when_discarded(&mut self) {
        if let State::Discarding(discard) = &mut self.state {
            let tells_why = matches!(discard.farewell, Some(DestinationMessage::GaveUp(_)));
            if !tells_why {
                discard.farewell = Some(DestinationMessage::Discarded);
            }
            if discard.is_recorded {
                self.say_farewell();
            }
        }
    }

    fn say_farewell(&mut self) {
        if let State::Discarding(discard) = &mut self.state
            && let Some(farewell) = discard.farewell.take()
        {
            self.say(farewell);
        }
    }

    /// Tells the source, once the discard is recorded or could not be. In the latter case the copy
    /// is gone anyway: the node reads a record before `Taking` as discarded, and one in `Taking`
    /// too if the source has aborted (`resolve::answer_for_dead`).
    pub(super) fn on_discard_recorded(&mut self) {
        let State::Discarding(discard) = &mut self.state else { return };
        discard.is_recorded = true;
        self.say_farewell();
        self.end_discard();
    }

    /// Reports, once the source is told and the copy is gone.
    fn end_discard(&mut self) {
        let State::Discarding(discard) = &self.state else { return };
        if discard.busy || !discard.is_recorded {
            return;
        }
        let error = discard.error.clone();
        self.state = State::Discarded;
        let outcome = match error.failure {
            Failure::MemoryLost => Outcome::Lost,
            _ => Outcome::StayedAtSource,
        };
        self.finish(outcome, Some(&error));
        if self.connected {
            self.await_goodbye();
        } else {
            self.settle();
        }
    }

    pub(super) fn on_resolve(&mut self, choice: OperatorChoice) {
        if self.can_resolve(choice).is_err() {
            return;
        }
        match choice {
            OperatorChoice::Run => {
                self.forced = true;
                self.take_over();
            }
            OperatorChoice::Discard => {
                let failure = Failure::Operator { choice };
                self.discard(failure, DestinationMessage::Discarded);
            }
        }
    }
}

/// Returns why the source sends no more memory, if it says that.
fn withdrawal(decision: Decision, message: &SourceMessage) -> Option<Failure> {
    match (decision, message) {
        (Decision::Commit | Decision::Serve, _) => None,
        (Decision::Lost, _) => Some(Failure::MemoryLost),
        (Decision::Aborted, SourceMessage::Abort(complaint)) => Some(Failure::from(complaint)),
        (Decision::Aborted, _) => {
            Some(Failure::ConnectionLost { detail: "the source has kept the guest".into() })
        }
    }
}
