//! The early commit: the source commits before it knows that the destination is ready.
//! docs/adr/0040-early-commit.md gives the reasons.
//!
//! The commit is recorded while the last pages are sent, and follows them. The destination cannot
//! be complete before [`super::Action::SendRemainder`] (for post-copy
//! [`super::Action::CollectMissing`]): until then the source may resume the guest at once, whatever
//! is recorded. From then on it first undoes the record, and once the commit is sent, only the
//! destination can give the guest back.

use super::Source;
use super::standstill::Step;
use super::state::{PeerNotice, State};
use crate::error::Failure;
use crate::phase::Phase;
use crate::protocol::{Decision, FEATURE_EARLY_COMMIT, SourceMessage};
use crate::record::SourceState;

impl Source {
    /// Returns whether the commit follows the last pages, whatever the destination says.
    pub(crate) fn commits_early(&self) -> bool {
        self.features.has(FEATURE_EARLY_COMMIT)
    }

    /// Returns whether the destination may be complete, and the commit recorded but not sent.
    pub(super) fn is_about_to_commit(&self) -> bool {
        self.commits_early() && matches!(self.state, State::Ending { .. } | State::AwaitingReady)
    }

    /// Returns whether the commit is durable.
    fn has_recorded_commit(&self) -> bool {
        self.records.last_answered() == Some(self.commit_record())
    }

    /// Waits for the record of the commit; everything is sent.
    pub(super) fn await_record(&mut self) {
        let awaited = if self.has_recorded_commit() { Step::Takeover } else { Step::Record };
        self.standstill.begin(awaited, self.now);
        self.commit_when_recorded();
    }

    /// Commits once everything is sent and the commit is recorded; or resumes the guest here, if it
    /// has by now been paused for too long.
    pub(super) fn commit_when_recorded(&mut self) {
        if !matches!(self.state, State::AwaitingReady) || !self.has_recorded_commit() {
            return;
        }
        if self.standstill.until().is_some_and(|until| until <= self.now) {
            return self.abort(self.stood_too_long());
        }
        self.standstill.end(Step::Record, self.now);
        self.standstill.begin(Step::Takeover, self.now);
        if self.standstill.until().is_some() {
            self.notes.standstill = Some(self.standstill.report(self.now));
        }
        self.notes.enter(Phase::Commit, self.now);
        self.hand_over();
    }

    /// Takes the guest back after a commit that was not sent. It may be on disk, and the node may
    /// act on it if this process dies: it is undone first. `notice` is what the destination knows.
    pub(super) fn undo_commit(&mut self, failure: Failure, notice: PeerNotice) {
        let error = self.error(failure);
        self.awaited = None;
        self.end_standstill();
        self.end_throttle();
        let notify = notice != PeerNotice::Done;
        self.state = State::Reclaiming { error, notify, asked: None };
        self.record(SourceState::Undecided);
    }

    /// Has the record say again that nothing is decided, if it says otherwise or is about to. The
    /// guest, which the destination cannot run, does not wait for that.
    pub(super) fn forget_commit(&mut self) {
        if self.records.last_asked() == Some(self.commit_record()) {
            self.record(SourceState::Undecided);
        }
    }

    /// The guest has been paused for too long: wants it back, unless the destination is already
    /// taking it over.
    pub(super) fn withdraw(&mut self, failure: Failure) {
        self.standstill.stop_clock();
        self.awaited = None;
        let error = self.error(failure);
        if let State::Asking { trouble, .. } = &mut self.state {
            *trouble = Some(error);
            self.say_withdrawn();
        }
    }

    /// Repeats, after the decision on a new connection, that the guest is wanted back.
    pub(super) fn say_withdrawn(&mut self) {
        if let State::Asking { decision: Decision::Commit | Decision::Serve, trouble: Some(error) } =
            &self.state
            && matches!(error.failure, Failure::Downtime { .. } | Failure::NoAnswer { .. })
        {
            let complaint = error.complaint();
            self.say(SourceMessage::Withdraw(complaint));
        }
    }

    /// The destination has failed before the guest ran, and has recorded that it never will.
    pub(super) fn on_given_up(&mut self, failure: Failure) {
        let error = self.error(failure);
        if let State::Asking { decision: Decision::Commit | Decision::Serve, trouble } =
            &mut self.state
        {
            *trouble = Some(error);
        }
        self.on_given_back();
    }
}
