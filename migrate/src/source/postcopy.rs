//! Post-copy: the guest is handed over while the destination lacks a part of its memory, and this
//! side keeps all of it until the destination says that it has everything.
//! docs/adr/0029-post-copy.md gives the reasons.

use std::time::Duration;

use super::state::State;
use super::{Action, Source};
use crate::decisions::{Cause, Decided, DecisionKind};
use crate::error::{Failure, MigrationError, PostcopyRefused, ProtocolError, RecoverRefused};
use crate::guest::{Refusal, RefusalKind};
use crate::memory::PageSet;
use crate::phase::Phase;
use crate::protocol::{
    Complaint, Decision, DestinationMessage, FEATURE_POSTCOPY, PageMasks, SourceMessage,
};
use crate::record::SourceState;
use crate::report::Outcome;
use crate::stall::OnStall;
use crate::waits::PageWaits;

/// Whether memory is to follow the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Postcopy {
    /// It goes before the guest.
    #[default]
    No,
    /// It is to follow the guest as soon as the current step ends.
    Wanted,
    /// The data streams have been told to end: only an abort leads back.
    Begun,
}

impl Source {
    /// Returns whether [`super::Event::Postcopy`] would be accepted now.
    ///
    /// # Errors
    /// If one of the sides cannot, disks are copied with the guest, the guest is too large, or it
    /// is too late.
    pub fn can_postcopy(&self) -> Result<(), PostcopyRefused> {
        match self.state {
            State::Settled | State::Closing { .. } => Err(PostcopyRefused::Over),
            ref state if !state.is_uncommitted() || self.postcopy != Postcopy::No => {
                Err(PostcopyRefused::Late)
            }
            _ if self.phase() > Phase::Precopy => Err(PostcopyRefused::Late),
            _ if !self.config.guest.disks.is_empty() => Err(PostcopyRefused::Disks),
            _ if self.config.guest.layout.chunks() > PageMasks::CHUNKS_MAX => {
                Err(PostcopyRefused::TooLarge)
            }
            // What the destination can is known from its greeting on.
            _ if self.phase() > Phase::Connect && !self.features.has(FEATURE_POSTCOPY) => {
                Err(PostcopyRefused::Unsupported)
            }
            _ => Ok(()),
        }
    }

    /// Returns whether the destination may be looked for at another address.
    ///
    /// # Errors
    /// If the destination is in reach and the guest has not been handed over, or nothing is left to
    /// hear of the destination.
    pub fn can_recover(&self) -> Result<(), RecoverRefused> {
        match self.state {
            State::Asking { .. } | State::Serving => Ok(()),
            _ if self.present_outage().is_some() => Ok(()),
            ref state if state.is_uncommitted() => Err(RecoverRefused::NotCommitted),
            _ => Err(RecoverRefused::Over),
        }
    }

    /// Returns whether `state` leads to memory that follows its guest, unless something fails.
    pub(super) fn will_serve(&self, state: &State) -> bool {
        let is_handing_over = matches!(
            state,
            State::Deciding | State::Asking { decision: Decision::Serve, .. } | State::Serving
        );
        self.postcopy == Postcopy::Begun && (state.is_uncommitted() || is_handing_over)
    }

    /// Returns why a stalled migration goes on with rounds although memory was to follow the guest.
    pub(super) fn waits_for_want_of_postcopy(&self) -> Option<PostcopyRefused> {
        let limits = self.limits();
        let is_stalled = self.notes.holds(DecisionKind::Stalled) && self.phase() == Phase::Precopy;
        // A longer pause comes first.
        let is_raised = limits.downtime == limits.downtime_ceiling();
        if !is_stalled || !is_raised || limits.on_stall != OnStall::Postcopy {
            return None;
        }
        self.can_postcopy().err().filter(|why| why.is_permanent())
    }

    pub(super) fn on_postcopy(&mut self) {
        if self.can_postcopy().is_err() {
            return;
        }
        self.postcopy = Postcopy::Wanted;
        if matches!(self.state, State::Copying | State::Resting { .. }) {
            self.begin_postcopy();
        }
    }

    /// Ends pre-copy. The guest runs on, so neither what is in flight nor the drop of most pages at
    /// the destination is part of its pause.
    pub(super) fn begin_postcopy(&mut self) {
        if !self.features.has(FEATURE_POSTCOPY) {
            let text = PostcopyRefused::Unsupported.to_string();
            return self.abort(Failure::Refused(Refusal::new(RefusalKind::Version, text)));
        }
        let cause = match self.postcopy {
            Postcopy::Wanted => Cause::Order,
            _ => Cause::Stall,
        };
        self.note(Decided::Postcopy { cause });
        self.postcopy = Postcopy::Begun;
        self.end_throttle();
        self.state = State::Draining;
        self.push(Action::EndStreams);
    }

