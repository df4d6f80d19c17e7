//! From the pause to the end: last pages and state, the decision, and the destination's answer.

use std::time::Duration;

use super::postcopy::Postcopy;
use super::standstill::Step;
use super::state::{PeerNotice, State};
use super::{Action, FinalSent, Source};
use crate::error::{Failure, MigrationError, OperatorChoice, ProtocolError};
use crate::guest::RunState;
use crate::phase::Phase;
use crate::protocol::{Complaint, Decision, DestinationMessage, SavedState, SourceMessage};
use crate::reason::Reason;
use crate::record::SourceState;
use crate::report::Outcome;
use crate::text::{Blob, PeerText};

impl Source {
    /// Pauses the guest, which is handed over unless that takes longer than `allowed`.
    pub(super) fn switch_over(&mut self, allowed: Duration) {
        self.notes.enter(Phase::Switchover, self.now);
        self.standstill.allow(allowed, self.now);
        self.standstill.begin(Step::Pause, self.now);
        self.notes.stands(self.now);
        self.state = State::Pausing;
        self.say(SourceMessage::Switchover);
        self.push(Action::Pause);
    }

    pub(super) fn on_paused(&mut self, was: RunState) {
        match self.state {
            State::Pausing => {
                self.run_state = was;
                self.standstill.end(Step::Pause, self.now);
                // Before it may be resumed here.
                self.end_throttle();
                if was == RunState::Paused {
                    self.wait_without_standstill();
                }
                self.begin_round();
                // For post-copy, the pages that are dirty follow the guest.
                let round_sent = self.postcopy == Postcopy::Begun;
                self.state = State::Finishing { round_sent, flushed: false, saved: false };
                for step in [Step::Flush, Step::Save, Step::Send] {
                    self.standstill.begin(step, self.now);
                }
                if self.commits_early() {
                    self.record(self.commit_record());
                }
                self.push(Action::FlushDisks { attempt: self.notes.returns() });
                if !round_sent {
                    self.push(Action::SendFinalRound { round: self.round.number });
                }
                self.push(Action::SaveState);
            }
            State::Unwinding(_) => self.on_paused_too_late(was),
            _ => {}
        }
    }

    /// Removes the deadline of the pause and notes how long its steps took: the decision is made,
    /// or the guest resumes.
    pub(super) fn end_standstill(&mut self) {
        if self.standstill.stop_clock() {
            self.notes.standstill = Some(self.standstill.report(self.now));
        }
    }

    /// The guest was paused by its user: a longer pause costs it nothing.
    fn wait_without_standstill(&mut self) {
        let limit = self.config.limits.switchover;
        let expected = if self.commits_early() { "Running" } else { "Ready" };
        self.awaited = Some((expected, self.now.saturating_add(limit), limit));
        self.standstill.stop_clock();
    }

    pub(super) fn on_flushed(&mut self, attempt: u32) {
        if let State::Finishing { flushed, .. } = &mut self.state
            && attempt == self.notes.returns()
        {
            *flushed = true;
            self.standstill.end(Step::Flush, self.now);
            self.end_streams();
        }
    }

    pub(super) fn on_state_saved(&mut self, state: Vec<u8>) {
        if let State::Returning { saved, .. } = &mut self.state {
            *saved = true;
            return self.go_on_after_return();
        }
        if let State::Finishing { saved, .. } = &mut self.state
            && !*saved
        {
            *saved = true;
            self.standstill.end(Step::Save, self.now);
            let run_state = self.run_state;
            self.say(SourceMessage::State(SavedState { run_state, state: Blob(state) }));
            self.end_streams();
        }
    }

    /// Once the last round is sent, the disks are flushed and the state is saved, collects dirty
    /// memory a last time. So the destination is not ready while this host still holds unflushed
    /// disk data.
    pub(super) fn end_streams(&mut self) {
        if matches!(self.state, State::Finishing { round_sent: true, flushed: true, saved: true }) {
            self.standstill.begin(Step::Send, self.now);
            self.state = State::Ending { ready: false };
            match self.postcopy {
                Postcopy::Begun => self.push(Action::CollectMissing),
                _ => self.push(Action::SendRemainder { round: self.round.number }),
            }
        }
    }

