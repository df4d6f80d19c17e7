//! Performs the actions of the source's state machine.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc::error::SendError;
use tokio::time::timeout;

use super::super::connect::{Approach, WITHDRAW_TIME, approach, reach_again};
use super::super::hints::{Slot, gather};
use super::super::journal::Journal;
use super::super::pace::Next;
use super::super::sender::{Order, Route, Sender};
use super::super::serve::{Further, Server};
use super::super::stream_sender::StreamContext;
use super::{Driver, Input};
use crate::guest::GuestError;
use crate::pages::{BufferPool, Compression};
use crate::protocol::{Decision, FEATURE_LZ4, SourceMessage};
use crate::record::SourceState;
use crate::source::{Action, DataPath, Event};

impl Driver {
    pub(super) fn perform(&mut self, action: Action) -> Next {
        if !self.line.may_act(name(&action)) {
            return Next::GoOn;
        }
        match action {
            Action::Send(message) => self.send(&message),
            Action::Record(state) => self.record(state),
            Action::StartPrecopy(path) => self.start_precopy(path),
            Action::Probe => self.probe(),
            Action::SendRound { round } => {
                self.flush();
                self.order(Order::Round(round));
            }
            Action::ReopenStreams { applied } => self.reopen(applied),
            Action::Throttle(throttle) => self.throttle(throttle),
            Action::Pause => self.pause(),
            Action::FlushDisks { attempt } => self.flush_disks(attempt),
            Action::SendFinalRound { round } => self.order(Order::FinalRound(round)),
            Action::SaveState => self.save_state(),
            Action::SendRemainder { round } => self.order(Order::Remainder(round)),
            Action::EndStreams => self.order(Order::EndStreams),
            Action::CollectMissing => self.order(Order::CollectMissing),
            Action::Serve { missing } => {
                self.missing = missing;
                self.serve();
            }
            Action::ServeRest => self.serve_rest(),
            Action::StopSending => self.stop_sending(),
            Action::ReleaseGuest => {
                self.channels.has_committed.store(true, Ordering::Release);
                self.release();
            }
            Action::ResumeGuest => self.resume(),
            Action::StopDirtyLog => {
                self.call_off();
                self.stop_dirty_log();
            }
            Action::Reconnect => self.reconnect(),
            Action::Disconnect => self.line.close(),
            // The guest's owner destroys it once the report says so.
            Action::DropGuest => self.stop_sending(),
            Action::Finished(report) => self.finish(*report),
            Action::Settled => return Next::End,
        }
        Next::GoOn
    }

    pub(super) fn approach(&mut self) {
        let approach_with = Approach {
            tls: self.tls.clone(),
            host: self.session.host.clone(),
            port: self.session.port,
            addresses: self.session.addresses.clone(),
            server_name: self.session.server_name.clone(),
            migration: self.session.migration,
            guest: self.description.clone(),
            connections: self.session.connections.unwrap_or(1),
            links: self.session.links.clone(),
        };
        let input_sender = self.input_sender.clone();
        self.tasks.spawn(async move {
            let approach = approach(approach_with);
            tokio::pin!(approach);
            let unwanted = tokio::select! {
                contact = &mut approach => match input_sender.send(Input::Approached(contact)) {
                    Err(SendError(Input::Approached(contact))) => contact,
                    _ => return,
                },
                // The guest may have been admitted: then a process there waits for this source in
                // vain.
                () = input_sender.closed() => match timeout(WITHDRAW_TIME, approach).await {
                    Ok(contact) => contact,
                    Err(_) => return,
                },
            };
            if let Ok(contact) = unwanted {
                contact.withdraw().await;
            }
        });
    }

    /// Returns the decision to report to a destination that is reached again.
    pub(super) fn decision(&self) -> Decision {
        match self.stated.now() {
            // This process lives, and with it the memory.
            SourceState::Serving => Decision::Serve,
            state => state.decision().unwrap_or(Decision::Aborted),
        }
    }

    pub(super) fn reconnect(&mut self) {
        let Some(found) = self.found.clone() else { return };
        // Repeated while the outcome is in doubt, so finished tasks are removed here.
        while self.tasks.try_join_next().is_some() {}
        let routes = self.routes(&found);
        let (input_sender, generation) = (self.input_sender.clone(), self.line.generation());
        let decision = self.decision();
        let migration = self.session.migration;
        self.tasks.spawn(async move {
            let reached = match routes {
                Ok(routes) => reach_again(routes, migration, decision).await,
                Err(error) => Err(error.to_string()),
            };
            let _ = input_sender.send(Input::Reached(generation, reached));
        });
    }

