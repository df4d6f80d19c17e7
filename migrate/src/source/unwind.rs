//! Undoing a migration: after a failure or a cancel, and after a commit whose guest the destination
//! has durably given back.

use super::reconnect::RECONNECT_WITHIN;
use super::state::{GuestBack, LinkStatus, PeerNotice, State, Unwind};
use super::{Action, Source};
use crate::error::{Failure, MigrationError};
use crate::guest::{GuestError, RunState};
use crate::phase::Phase;
use crate::protocol::{Decision, DestinationMessage, FEATURE_RECONNECT, SourceMessage};
use crate::reason::Reason;
use crate::record::SourceState;
use crate::report::Outcome;
use crate::text::PeerText;

impl Source {
    /// Aborts the migration before the commit; the destination is told why.
    pub(super) fn abort(&mut self, failure: Failure) {
        if self.is_about_to_commit() {
            return self.undo_commit(failure, PeerNotice::Owed);
        }
        let complaint = self.error(failure.clone()).complaint();
        let notice = match self.state {
            State::Connecting | State::Opening => PeerNotice::Done,
            State::Ending { .. } | State::AwaitingReady => PeerNotice::Owed,
            _ if self.link.is_up() => PeerNotice::Asked,
            _ => self.notice_of_lost(),
        };
        if notice != PeerNotice::Done {
            self.say(SourceMessage::Abort(complaint));
        }
        self.unwind(failure, notice);
    }

    /// Returns what a destination that is out of reach is to be told of an abort.
    fn notice_of_lost(&self) -> PeerNotice {
        let is_kept = self.features.has(FEATURE_RECONNECT) && self.notes.phase() >= Phase::Prepare;
        if is_kept {
            PeerNotice::OwedUntil(self.now.saturating_add(RECONNECT_WITHIN))
        } else {
            PeerNotice::Done
        }
    }

    /// Aborts the migration; the destination knows.
    pub(super) fn abort_notified(&mut self, failure: Failure) {
        if self.is_about_to_commit() {
            return self.undo_commit(failure, PeerNotice::Done);
        }
        self.unwind(failure, PeerNotice::Done);
    }

    /// Aborts a migration whose guest could not be resumed here.
    pub(super) fn abort_stuck(&mut self, failure: Failure, error: GuestError) {
        self.abort(failure);
        if let State::Unwinding(unwind) = &mut self.state {
            unwind.guest = GuestBack::Stuck(error);
            self.go_on_unwinding();
        }
    }

    fn unwind(&mut self, failure: Failure, notice: PeerNotice) {
        let gone = matches!(failure, Failure::GuestStopped { .. });
        let guest = match self.state {
            _ if gone => GuestBack::Gone,
            State::Pausing => GuestBack::Pausing,
            // It has been told to resume.
            State::Returning { resumed: false, .. } => GuestBack::Resuming,
            State::Finishing { .. } | State::Ending { .. } | State::AwaitingReady
                if self.run_state == RunState::Running =>
            {
                GuestBack::Resuming
            }
            _ => GuestBack::Back,
        };
        let is_told = matches!(self.state, State::Returning { .. });
        let error = self.error(failure);
        self.awaited = None;
        self.end_standstill();
        self.end_throttle();
        if self.notes.phase() >= Phase::Precopy {
            self.push(Action::StopSending);
            if guest == GuestBack::Resuming && !is_told {
                self.push(Action::ResumeGuest);
            }
            self.push(Action::StopDirtyLog);
        }
        self.forget_commit();
        self.begin_unwinding(error, guest, notice);
    }

    fn begin_unwinding(&mut self, error: MigrationError, guest: GuestBack, notice: PeerNotice) {
        self.state = State::Unwinding(Unwind::new(error, guest, notice));
        match (notice, self.link.is_up()) {
            (PeerNotice::Done, _) => {}
            (_, true) => self.link.expect_answer(self.now),
            (_, false) => self.link.plan_redial(self.now),
        }
        self.go_on_unwinding();
    }

    /// Reports once the guest is resumed and the destination is told (or is out of reach for now);
    /// ends once both are done and recorded.
    fn go_on_unwinding(&mut self) {
        let State::Unwinding(unwind) = &mut self.state else { return };
        if matches!(unwind.guest, GuestBack::Pausing | GuestBack::Resuming) || unwind.recording {
            return;
        }
        let notified = unwind.notice == PeerNotice::Done;
        let end = unwind.end();
        let recorded = self.records.last_asked().is_none_or(|last| last == end);
        if notified && !recorded {
            unwind.recording = true;
            return self.record(end);
        }
        if notified || !self.link.is_up() {
            self.report_unwound();
        }
        if notified {
            self.settle();
        }
    }

