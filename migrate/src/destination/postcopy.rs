//! Post-copy: the guest is handed over while a part of its memory is missing, and runs while that
//! is fetched. docs/adr/0029-post-copy.md gives the reasons.

use std::time::Duration;

use super::state::{Missing, State};
use super::{Action, Destination};
use crate::error::{Failure, OperatorChoice, ProtocolError};
use crate::guest::GuestError;
use crate::phase::Phase;
use crate::protocol::{DestinationMessage, PageMasks};
use crate::record::DestinationState;
use crate::report::Outcome;

impl Destination {
    /// The source says what is missing: first while the guest runs there, then once it is paused.
    pub(super) fn on_missing(&mut self, masks: &PageMasks) {
        let chunks = self.guest.as_ref().map_or(0, |guest| guest.layout.chunks());
        let Some(set) = masks.to_set(chunks) else {
            let text = "pages are missing that the guest does not have".to_owned();
            return self.on_violation(ProtocolError::Invalid(text));
        };
        let pages = set.count();
        let State::Receiving(received) = &mut self.state else { return };
        match (&received.missing, received.switching_over) {
            (Missing::None, false) => received.missing = Missing::Announced(set),
            (Missing::Cleared, true) => received.missing = Missing::Final(set),
            _ => {
                let (message, waiting) = ("Missing", self.state.name());
                return self.on_violation(ProtocolError::Unexpected { message, waiting });
            }
        }
        self.is_postcopy = true;
        self.was_missing.0 = self.was_missing.0.saturating_add(pages);
        self.clear_when_drained();
        self.load_when_complete();
    }

    /// Returns about how many pages are missing while they are fetched: one that comes twice counts
    /// twice.
    pub(super) fn missing_pages(&self) -> u64 {
        let (pages, before) = &self.was_missing;
        let fetched = self.notes.transfer.pages().saturating_sub(before.pages());
        if self.is_fetching { pages.saturating_sub(fetched) } else { 0 }
    }

    /// Drops the pages that were announced, once no page that is in flight could take their place.
    pub(super) fn clear_when_drained(&mut self) {
        let State::Receiving(received) = &mut self.state else { return };
        if !received.is_drained() || !matches!(received.missing, Missing::Announced(_)) {
            return;
        }
        if let Missing::Announced(set) = std::mem::replace(&mut received.missing, Missing::Clearing)
        {
            self.push(Action::Clear(set));
        }
    }

    pub(super) fn on_cleared(&mut self, answer: Result<(), GuestError>) {
        let State::Receiving(received) = &mut self.state else { return self.on_work_done() };
        if !matches!(received.missing, Missing::Clearing) {
            return;
        }
        received.missing = Missing::Cleared;
        match answer {
            Ok(()) => self.say(DestinationMessage::Cleared),
            Err(error) => self.give_up(Failure::Guest(error)),
        }
    }

    /// The guest runs: the source may hear that, but it is needed until all memory is here.
    pub(super) fn begin_to_fetch(&mut self, resume: Duration) {
        self.notes.enter(Phase::Postcopy, self.now);
        self.state = State::Fetching { resume };
        self.record(DestinationState::Fetching);
    }

    pub(super) fn on_fetched(&mut self) {
        self.is_fetching = false;
        let State::Fetching { resume } = self.state else { return };
        self.unrecorded = None;
        self.wait_until = None;
        self.state = State::Running { resume, is_recorded: false };
        self.record(DestinationState::Running);
        let forced =
            self.forced.then(|| self.error(Failure::Operator { choice: OperatorChoice::Run }));
        self.finish(Outcome::Migrated, forced.as_ref());
    }

    /// Tells the source, once that is recorded, that it may forget the guest.
    pub(super) fn say_complete(&mut self) {
        if self.is_postcopy && matches!(self.state, State::Running { is_recorded: true, .. }) {
            let longest = self.notes.page_waits.as_ref().map_or(0.0, |waits| waits.longest_seconds);
            let longest_wait_us = (longest * 1e6) as u64;
            self.say(DestinationMessage::Complete { longest_wait_us });
        }
    }

    /// The memory that is missing will never come. The guest has run, so this copy is kept, paused,
    /// for what its operator can still find in it. It may boot here again if its source has ended,
    /// and not if its source has it again.
    pub(super) fn strand(&mut self, why: Failure) {
        let is_lost = matches!(why, Failure::MemoryLost);
        let error = self.error(why);
        let (record, answer, outcome) = if is_lost {
            let answer = DestinationMessage::Lost(error.complaint());
            (DestinationState::Lost, answer, Outcome::Lost)
        } else {
            let stayed = Outcome::StayedAtSource;
            (DestinationState::Discarded, DestinationMessage::Discarded, stayed)
        };
        self.push(Action::StopFetching);
        self.unrecorded = None;
        self.wait_until = None;
        self.state = State::Stranded { answer };
        self.record(record);
        self.finish(outcome, Some(&error));
    }

    /// The record says so, or else still says that memory is missing, which the node reads as lost.
    pub(super) fn on_stranded(&mut self) {
        if let State::Stranded { answer } = &self.state {
            let answer = answer.clone();
            self.say(answer);
            self.settle();
        }
    }
}
