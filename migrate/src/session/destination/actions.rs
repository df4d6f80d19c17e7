//! Performs the actions of the destination's state machine.

use std::sync::Arc;

use super::super::control::Control;
use super::super::pace::Next;
use super::super::receiver::{Memory, Space};
use super::{Driver, Input, failed};
use crate::destination::{Action, Event};
use crate::protocol::{DestinationMessage, Features};
use crate::record::DestinationState;

impl Driver {
    pub(super) fn perform(&mut self, action: Action) -> Next {
        if !self.line.may_act(name(&action)) {
            return Next::GoOn;
        }
        match action {
            Action::Send(message) => self.send(&message),
            Action::Check(guest) => self.check(*guest),
            Action::Create(guest) => self.create(*guest),
            Action::AcceptPages { streams, features } => {
                return self.accept_pages(streams, features);
            }
            Action::CountFrames => self.count_frames(),
            Action::Clear(missing) => self.clear(missing),
            Action::Fetch(missing) => self.fetch(missing),
            Action::ReportMissing => self.report_missing(),
            Action::AbandonMissing => self.abandon_missing(),
            Action::StopFetching => self.stop_fetching(),
            Action::LoadState(state) => self.load_state(state),
            Action::Record(state) => self.record(state),
            Action::AdoptGuest => self.with_guest(Event::Adopted, |guest| guest.adopt()),
            Action::ResumeGuest => self.with_guest(Event::Resumed, |guest| guest.resume()),
            Action::Discard => self.discard(),
            Action::Disconnect => self.line.close(),
            Action::Finished(report) => self.finish(*report),
            Action::Settled => return Next::End,
        }
        Next::GoOn
    }

    pub(super) fn send(&mut self, message: &DestinationMessage) {
        if let Err(error) = self.line.send(message.name(), message) {
            tracing::error!(%error, "{} cannot be sent", message.name());
        }
    }

    pub(super) fn accept_pages(&mut self, streams: u16, features: Features) -> Next {
        let (Some(guest), Some(description)) = (&self.guest, &self.description) else {
            return Next::GoOn;
        };
        let space = Space {
            memory_chunks: description.layout.chunks(),
            chunks: description.chunks(),
            streams,
        };
        self.features = features;
        let memory = Memory::new(guest.clone(), space, features, self.totals.clone());
        self.memory = Some(Arc::new(memory));
        self.read_streams()
    }

    /// Waits for what came over lost connections to be applied. From now on, data streams come over
    /// the present one only.
    fn count_frames(&mut self) {
        let present = self.line.control().and_then(Control::connection_id);
        // No connection has this id: if the present one is lost again already, none may bring any.
        self.successor = Some(present.unwrap_or(0));
        while self.counting.try_join_next().is_some() {}
        let mut readers = std::mem::take(&mut self.readers);
        let input_sender = self.input_sender.clone();
        self.counting.spawn(async move {
            while let Some(ended) = readers.join_next().await {
                if let Some(event) = failed(ended) {
                    let _ = input_sender.send(Input::Event(event));
                }
            }
            let _ = input_sender.send(Input::Counted);
        });
    }
}

/// Returns the name of an action, for failpoints.
fn name(action: &Action) -> &'static str {
    match action {
        Action::Send(_) => "Send",
        Action::Check(_) => "Check",
        Action::Create(_) => "Create",
        Action::AcceptPages { .. } => "AcceptPages",
        Action::CountFrames => "CountFrames",
        Action::Clear(_) => "Clear",
        Action::Fetch(_) => "Fetch",
        Action::ReportMissing => "ReportMissing",
        Action::AbandonMissing => "AbandonMissing",
        Action::StopFetching => "StopFetching",
        Action::LoadState(_) => "LoadState",
        Action::Record(DestinationState::Loading) => "RecordLoading",
        Action::Record(DestinationState::Ready) => "RecordReady",
        Action::Record(DestinationState::Taking) => "RecordTaking",
        Action::Record(DestinationState::Fetching) => "RecordFetching",
        Action::Record(DestinationState::Running) => "RecordRunning",
        Action::Record(DestinationState::Lost) => "RecordLost",
        Action::Record(DestinationState::Discarded) => "RecordDiscarded",
        Action::Record(DestinationState::Failed) => "RecordFailed",
        Action::AdoptGuest => "AdoptGuest",
        Action::ResumeGuest => "ResumeGuest",
        Action::Discard => "Discard",
        Action::Disconnect => "Disconnect",
        Action::Finished(_) => "Finished",
        Action::Settled => "Settled",
    }
}