    fn report_unwound(&mut self) {
        let State::Unwinding(unwind) = &mut self.state else { return };
        if std::mem::replace(&mut unwind.reported, true) {
            return;
        }
        let outcome = match unwind.guest {
            GuestBack::Gone => Outcome::Lost,
            _ => Outcome::StayedAtSource,
        };
        let error = unwind.error.clone();
        self.finish(outcome, Some(&error));
    }

    /// Handles a pause that was requested before the abort and has completed only now.
    pub(super) fn on_paused_too_late(&mut self, was: RunState) {
        let State::Unwinding(unwind) = &mut self.state else { return };
        if unwind.guest == GuestBack::Pausing {
            if was == RunState::Running {
                unwind.guest = GuestBack::Resuming;
                self.push(Action::ResumeGuest);
            } else {
                unwind.guest = GuestBack::Back;
                self.go_on_unwinding();
            }
        }
    }

    /// Keeps a guest that cannot be resumed as it is (another guest may have locked its disk): its
    /// memory may be the only copy.
    pub(super) fn on_resumed(&mut self, answer: Result<(), GuestError>) {
        if matches!(self.state, State::Returning { .. }) {
            return self.on_resumed_after_return(answer);
        }
        if let State::Unwinding(unwind) = &mut self.state
            && unwind.guest == GuestBack::Resuming
        {
            unwind.guest = match answer {
                Ok(()) => {
                    self.notes.runs(self.now);
                    GuestBack::Back
                }
                Err(error) => GuestBack::Stuck(error),
            };
            self.go_on_unwinding();
        }
    }

    /// The pause for the hand-over or for a dry run has failed. Some vCPUs may be stopped: resume
    /// all of them if the guest ran before.
    pub(super) fn on_pause_failed(&mut self, was: RunState, error: GuestError) {
        match self.state {
            State::Probing | State::Pausing => {
                self.run_state = was;
                self.state = State::Finishing { round_sent: false, flushed: false, saved: false };
                self.abort(Failure::Guest(error));
            }
            // A dry run that was under way could not resume it.
            State::Unwinding(ref mut unwind)
                if unwind.guest == GuestBack::Back && was == RunState::Running =>
            {
                unwind.guest = GuestBack::Resuming;
                self.push(Action::ResumeGuest);
            }
            State::Unwinding(_) => self.on_paused_too_late(was),
            _ => {}
        }
    }

    pub(super) fn on_guest_failed(&mut self, error: GuestError) {
        if self.state.is_uncommitted() {
            self.abort(Failure::Guest(error));
        }
    }

    pub(super) fn on_guest_stopped(&mut self, detail: PeerText) {
        match &mut self.state {
            State::Unwinding(unwind) if !unwind.reported => {
                unwind.guest = GuestBack::Gone;
                unwind.error.failure = Failure::GuestStopped { detail };
                self.go_on_unwinding();
            }
            State::Reclaiming { error, .. } => error.failure = Failure::GuestStopped { detail },
            state if state.is_uncommitted() => self.abort(Failure::GuestStopped { detail }),
            _ => {}
        }
    }

    pub(super) fn on_not_connected(&mut self, reason: Reason, detail: PeerText) {
        if self.state.is_uncommitted() {
            self.link.down();
            self.abort(Failure::NotConnected { reason, detail });
        } else {
            self.on_connection_lost(detail);
        }
    }

    pub(super) fn on_connection_lost(&mut self, detail: PeerText) {
        self.serves = false;
        if self.link.status == LinkStatus::Dialing {
            self.link.down();
        }
        if self.may_return() {
            self.go_back_out_of_reach();
        }
        if self.may_reconnect() {
            return self.reconnect(detail);
        }
        if self.state.is_uncommitted() {
            self.link.down();
            let failure = self.connection_lost(detail);
            return self.abort(failure);
        }
        let (error, owed) = (self.error(Failure::ConnectionLost { detail }), self.notice_of_lost());
        match &mut self.state {
            State::Asking { decision, trouble } => {
                // Why the guest comes back, if it does.
                trouble.get_or_insert(error);
                let could_not_record = *decision == Decision::Aborted;
                self.link.plan_redial(self.now);
                if could_not_record {
                    // The disk may have room by now.
                    self.record(SourceState::Undecided);
                }
            }
            State::Serving => self.link.plan_redial(self.now),
            State::Unwinding(unwind) => match unwind.notice {
                PeerNotice::Done => self.link.down(),
                PeerNotice::Asked if owed != PeerNotice::Done => {
                    unwind.notice = owed;
                    self.link.plan_redial(self.now);
                    self.go_on_unwinding();
                }
                PeerNotice::OwedUntil(until) if until > self.now => {
                    self.link.plan_redial(self.now);
                    self.go_on_unwinding();
                }
                PeerNotice::Asked | PeerNotice::OwedUntil(_) => {
                    unwind.notice = PeerNotice::Done;
                    self.link.down();
                    self.go_on_unwinding();
                }
                PeerNotice::Owed => {
                    self.link.plan_redial(self.now);
                    self.go_on_unwinding();
                }
            },
            _ => self.link.down(),
        }
    }