    pub(super) fn on_remainder_sent(&mut self, sent: FinalSent) {
        if !matches!(self.state, State::Ending { .. }) {
            return;
        }
        if let Some(round) = self.notes.last_round() {
            round.pages = round.pages.saturating_add(sent.pages);
            round.zero_pages = round.zero_pages.saturating_add(sent.zero_pages);
            round.wire_bytes = round.wire_bytes.saturating_add(sent.wire_bytes);
        }
        self.await_ready();
    }

    /// Everything that the destination needs before it is ready has been sent.
    pub(super) fn await_ready(&mut self) {
        let State::Ending { ready } = self.state else { return };
        self.standstill.end(Step::Send, self.now);
        self.notes.enter(Phase::Ready, self.now);
        self.state = State::AwaitingReady;
        if self.commits_early() {
            return self.await_record();
        }
        self.standstill.begin(Step::Ready, self.now);
        if ready {
            self.decide();
        }
    }

    /// Commits, as the destination is ready. From here on the guest is the destination's, unless
    /// the record fails; or unless the guest has by now been paused for too long, and is resumed
    /// here.
    pub(super) fn decide(&mut self) {
        if self.standstill.until().is_some_and(|until| until <= self.now) {
            return self.abort(self.stood_too_long());
        }
        self.awaited = None;
        self.end_standstill();
        self.notes.enter(Phase::Commit, self.now);
        self.state = State::Deciding;
        self.record(self.commit_record());
    }

    /// Returns the record of the commit.
    pub(super) fn commit_record(&self) -> SourceState {
        match self.postcopy {
            Postcopy::Begun => SourceState::Serving,
            _ => SourceState::Committed,
        }
    }

    pub(super) fn on_commit_recorded(&mut self, answer: Result<(), PeerText>) {
        match (&self.state, answer) {
            (State::Deciding, Ok(())) => self.hand_over(),
            (State::Deciding, Err(detail)) => {
                self.undo_commit(Failure::Record { detail }, PeerNotice::Owed);
            }
            (State::Finishing { .. } | State::Ending { .. } | State::AwaitingReady, answer) => {
                match answer {
                    Ok(()) => self.commit_when_recorded(),
                    Err(detail) => self.abort(Failure::Record { detail }),
                }
            }
            _ => {}
        }
    }

    /// Hands the guest over: the commit is on disk.
    pub(super) fn hand_over(&mut self) {
        let decision = self.commit_decision();
        self.state = State::Asking { decision, trouble: None };
        self.push(Action::ReleaseGuest);
        if self.link.is_up() {
            self.link.failures = 0;
            self.link.expect_answer(self.now);
            self.say(SourceMessage::Commit);
        } else {
            self.link.plan_redial(self.now);
        }
    }

    /// Sends the decision on a new connection.
    pub(super) fn send_decision(&mut self) {
        let decision = match &self.state {
            State::Asking { decision, .. } => *decision,
            State::Serving => Decision::Serve,
            _ => Decision::Aborted,
        };
        let migration = self.config.migration;
        self.say(SourceMessage::Resolve { migration, decision });
        self.say_withdrawn();
        match decision {
            Decision::Serve => self.link.expect_list(self.now),
            _ => self.link.expect_answer(self.now),
        }
    }

    /// Handles messages after the decision, whichever it was.
    pub(super) fn on_late_message(&mut self, message: &DestinationMessage) {
        if matches!((&self.state, message), (State::Serving, DestinationMessage::Unknown)) {
            // Its node has lost the record, so it cannot know whether the process there lives.
            return self.drop_connection("the destination does not know this migration");
        }
        self.link.failures = 0;
        match &self.state {
            State::Unwinding(_) => self.on_message_while_unwinding(message),
            State::Asking { decision, .. } => self.on_answer(*decision, message),
            State::Serving => self.on_message_while_serving(message),
            State::Reclaiming { .. } => self.on_answer_too_late(message),
            _ => {}
        }
    }

    /// The operator has ordered otherwise since it was asked for; the order is not recorded yet.
    fn on_answer_too_late(&mut self, message: &DestinationMessage) {
        match (message, self.postcopy) {
            (DestinationMessage::Missing(missing), Postcopy::Begun) => self.serve_again(missing),
            (DestinationMessage::Running(_), Postcopy::Begun) => {
                self.begin_to_serve();
                self.record(SourceState::Serving);
            }
            (DestinationMessage::Running(_), _) => self.on_running(),
            _ => {}
        }
    }

