//! From the greeting to being ready: checks and builds the guest, receives its pages, loads its
//! state.

use super::state::{Missing, Received, State};
use super::{Action, Destination};
use crate::error::{Failure, ProtocolError};
use crate::guest::{GuestError, Refusal, RefusalKind};
use crate::phase::Phase;
use crate::protocol::{
    Decision, DestinationMessage, FEATURE_DISKS, FEATURE_EARLY_COMMIT, FEATURE_NODE,
    FEATURE_POSTCOPY, FEATURE_RECONNECT, MAX_STREAMS, MAX_VERSIONS, MigrationId, Offer, Prepare,
    SavedState, SourceMessage,
};
use crate::record::DestinationState;
use crate::text::PeerText;

impl Destination {
    pub(super) fn on_message_before_ready(&mut self, message: SourceMessage) {
        match (&mut self.state, message) {
            (State::Waiting, SourceMessage::Hello { migration, offer }) => {
                self.on_hello(migration, &offer);
            }
            (State::Greeted, SourceMessage::Disks(disks))
                if self.features.has(FEATURE_DISKS) && self.disks.is_empty() =>
            {
                self.disks = disks;
            }
            (State::Greeted, SourceMessage::Node { port })
                if self.features.has(FEATURE_NODE) && self.source_node_port.is_none() =>
            {
                self.source_node_port = Some(port);
            }
            (State::Greeted, SourceMessage::Prepare(prepare)) => self.on_prepare(prepare),
            (State::Receiving(received), SourceMessage::Switchover) if !received.switching_over => {
                received.switching_over = true;
                self.notes.enter(Phase::Switchover, self.now);
                self.notes.stands(self.now);
            }
            (State::Receiving(received), SourceMessage::Continue { migration })
                if received.lost.is_some() =>
            {
                self.on_continue(migration);
            }
            (State::Receiving(received), SourceMessage::State(state))
                if received.switching_over && received.state.is_none() =>
            {
                self.on_state(state);
            }
            (State::Receiving(_), SourceMessage::Missing(missing))
                if self.features.has(FEATURE_POSTCOPY) =>
            {
                self.on_missing(&missing);
            }
            (State::Receiving(received), SourceMessage::Return)
                if received.switching_over
                    && !self.is_committed
                    && self.features.has(FEATURE_RECONNECT)
                    && !received.ended.contains(&true) =>
            {
                received.switching_over = false;
                received.state = None;
                self.notes.goes_back(self.now);
                self.say(DestinationMessage::Returned);
            }
            // The last pages may come after it.
            (State::Receiving(received), SourceMessage::Commit)
                if self.features.has(FEATURE_EARLY_COMMIT)
                    && received.state.is_some()
                    && !self.is_committed =>
            {
                self.is_committed = true;
                self.is_asked = true;
            }
            (State::Receiving(_), SourceMessage::Withdraw(complaint)) if self.is_committed => {
                self.discard(Failure::from(&complaint), DestinationMessage::Discarded);
            }
            (_, SourceMessage::Abort(complaint)) => {
                self.discard(Failure::from(&complaint), DestinationMessage::Discarded);
            }
            (_, SourceMessage::Resolve { migration, decision }) => {
                self.on_early_resolve(migration, decision);
            }
            (state, message) => {
                let (message, waiting) = (message.name(), state.name());
                self.on_violation(ProtocolError::Unexpected { message, waiting });
            }
        }
    }

    fn on_hello(&mut self, migration: MigrationId, offer: &Offer) {
        if migration != self.config.migration {
            return self.on_violation(wrong_migration(migration));
        }
        if offer.versions.len() > MAX_VERSIONS {
            let text = format!("{} protocol versions offered", offer.versions.len());
            return self.on_violation(ProtocolError::Invalid(text));
        }
        let own = &self.config.offer;
        match own.newest_common(offer) {
            Ok(version) => {
                self.features = own.features.common(offer.features);
                let features = self.features;
                self.wait_until = None;
                self.state = State::Greeted;
                self.say(DestinationMessage::Welcome { version, features });
            }
            Err(mismatch) => {
                // The text is for the source, so "this side" must be the source.
                let seen_there = offer.newest_common(own).err().unwrap_or(mismatch.clone());
                let refusal = Refusal::new(RefusalKind::Version, seen_there.to_string());
                let farewell = DestinationMessage::Refused(refusal);
                self.discard(Failure::Version(mismatch), farewell);
            }
        }
    }

    fn on_prepare(&mut self, prepare: Prepare) {
        let Prepare { mut guest, streams } = prepare;
        guest.disks = std::mem::take(&mut self.disks);
        self.notes.enter(Phase::Prepare, self.now);
        if streams == 0 || streams > MAX_STREAMS {
            let text = format!("{streams} data streams asked for, 1 to {MAX_STREAMS} are possible");
            return self.refuse(Refusal::new(RefusalKind::Guest, text));
        }
        if let Err(refusal) = guest.check_bounds() {
            return self.refuse(refusal);
        }
        self.streams = streams;
        self.notes.guest.clone_from(&guest.name);
        self.notes.memory_bytes = guest.layout.bytes();
        self.notes.disk_bytes = guest.disk_bytes();
        let guest = Box::new(guest);
        self.guest = Some(guest.clone());
        self.state = State::Checking;
        self.push(Action::Check(guest));
    }