    pub(super) fn start_precopy(&mut self, path: DataPath) {
        let Some(route) = self.route(path.streams) else { return };
        let compression = match self.session.compression {
            wanted if path.features.has(FEATURE_LZ4) => wanted,
            _ => Compression::Off,
        };
        let context = StreamContext {
            guest: self.guest.clone(),
            limiter: self.limiter.clone(),
            totals: self.totals.clone(),
            pool: BufferPool::new(),
            compression,
            failpoints: self.line.failpoints().clone(),
            memory_chunks: self.description.layout.chunks(),
            is_ending: Arc::default(),
            heat: Arc::default(),
            links: self.links.clone(),
            // Frames on links are acknowledged.
            journal: Arc::new(match self.session.has_links() {
                true => Journal::default(),
                false => Journal::new(self.description.chunks()),
            }),
        };
        self.context = Some(context.clone());
        let input_sender = self.input_sender.clone();
        let chunks = self.description.chunks();
        let hints = Arc::new(Slot::default());
        let (slot, memory_chunks) = (Arc::downgrade(&hints), self.description.layout.chunks());
        let sender = Sender::start(context, route, chunks, hints, &mut self.tasks, move |report| {
            let _ = input_sender.send(Input::Sender(report));
        });
        self.sender = Some(sender);
        self.with_guest(move |guest| match guest.start_dirty_log() {
            Ok(()) => {
                gather(guest, chunks, memory_chunks, &slot);
                Event::PrecopyStarted
            }
            Err(error) => Event::GuestFailed(error),
        });
    }

    /// Has the sender go on over the present connection.
    fn reopen(&self, applied: Vec<u64>) {
        if let Some(route) = self.route(self.session.connections.unwrap_or(1)) {
            self.order(Order::Reopen(route, applied));
        }
    }

    /// Returns the present connections, and what a stream on them must show.
    fn route(&self, streams: u16) -> Option<Route> {
        let (control, found) = (self.line.control()?, self.found.as_ref()?);
        Some(Route {
            connections: control.connections(),
            generation: self.line.generation(),
            are_links: self.session.has_links(),
            name: found.node.name.clone(),
            streams,
            migration: self.session.migration,
            token: found.token,
        })
    }

    /// Serves the missing pages on the present connections, and on as many more as the migration
    /// was to have: after a reconnection there is only one, and a link that was lost may be back.
    pub(super) fn serve(&mut self) {
        let (Some(route), Some(context)) = (self.route(0), self.context.clone()) else { return };
        let Some(found) = &self.found else { return };
        let peers = if self.session.has_links() {
            let is_new = |link: &&IpAddr| {
                !route.connections.iter().any(|it| it.remote_address().ip() == **link)
            };
            self.session.links.iter().filter(is_new).map(|link| found.at(*link).peer()).collect()
        } else {
            let wanted = usize::from(self.session.connections.unwrap_or(1));
            vec![found.peer(); wanted.saturating_sub(route.connections.len())]
        };
        let further = Further { peers, tls: self.tls.clone() };
        self.server =
            Some(Server::start(context, route, further, self.missing.clone(), &mut self.tasks));
    }

    fn serve_rest(&self) {
        if let Some(server) = &self.server {
            server.send_rest();
        }
    }

    /// Whether pages that follow the guest are sent.
    pub(super) fn is_serving(&self) -> bool {
        self.server.is_some()
    }

    fn stop_sending(&mut self) {
        (self.sender, self.server) = (None, None);
    }

    pub(super) fn order(&self, order: Order) {
        if let Some(sender) = &self.sender {
            sender.order(order);
        }
    }

    pub(super) fn send(&mut self, message: &SourceMessage) {
        if let Err(error) = self.line.send(message.name(), message) {
            let text = format!("{} cannot be sent: {error}", message.name());
            self.push_event(Event::GuestFailed(GuestError::new(text)));
        }
    }

    pub(super) fn push_event(&self, event: Event) {
        let _ = self.input_sender.send(Input::Event(event));
    }
}

/// Returns the name of an action, for failpoints.
fn name(action: &Action) -> &'static str {
    match action {
        Action::Send(_) => "Send",
        Action::Record(SourceState::Undecided) => "RecordUndecided",
        Action::Record(SourceState::Committed) => "RecordCommitted",
        Action::Record(SourceState::Serving) => "RecordServing",
        Action::Record(SourceState::Done) => "RecordDone",
        Action::Record(SourceState::Aborted) => "RecordAborted",
        Action::StartPrecopy(_) => "StartPrecopy",
        Action::Probe => "Probe",
        Action::SendRound { .. } => "SendRound",
        Action::ReopenStreams { .. } => "ReopenStreams",
        Action::Throttle(_) => "Throttle",
        Action::Pause => "Pause",
        Action::FlushDisks { .. } => "FlushDisks",
        Action::SendFinalRound { .. } => "SendFinalRound",
        Action::SaveState => "SaveState",
        Action::SendRemainder { .. } => "SendRemainder",
        Action::EndStreams => "EndStreams",
        Action::CollectMissing => "CollectMissing",
        Action::Serve { .. } => "Serve",
        Action::ServeRest => "ServeRest",
        Action::StopSending => "StopSending",
        Action::ReleaseGuest => "ReleaseGuest",
        Action::ResumeGuest => "ResumeGuest",
        Action::StopDirtyLog => "StopDirtyLog",
        Action::Reconnect => "Reconnect",
        Action::Disconnect => "Disconnect",
        Action::DropGuest => "DropGuest",
        Action::Finished(_) => "Finished",
        Action::Settled => "Settled",
    }
}