    pub(super) fn on_streams_ended(&mut self, missing: PageSet) {
        if matches!(self.state, State::Draining) {
            self.state = State::Clearing;
            self.round.follow(missing.count(), self.notes.transfer);
            self.await_answer("Cleared");
            self.say(SourceMessage::Missing(PageMasks::of(&missing)));
            self.missing = missing;
        }
    }

    pub(super) fn on_cleared(&mut self) {
        self.awaited = None;
        self.switch_over(self.limits().standstill());
    }

    pub(super) fn on_missing_collected(&mut self, written: &PageSet) {
        if matches!(self.state, State::Ending { .. }) {
            self.missing.union(written);
            self.round.follow(self.missing.count(), self.notes.transfer);
            self.say(SourceMessage::Missing(PageMasks::of(written)));
            // Loading the state may touch pages that are missing.
            self.serves = true;
            let missing = self.missing.take();
            self.push(Action::Serve { missing });
            self.await_ready();
        }
    }

    /// Returns the decision that a recorded commit stands for.
    pub(super) fn commit_decision(&self) -> Decision {
        match self.postcopy {
            Postcopy::Begun => Decision::Serve,
            _ => Decision::Commit,
        }
    }

    /// The guest runs at the destination: it must never run here again.
    pub(super) fn begin_to_serve(&mut self) {
        self.notes.runs(self.now);
        self.notes.enter(Phase::Postcopy, self.now);
        self.state = State::Serving;
        self.rest_if_served();
    }

    /// Sends what is not requested, and waits without a deadline, but only once this side knows
    /// what the destination lacks: if it does not say so in time, this side reconnects and asks
    /// again. Sent earlier, it would hold up the messages on which the paused guest waits.
    fn rest_if_served(&mut self) {
        if self.serves && matches!(self.state, State::Serving) {
            self.link.up();
            self.push(Action::ServeRest);
        }
    }

    /// The destination has been reached again, and says what it lacks. That holds for as long as it
    /// stays reachable: saying it again changes nothing.
    pub(super) fn serve_again(&mut self, missing: &PageMasks) {
        if self.serves {
            return;
        }
        match missing.to_set(self.config.guest.layout.chunks()) {
            Some(missing) => {
                self.serves = true;
                self.round.follow(missing.count(), self.notes.transfer);
                self.push(Action::Serve { missing });
                self.rest_if_served();
            }
            None => {
                let text = "pages are missing that the guest does not have".to_owned();
                self.on_violation(ProtocolError::Invalid(text));
            }
        }
    }

    pub(super) fn on_message_while_serving(&mut self, message: &DestinationMessage) {
        match message {
            DestinationMessage::Running(_) => self.rest_if_served(),
            DestinationMessage::Missing(missing) => self.serve_again(missing),
            DestinationMessage::Complete { longest_wait_us } => self.on_complete(*longest_wait_us),
            // It has run there, so it is lost, whatever the record there says.
            DestinationMessage::Lost(complaint) | DestinationMessage::Abort(complaint) => {
                self.on_lost(complaint);
            }
            DestinationMessage::Ready { .. } => {}
            message => {
                let (message, waiting) = (message.name(), self.state.name());
                self.on_violation(ProtocolError::Unexpected { message, waiting });
            }
        }
    }

    pub(super) fn on_complete(&mut self, longest_wait_us: u64) {
        self.notes.page_waits = PageWaits::of_longest(Duration::from_micros(longest_wait_us));
        self.on_running();
    }

    pub(super) fn on_lost(&mut self, complaint: &Complaint) {
        let error = self.error(Failure::from(complaint));
        self.link.up();
        self.state = State::Closing { outcome: Outcome::Lost, error: Some(error) };
        self.record(SourceState::Done);
    }

    /// Frees the memory on an operator's order. The destination may only be out of reach, and waits
    /// for pages: the record stays *serving*, so once this process has ended, the node tells it.
    pub(super) fn give_up_memory(&mut self, error: &MigrationError) {
        self.push(Action::DropGuest);
        self.finish(Outcome::Lost, Some(error));
        self.settle();
    }

    /// Returns what an operator can do while the destination cannot be reached.
    pub(super) fn way_out_while_serving(&self) -> String {
        let name = &self.config.guest.name;
        format!(
            "guest {name} runs at the destination, which still needs memory from here and is out of reach, or \
             has lost its record: both go on automatically once it is back. If it can be reached at another \
             address only: `lighter migrate {name} --recover ADDRESS`. If it is gone for good: `lighter migrate {name} \
             --resolve discard --unsafe` here frees the memory; the guest is lost then"
        )
    }
}