    fn refuse(&mut self, refusal: Refusal) {
        let farewell = DestinationMessage::Refused(refusal.clone());
        self.discard(Failure::Refused(refusal), farewell);
    }

    pub(super) fn on_checked(&mut self, answer: Result<(), Refusal>) {
        if !matches!(self.state, State::Checking) {
            return;
        }
        match (answer, self.guest.clone()) {
            (Ok(()), Some(guest)) => {
                self.state = State::Creating;
                self.push(Action::Create(guest));
            }
            (Err(refusal), _) => self.refuse(refusal),
            (Ok(()), None) => {}
        }
    }

    pub(super) fn on_created(&mut self, answer: Result<(), Refusal>) {
        if !matches!(self.state, State::Creating) {
            return self.on_work_done();
        }
        match answer {
            Ok(()) => {
                self.state = State::Opening;
                self.record(DestinationState::Loading);
            }
            Err(refusal) => {
                // The guest is no longer being built.
                self.state = State::Checking;
                self.refuse(refusal);
            }
        }
    }

    pub(super) fn on_opened(&mut self, answer: Result<(), PeerText>) {
        if !matches!(self.state, State::Opening) {
            return;
        }
        if let Err(detail) = answer {
            return self.give_up(Failure::Record { detail });
        }
        let (streams, features) = (self.streams, self.features);
        self.notes.enter(Phase::Precopy, self.now);
        let ended = vec![false; usize::from(streams)];
        self.state = State::Receiving(Received { ended, ..Received::default() });
        self.push(Action::AcceptPages { streams, features });
        self.say(DestinationMessage::Prepared);
    }

    pub(super) fn on_stream_ended(&mut self, stream: u16, announced: u64, applied: u64) {
        let State::Receiving(received) = &mut self.state else { return };
        let wrong = match received.ended.get_mut(usize::from(stream)) {
            None => Some(format!("data stream {stream} of {} ended", self.streams)),
            Some(true) => Some(format!("data stream {stream} ended twice")),
            Some(_) if announced != applied => Some(format!(
                "data stream {stream} ended after {applied} frames, {announced} were sent"
            )),
            Some(ended) => {
                *ended = true;
                None
            }
        };
        match wrong {
            Some(detail) => self.on_data_failed(PeerText::new(&detail)),
            None => {
                self.clear_when_drained();
                self.load_when_complete();
            }
        }
    }

    fn on_state(&mut self, state: SavedState) {
        if let State::Receiving(received) = &mut self.state {
            received.state = Some(state);
            self.load_when_complete();
        }
    }

    pub(super) fn load_when_complete(&mut self) {
        let State::Receiving(received) = &mut self.state else { return };
        if !received.is_complete() {
            return;
        }
        if let Some(SavedState { run_state, state }) = received.state.take() {
            self.notes.enter(Phase::Ready, self.now);
            self.run_state = run_state;
            let missing = std::mem::take(&mut received.missing);
            // What comes over a lost connection after its loss may complete the guest.
            self.wait_until = None;
            self.state = State::Loading { asked: self.now };
            if let Missing::Final(missing) = missing {
                self.is_fetching = true;
                self.was_missing.1 = self.notes.transfer;
                self.push(Action::Fetch(missing));
            }
            self.push(Action::LoadState(state.0));
        }
    }

    pub(super) fn on_loaded(&mut self, answer: Result<(), GuestError>) {
        let State::Loading { asked } = self.state else { return self.on_work_done() };
        match answer {
            Ok(()) if self.is_early() => {
                self.state = State::Ready;
                if self.is_committed {
                    self.take_over();
                }
            }
            Ok(()) => {
                self.state = State::RecordingReady { load: self.now.saturating_sub(asked) };
                self.record(DestinationState::Ready);
            }
            Err(error) => {
                // The state is no longer being loaded.
                self.state = State::Receiving(Received::default());
                self.give_up(Failure::Guest(error));
            }
        }
    }

    pub(super) fn on_data_failed(&mut self, detail: PeerText) {
        if self.may_discard() {
            self.give_up(Failure::Data { detail });
        }
    }

    /// Discards the copy: a source that was connected before reports its decision, but this side
    /// has not been ready, so the copy is of no use.
    fn on_early_resolve(&mut self, migration: MigrationId, decision: Decision) {
        if migration != self.config.migration {
            return self.say(DestinationMessage::Unknown);
        }
        let text = match decision {
            Decision::Commit => "the source committed a guest that was not ready here",
            Decision::Serve | Decision::Lost => "the source served a guest that was not ready here",
            Decision::Aborted => "the source had cancelled it",
        };
        let failure = Failure::Protocol(ProtocolError::Invalid(text.to_owned()));
        self.discard(failure, DestinationMessage::Discarded);
    }
}

pub(super) fn wrong_migration(migration: MigrationId) -> ProtocolError {
    ProtocolError::Invalid(format!("the source speaks of another migration, {migration}"))
}
