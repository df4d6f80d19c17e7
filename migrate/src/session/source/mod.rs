//! The shell of the source: moves one guest to another host.

mod actions;
mod calls;
mod records;

use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use super::clock::{Clock, unix_ms};
use super::connect::{Contact, Found, NoContact, Reached};
use super::control::{Control, Ear, Heard};
use super::handle::{Board, Command, Handle, handle};
use super::keeper::Keeper;
use super::limiter::Limiter;
use super::pace::{self, INPUTS_MAX, LEFTOVER_TIME, Next};
use super::sender::Sender;
use super::thread::{StartError, connections_useful, run};
use super::totals::Totals;
use super::worker::Worker;
use crate::failpoint::{Failpoints, Passage};
use crate::guest::{GuestDescription, SourceGuest};
use crate::limits::Limits;
use crate::pages::Compression;
use crate::protocol::{DestinationMessage, MigrationId, Offer};
use crate::quic::Tls;
use crate::record::{RecordStore, SourceState};
use crate::source::{Event, Source, SourceConfig};

/// What is to be migrated where, and how.
#[derive(Debug, Clone)]
pub struct SourceSession {
    /// Name of the attempt; [`MigrationId::random`].
    pub migration: MigrationId,
    /// Host name or IP address of the destination's node.
    pub host: String,
    /// UDP port of the destination's node.
    pub port: u16,
    /// Name that the destination's certificate must carry; the host when none.
    pub server_name: Option<String>,
    /// What the migration may cost.
    pub limits: Limits,
    /// Most bytes per second before the guest is paused; none: as fast as it goes.
    pub bandwidth: Option<u64>,
    /// When to compress.
    pub compression: Compression,
    /// Number of connections, 1 to 16; none: what pays on this host.
    pub connections: Option<u16>,
}

/// Starts to migrate `guest` away, on a thread of its own.
///
/// The guest's owner destroys it when the report says that it is at the destination
/// ([`crate::report::Outcome::Migrated`]) or lost; the session itself only stops using it.
///
/// # Errors
/// [`StartError`] when the system gives no thread; everything later is told by the report.
pub fn start_source(
    session: SourceSession,
    guest: Arc<dyn SourceGuest>,
    tls: Tls,
    records: RecordStore,
) -> Result<Handle, StartError> {
    start_with(session, guest, tls, records, Failpoints::from_environment())
}

pub(super) fn start_with(
    session: SourceSession,
    guest: Arc<dyn SourceGuest>,
    tls: Tls,
    records: RecordStore,
    failpoints: Failpoints,
) -> Result<Handle, StartError> {
    let (handle, board, over) = handle(session.migration);
    let connections = session.connections.unwrap_or_else(connections_useful).clamp(1, 16);
    let span = tracing::info_span!("migration", id = %session.migration, role = "source");
    run("migrate-source", connections.min(connections_useful()), over, move || {
        let session = SourceSession { connections: Some(connections), ..session };
        async move { Driver::new(session, guest, tls, records, failpoints, board).drive().await }
            .instrument(span)
    })?;
    Ok(handle)
}

/// What the driver waits for.
#[derive(Debug)]
enum Input {
    Event(Event),
    Heard(u64, Heard<DestinationMessage>),
    Approached(Result<Contact, NoContact>),
    Reached(u64, Result<Reached, String>),
}

struct Driver {
    session: SourceSession,
    guest: Arc<dyn SourceGuest>,
    description: GuestDescription,
    tls: Tls,
    failpoints: Failpoints,
    machine: Source,
    clock: Clock,
    board: Board,
    /// Answers to actions.
    told: mpsc::UnboundedReceiver<Input>,
    tell: mpsc::UnboundedSender<Input>,
    /// What the peer says.
    heard: mpsc::Receiver<Input>,
    hear: mpsc::Sender<Input>,
    tasks: JoinSet<()>,
    worker: Worker,
    keeper: Keeper,
    limiter: Arc<Limiter>,
    totals: Arc<Totals>,
    found: Option<Found>,
    endpoints: Vec<Endpoint>,
    control: Option<Control>,
    /// Counts control streams, so that words of an earlier one are not taken for the current one's.
    generation: u64,
    sender: Option<Sender>,
    state: SourceState,
    started_unix_ms: u64,
}

impl Driver {
    fn new(
        session: SourceSession,
        guest: Arc<dyn SourceGuest>,
        tls: Tls,
        records: RecordStore,
        failpoints: Failpoints,
        board: Board,
    ) -> Self {
        let clock = Clock::start();
        let description = guest.describe();
        let config = SourceConfig {
            migration: session.migration,
            guest: description.clone(),
            offer: Offer::ours(),
            streams: session.connections.unwrap_or(1),
            limits: session.limits,
        };
        let (tell, told) = mpsc::unbounded_channel();
        let (hear, heard) = mpsc::channel(INPUTS_MAX);
        let mut tasks = JoinSet::new();
        Self {
            guest,
            description,
            tls,
            failpoints,
            machine: Source::new(config, clock.now()),
            clock,
            board,
            told,
            tell,
            heard,
            hear,
            worker: Worker::start(&mut tasks),
            keeper: Keeper::start(records, &mut tasks),
            tasks,
            limiter: Arc::new(Limiter::new(session.bandwidth)),
            totals: Arc::default(),
            found: None,
            endpoints: Vec::new(),
            control: None,
            generation: 0,
            sender: None,
            state: SourceState::Undecided,
            started_unix_ms: unix_ms(),
            session,
        }
    }