    fn on_answer(&mut self, decision: Decision, message: &DestinationMessage) {
        match (decision, message) {
            (Decision::Commit, DestinationMessage::Running(_)) => self.on_running(),
            (Decision::Serve, DestinationMessage::Running(_)) => self.begin_to_serve(),
            (Decision::Serve, DestinationMessage::Missing(missing)) => self.serve_again(missing),
            (Decision::Serve, DestinationMessage::Complete { longest_wait_us }) => {
                self.on_complete(*longest_wait_us);
            }
            (Decision::Serve, DestinationMessage::Lost(complaint)) => self.on_lost(complaint),
            (Decision::Aborted, DestinationMessage::Running(_)) => {
                self.stay_in_doubt(Failure::Forced);
            }
            (_, DestinationMessage::Discarded)
            | (Decision::Aborted, DestinationMessage::Unknown) => self.on_given_back(),
            (Decision::Commit | Decision::Serve, DestinationMessage::Unknown) => {
                self.stay_in_doubt(Failure::Forgotten);
            }
            (_, DestinationMessage::GaveUp(complaint)) => {
                self.on_given_up(Failure::from(complaint));
            }
            (_, DestinationMessage::Abort(complaint)) => {
                self.stay_in_doubt(Failure::from(complaint));
            }
            (Decision::Commit | Decision::Serve, DestinationMessage::NotTaken(complaint)) => {
                self.on_not_taken(complaint);
            }
            (Decision::Aborted, DestinationMessage::NotTaken(_)) => self.send_decision(),
            (_, DestinationMessage::Ready { .. }) => {}
            (_, message) => {
                let (message, waiting) = (message.name(), self.state.name());
                self.on_violation(ProtocolError::Unexpected { message, waiting });
            }
        }
    }

    /// The guest runs at the destination, which needs nothing more of it.
    pub(super) fn on_running(&mut self) {
        self.notes.runs(self.now);
        self.notes.enter(Phase::Resume, self.now);
        self.link.up();
        self.state = State::Closing { outcome: Outcome::Migrated, error: None };
        self.record(SourceState::Done);
    }

    pub(super) fn on_closed(&mut self) {
        let State::Closing { outcome, error } = &mut self.state else { return };
        let (outcome, error) = (*outcome, error.take());
        if outcome == Outcome::Migrated {
            self.say(SourceMessage::Finish);
        }
        self.push(Action::DropGuest);
        self.finish(outcome, error.as_ref());
        self.settle();
    }

    /// The destination has said, with a durable record, that its copy will never run: this copy may
    /// run, whatever was decided.
    pub(super) fn on_given_back(&mut self) {
        let State::Asking { trouble, .. } = &mut self.state else { return };
        let error = trouble.take().unwrap_or_else(|| MigrationError {
            phase: Phase::Commit,
            failure: Failure::Peer {
                reason: Reason::Other,
                text: PeerText::new("its copy could not be run; the log there tells why"),
            },
        });
        self.link.up();
        self.state = State::Reclaiming { error, notify: false, asked: None };
        self.record(SourceState::Aborted);
    }

    /// The destination keeps its copy until it hears who owns the guest: the source takes it back,
    /// once a record says so.
    fn on_not_taken(&mut self, complaint: &Complaint) {
        let error = self.error(Failure::from(complaint));
        self.link.up();
        self.state = State::Reclaiming { error, notify: true, asked: None };
        self.record(SourceState::Undecided);
    }

    /// Only an operator can tell now where the guest is.
    fn stay_in_doubt(&mut self, failure: Failure) {
        let error = self.error(failure);
        if self.link.is_up() {
            self.push(Action::Disconnect);
        }
        self.link.down();
        self.state = State::InDoubt;
        self.finish(Outcome::InDoubt, Some(&error));
    }

    pub(super) fn on_resolve(&mut self, choice: OperatorChoice) {
        if self.can_resolve(choice).is_err() {
            return;
        }
        let error = self.error(Failure::Operator { choice });
        match choice {
            OperatorChoice::Run => {
                let asked = match &self.state {
                    State::Asking { decision, .. } => Some(*decision),
                    _ => None,
                };
                // The destination is told, whatever it has answered before: it may be waiting to
                // hear who owns the guest.
                self.state = State::Reclaiming { error, notify: true, asked };
                self.record(SourceState::Undecided);
            }
            OperatorChoice::Discard if self.postcopy == Postcopy::Begun => {
                self.give_up_memory(&error);
            }
            OperatorChoice::Discard => {
                self.state = State::Closing { outcome: Outcome::Lost, error: Some(error) };
                self.record(SourceState::Done);
            }
        }
    }
}