    /// Returns the failure of a migration that ends with its connection, and how it outlasts the
    /// loss of an address of the destination.
    pub(super) fn connection_lost(&self, detail: PeerText) -> Failure {
        if self.config.has_links || self.notes.phase() == Phase::Connect {
            return Failure::ConnectionLost { detail };
        }
        let detail = PeerText::new(&format!(
            "{detail} (with --via and several addresses, it goes on over those that are left)"
        ));
        Failure::ConnectionLost { detail }
    }

    /// Takes the guest back without the destination, which has been asked to give it back: the
    /// record that it is the source's is written after all.
    pub(super) fn on_recorded_after_all(&mut self) {
        let State::Asking { decision: Decision::Aborted, trouble } = &mut self.state else {
            return;
        };
        let Some(error) = trouble.take() else { return };
        self.state = State::Reclaiming { error, notify: true, asked: None };
        self.on_reclaimed(&Ok(()));
    }

    pub(super) fn on_message_while_unwinding(&mut self, message: &DestinationMessage) {
        let State::Unwinding(unwind) = &mut self.state else { return };
        match message {
            DestinationMessage::Discarded
            | DestinationMessage::Unknown
            | DestinationMessage::Refused(_)
            | DestinationMessage::Lost(_)
            | DestinationMessage::GaveUp(_)
            | DestinationMessage::Abort(_) => {
                unwind.notice = PeerNotice::Done;
                self.link.up();
                self.go_on_unwinding();
            }
            DestinationMessage::NotTaken(_) => self.send_decision(),
            DestinationMessage::Running(_) => {
                unwind.notice = PeerNotice::Done;
                unwind.reported = false;
                unwind.runs_there = true;
                if unwind.guest != GuestBack::Gone {
                    unwind.error.failure = Failure::Forced;
                }
                self.link.up();
                self.go_on_unwinding();
            }
            // They were sent before the destination heard of the abort.
            DestinationMessage::Welcome { .. }
            | DestinationMessage::Prepared
            | DestinationMessage::Cleared
            | DestinationMessage::Missing(_)
            | DestinationMessage::Complete { .. }
            | DestinationMessage::Applied { .. }
            | DestinationMessage::Returned
            | DestinationMessage::Ready { .. } => {}
        }
    }

    /// Handles the result of writing the last record of the unwind.
    pub(super) fn on_end_recorded(&mut self, answer: &Result<(), PeerText>) {
        match &mut self.state {
            State::Reclaiming { .. } => self.on_reclaimed(answer),
            State::Unwinding(unwind) => {
                unwind.recording = false;
                self.go_on_unwinding();
            }
            _ => {}
        }
    }

    /// The record still says that the guest is the destination's, and the node would act on that
    /// after a crash: the operator's order has no effect, and the operator is told why.
    fn stay_given_away(&mut self, detail: PeerText, asked: Option<Decision>) {
        self.not_taken_back = Some(detail);
        let Some(decision) = asked else {
            self.state = State::InDoubt;
            return;
        };
        self.state = State::Asking { decision, trouble: None };
        if !self.link.is_up() {
            self.link.plan_redial(self.now);
        }
    }

    /// Handles the result of recording that the source owns the guest again. If the destination has
    /// given the guest back (`notify` is false), the record there says so, and a failure to write
    /// it here as well is harmless. If not, after such a failure the destination must first give
    /// it back.
    pub(super) fn on_reclaimed(&mut self, answer: &Result<(), PeerText>) {
        let State::Reclaiming { error, notify, asked } = &self.state else { return };
        let (error, notify, asked) = (error.clone(), *notify, *asked);
        let by_operator = matches!(error.failure, Failure::Operator { .. });
        if let (Err(detail), true) = (answer, by_operator) {
            return self.stay_given_away(detail.clone(), asked);
        }
        if answer.is_err() && notify {
            self.state = State::Asking { decision: Decision::Aborted, trouble: Some(error) };
            if self.link.is_up() {
                self.send_decision();
            } else {
                self.link.plan_redial(self.now);
            }
            return;
        }
        let guest = match (self.run_state, &error.failure) {
            (_, Failure::GuestStopped { .. }) => GuestBack::Gone,
            (RunState::Running, _) => GuestBack::Resuming,
            (RunState::Paused, _) => GuestBack::Back,
        };
        self.push(Action::StopSending);
        if guest == GuestBack::Resuming {
            self.push(Action::ResumeGuest);
        }
        self.push(Action::StopDirtyLog);
        let notice = if notify { PeerNotice::Owed } else { PeerNotice::Done };
        if notify && self.link.is_up() {
            let complaint = error.complaint();
            self.say(SourceMessage::Abort(complaint));
        }
        self.begin_unwinding(error, guest, notice);
    }
}
