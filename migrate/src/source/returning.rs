//! Back from a hand-over that takes too long, or whose connection is lost: the guest runs on here,
//! and rounds go on.
//!
//! The last round goes on as well, unless the connection is lost, now as one of a guest that runs:
//! each page was re-armed before it was copied, so the next round sends what the guest writes from
//! now on. Once the data streams have ended, there is no way back: the destination may be ready,
//! and only a record says that it must not run the guest. For post-copy they end before the pause.
//!
//! `Return` and the pages go over different streams. A destination that read the end of all pages
//! first would take the state of the hand-over that was called off for the last one, so no other
//! begins before the destination has answered.

use super::postcopy::Postcopy;
use super::state::State;
use super::{Action, Source};
use crate::decisions::Decided;
use crate::error::Failure;
use crate::guest::{GuestError, RunState};
use crate::protocol::{FEATURE_RECONNECT, SourceMessage};

/// How often a migration calls a hand-over off before it fails.
const RETURNS_MAX: u32 = 2;

impl Source {
    /// Returns whether a hand-over may be called off without the migration.
    pub(crate) fn may_return(&self) -> bool {
        matches!(self.state, State::Finishing { .. })
            && self.run_state == RunState::Running
            && self.postcopy != Postcopy::Begun
            && self.features.has(FEATURE_RECONNECT)
            && self.notes.returns() < RETURNS_MAX
    }

    /// Calls off a hand-over that takes too long.
    pub(super) fn go_back(&mut self) {
        let allowed = self.standstill.allowed().unwrap_or_default();
        let waited_for = self.standstill.why();
        self.note(Decided::CalledOff { allowed_seconds: allowed.as_secs_f64(), waited_for });
        self.call_off();
        self.say(SourceMessage::Return);
        self.await_answer("Returned");
        self.push(Action::ResumeGuest);
    }

    /// Calls off a hand-over whose connection is lost: `Continue` will have the destination forget
    /// it.
    pub(super) fn go_back_out_of_reach(&mut self) {
        self.call_off();
        self.push(Action::ResumeGuest);
    }

    fn call_off(&mut self) {
        let State::Finishing { round_sent, saved, .. } = self.state else { return };
        self.end_standstill();
        self.state = State::Returning { round_sent, saved, resumed: false, answered: false };
        self.forget_commit();
    }

    /// Handles the answer of a guest that was to run on.
    pub(super) fn on_resumed_after_return(&mut self, answer: Result<(), GuestError>) {
        let State::Returning { resumed, .. } = &mut self.state else { return };
        match answer {
            Ok(()) => {
                *resumed = true;
                self.notes.goes_back(self.now);
                self.go_on_after_return();
            }
            Err(error) => self.abort_stuck(Failure::Guest(error.clone()), error),
        }
    }

    /// The destination has forgotten what came of the hand-over.
    pub(super) fn on_returned(&mut self) {
        if let State::Returning { answered, .. } = &mut self.state {
            *answered = true;
            self.awaited = None;
            self.go_on_after_return();
        }
    }

    /// Goes on once nothing of the hand-over is under way. What a pause costs is measured again
    /// before the next round, and the disks are flushed for that: if one still hangs, the guest
    /// runs meanwhile.
    pub(super) fn go_on_after_return(&mut self) {
        if let State::Returning { round_sent: true, saved: true, resumed: true, answered: true } =
            self.state
        {
            self.measure_again();
        }
    }
}