    async fn drive(mut self) {
        self.approach();
        let mut look = pace::looks();
        loop {
            let deadline = self.machine.deadline();
            let next = tokio::select! {
                Some(input) = self.told.recv() => self.take(input),
                Some(input) = self.heard.recv() => self.take(input),
                Some(command) = self.board.commands.recv() => self.obey(command),
                () = self.clock.reach(deadline) => self.handle(Event::Tick),
                _ = look.tick(), if self.sender.is_some() => {
                    self.handle(Event::Transferred(self.totals.read()))
                }
            };
            if next == Next::End {
                break;
            }
        }
        self.leave().await;
    }

    fn take(&mut self, input: Input) -> Next {
        match input {
            Input::Event(event @ (Event::RoundSent(_) | Event::RemainderSent(_))) => {
                // The machine's sums are to include all of the round.
                self.handle(Event::Transferred(self.totals.read()));
                self.handle(event)
            }
            Input::Event(event) => self.handle(event),
            Input::Heard(generation, heard) if generation == self.generation => self.listen(heard),
            Input::Heard(..) => Next::GoOn,
            Input::Approached(Ok(contact)) => {
                self.found = Some(contact.found);
                self.endpoints = contact.endpoints;
                self.connected(contact.connections, contact.control)
            }
            Input::Approached(Err(NoContact::Refused(refusal))) => {
                self.handle(Event::Message(DestinationMessage::Refused(refusal)))
            }
            Input::Approached(Err(NoContact::Failed(detail))) => self.lost(&detail),
            Input::Reached(generation, reached) if generation == self.generation => match reached {
                Ok(Reached::Process(connection, control)) => {
                    self.connected(vec![connection], control)
                }
                Ok(Reached::Node(answer)) => self.answered(answer),
                Err(detail) => self.lost(&detail),
            },
            Input::Reached(..) => Next::GoOn,
        }
    }

    fn listen(&mut self, heard: Heard<DestinationMessage>) -> Next {
        match heard {
            Heard::Message(message) => {
                match self.failpoints.reach("source.recv", message.name()) {
                    Passage::Hold => return Next::GoOn,
                    Passage::Cut => self.cut(),
                    Passage::Go | Passage::Flip => {}
                }
                self.handle(Event::Message(message))
            }
            Heard::Malformed(error) => self.handle(Event::Malformed(error)),
            Heard::Lost(detail) => self.lost(&detail),
        }
    }

    fn obey(&mut self, command: Command) -> Next {
        match command {
            Command::Cancel { by, answer } => {
                let may = self.machine.can_cancel();
                let _ = answer.send(may);
                may.map_or(Next::GoOn, |()| self.handle(Event::Cancel { by }))
            }
            Command::Resolve { choice, answer } => {
                let may = self.machine.can_resolve(choice);
                let _ = answer.send(may);
                may.map_or(Next::GoOn, |()| self.handle(Event::Resolve(choice)))
            }
            Command::GuestStopped { detail } => self.handle(Event::GuestStopped { detail }),
        }
    }

    fn connected(
        &mut self,
        connections: Vec<quinn::Connection>,
        stream: (quinn::SendStream, quinn::RecvStream),
    ) -> Next {
        self.generation += 1;
        let name = self.found.as_ref().map_or("", |found| &found.node.name).to_owned();
        let (inputs, generation) = (self.hear.clone(), self.generation);
        let ear = Ear { inputs, generation, wrap: Input::Heard };
        let control = Control::start(connections, &name, stream, &mut self.tasks, &ear);
        self.control = Some(control);
        self.handle(Event::Connected)
    }

    /// Somebody else than the process has answered for it: there is no connection, only this message.
    fn answered(&mut self, message: DestinationMessage) -> Next {
        self.control = None;
        match self.handle(Event::Connected) {
            Next::GoOn => self.handle(Event::Message(message)),
            Next::End => Next::End,
        }
    }

    fn lost(&mut self, detail: &str) -> Next {
        self.generation += 1;
        self.control = None;
        self.handle(Event::ConnectionLost { detail: detail.into() })
    }

    /// Feeds an event to the machine and performs what it says.
    fn handle(&mut self, event: Event) -> Next {
        let actions = self.machine.handle(event, self.clock.now());
        let mut next = Next::GoOn;
        for action in actions {
            if self.perform(action) == Next::End {
                next = Next::End;
            }
        }
        self.board.progress.send_replace(self.machine.progress(self.clock.now()));
        next
    }

    /// Waits for what is still to be sent and written, then leaves nothing behind.
    async fn leave(self) {
        let Self { mut tasks, endpoints, sender, control, keeper, worker, told, heard, .. } = self;
        drop((sender, control, keeper, worker, told, heard));
        let quiet = async { while tasks.join_next().await.is_some() {} };
        if timeout(LEFTOVER_TIME, quiet).await.is_err() {
            tracing::warn!("gave up waiting for parts of the migration to end");
            tasks.shutdown().await;
        }
        endpoints.iter().for_each(|endpoint| endpoint.close(0_u32.into(), b""));
        let idle = async {
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
        };
        let _ = timeout(Duration::from_secs(1), idle).await;
    }
}
