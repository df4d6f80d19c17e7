//! The shell of the source: moves one guest to another host.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use quinn::Endpoint;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tracing::Instrument;

use super::clock::{Clock, unix_ms};
use super::connect::{Approach, Contact, Found, NoContact, Reached, approach, reach_again};
use super::control::{Control, Ear, Heard};
use super::handle::{Board, Command, Handle, handle};
use super::keeper::Keeper;
use super::limiter::Limiter;
use super::pump::Plant;
use super::sender::{Order, Route, Sender};
use super::thread::{StartError, connections_useful, run};
use super::totals::Totals;
use super::worker::Worker;
use crate::failpoint::{Failpoints, Passage};
use crate::framing;
use crate::guest::{GuestDescription, RunState, SourceGuest};
use crate::limits::Limits;
use crate::pages::{BufferPool, Compression};
use crate::protocol::{DestinationMessage, FEATURE_LZ4, MigrationId, Offer, SourceMessage, Token};
use crate::quic::{LinkError, Tls};
use crate::record::{Record, RecordStore, Side, SourceState};
use crate::report::Report;
use crate::source::{Action, DataPath, Event, Probe, Source, SourceConfig};

/// Time between two looks at the totals.
const TRANSFERRED_EVERY: Duration = Duration::from_millis(100);
/// Longest wait at the end for what is still to be sent or written.
const LEFTOVER_TIME: Duration = Duration::from_secs(10);
/// Messages and arrivals that wait for the driver; the peer waits beyond.
pub(super) const INPUTS_MAX: usize = 16;

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

/// What follows an action.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    GoOn,
    End,
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
        let mut look = interval(TRANSFERRED_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Skip);
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

    fn perform(&mut self, action: Action) -> Next {
        match self.failpoints.reach("source.act", name(&action)) {
            Passage::Hold => return Next::GoOn,
            Passage::Cut => self.cut(),
            Passage::Go | Passage::Flip => {}
        }
        match action {
            Action::Send(message) => self.send(&message),
            Action::Record(state) => self.record(state),
            Action::StartPrecopy(path) => self.start_precopy(path),
            Action::Probe => self.probe(),
            Action::SendRound { round } => self.order(Order::Round(round)),
            Action::Pause => self.pause(),
            Action::SendFinalRound { round } => self.order(Order::FinalRound(round)),
            Action::SaveState => self.save_state(),
            Action::SendRemainder { round } => self.order(Order::Remainder(round)),
            Action::StopSending => self.sender = None,
            Action::ResumeGuest => self.resume(),
            Action::StopDirtyLog => self.stop_dirty_log(),
            Action::Reconnect => self.reconnect(),
            Action::Disconnect => {
                self.generation += 1;
                self.control = None;
            }
            // The guest's owner destroys it, when the report says so.
            Action::DropGuest => self.sender = None,
            Action::Finished(report) => self.finish(*report),
            Action::Settled => return Next::End,
        }
        Next::GoOn
    }

    fn approach(&mut self) {
        let approach_with = Approach {
            tls: self.tls.clone(),
            host: self.session.host.clone(),
            port: self.session.port,
            server_name: self.session.server_name.clone(),
            migration: self.session.migration,
            guest: self.description.clone(),
            connections: self.session.connections.unwrap_or(1),
        };
        let tell = self.tell.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                contact = approach(approach_with) => {
                    let _ = tell.send(Input::Approached(contact));
                }
                () = tell.closed() => {}
            }
        });
    }

    fn reconnect(&mut self) {
        let Some(found) = self.found.clone() else { return };
        let endpoint = self.endpoints.first().cloned().map_or_else(
            || super::super::quic::endpoint::dialer(found.node.address, &self.tls),
            Ok::<_, LinkError>,
        );
        let (tell, generation) = (self.tell.clone(), self.generation);
        let decision = self.state.decision().unwrap_or(crate::protocol::Decision::Aborted);
        let migration = self.session.migration;
        self.tasks.spawn(async move {
            let reached = match endpoint {
                Ok(endpoint) => reach_again(endpoint, found, migration, decision).await,
                Err(error) => Err(error.to_string()),
            };
            let _ = tell.send(Input::Reached(generation, reached));
        });
    }

    fn send(&mut self, message: &SourceMessage) {
        let passage = self.failpoints.reach("source.send", message.name());
        let Some(control) = &self.control else { return };
        match framing::frame(message) {
            Err(error) => self.tell(Event::GuestFailed(crate::guest::GuestError::new(format!(
                "{} cannot be sent: {error}",
                message.name()
            )))),
            Ok(mut frame) => match passage {
                Passage::Hold => {}
                Passage::Cut => self.cut(),
                Passage::Go => control.send_bytes(frame),
                Passage::Flip => {
                    let middle = frame.len() / 2;
                    frame[middle] ^= 0x10;
                    control.send_bytes(frame);
                }
            },
        }
    }

    fn cut(&self) {
        if let Some(control) = &self.control {
            control.cut("failpoint");
        }
    }

    fn tell(&self, event: Event) {
        let _ = self.tell.send(Input::Event(event));
    }

    /// Runs a call to the guest on the worker; what it returns is told to the machine.
    fn with_guest(&self, call: impl FnOnce(&dyn SourceGuest) -> Event + Send + 'static) {
        let (guest, tell) = (self.guest.clone(), self.tell.clone());
        self.worker.run(move || {
            let _ = tell.send(Input::Event(call(&*guest)));
        });
    }

    fn start_precopy(&mut self, path: DataPath) {
        let (Some(control), Some(found)) = (&self.control, &self.found) else { return };
        let compression = match self.session.compression {
            wanted if path.features.has(FEATURE_LZ4) => wanted,
            _ => Compression::Off,
        };
        let plant = Plant {
            guest: self.guest.clone(),
            limiter: self.limiter.clone(),
            totals: self.totals.clone(),
            pool: BufferPool::new(),
            compression,
            failpoints: self.failpoints.clone(),
        };
        let route = Route {
            connections: control.connections().to_vec(),
            name: found.node.name.clone(),
            streams: path.streams,
            migration: self.session.migration,
            token: found.token,
        };
        let tell = self.tell.clone();
        let chunks = self.description.layout.chunks();
        let sender = Sender::start(plant, route, chunks, &mut self.tasks, move |event| {
            let _ = tell.send(Input::Event(event));
        });
        self.sender = Some(sender);
        self.with_guest(|guest| match guest.start_dirty_log() {
            Ok(()) => Event::PrecopyStarted,
            Err(error) => Event::GuestFailed(error),
        });
    }

    fn order(&self, order: Order) {
        if let Some(sender) = &self.sender {
            sender.order(order);
        }
    }

    fn probe(&self) {
        let round_trip = self.control.as_ref().map_or(Duration::ZERO, Control::round_trip);
        self.with_guest(move |guest| match dry_run(guest) {
            Ok(pause_and_save) => Event::Probed(Probe { pause_and_save, round_trip }),
            Err(error) => Event::GuestFailed(error),
        });
    }

    fn pause(&self) {
        self.limiter.lift();
        self.with_guest(|guest| {
            let was = run_state(guest);
            match guest.pause() {
                Ok(()) => Event::Paused { was },
                Err(error) => Event::PauseFailed { was, error },
            }
        });
    }

    fn save_state(&self) {
        self.with_guest(|guest| match guest.save_state() {
            Ok(state) => Event::StateSaved { state },
            Err(error) => Event::GuestFailed(error),
        });
    }

    fn resume(&self) {
        self.with_guest(|guest| match guest.resume() {
            Ok(()) => Event::Resumed,
            Err(error) => Event::GuestFailed(error),
        });
    }

    fn stop_dirty_log(&self) {
        let guest = self.guest.clone();
        self.worker.run(move || {
            if let Err(error) = guest.stop_dirty_log() {
                tracing::warn!(%error, "the dirty log goes on");
            }
        });
    }

    fn record(&mut self, state: SourceState) {
        self.state = state;
        let tell = self.tell.clone();
        self.keeper.write(self.make_record(None), move |outcome| {
            let _ = tell.send(Input::Event(match outcome {
                Ok(()) => Event::Recorded,
                Err(error) => Event::RecordFailed { detail: error.to_string().as_str().into() },
            }));
        });
    }

    fn finish(&mut self, report: Report) {
        self.keeper.write(self.make_record(Some(report.clone())), |outcome| {
            if let Err(error) = outcome {
                tracing::warn!(%error, "the report is not kept");
            }
        });
        self.board.report.send_replace(Some(report));
    }

    fn make_record(&self, report: Option<Report>) -> Record {
        let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), self.session.port);
        let found = self.found.as_ref();
        let named = self.session.server_name.as_ref().unwrap_or(&self.session.host);
        // A migration that never found its destination has nobody to be told of its end.
        let state = if found.is_none() { SourceState::Aborted } else { self.state };
        Record {
            migration: self.session.migration,
            guest: self.description.name.clone(),
            guest_uuid: self.description.uuid,
            pid: std::process::id(),
            started_unix_ms: self.started_unix_ms,
            updated_unix_ms: 0,
            side: Side::Source {
                state,
                destination: format!("{}:{}", self.session.host, self.session.port),
                server_name: found.map_or_else(|| named.clone(), |found| found.node.name.clone()),
                node_address: found.map_or(nowhere, |found| found.node.address),
                process_address: found.map_or(nowhere, |found| found.process),
                token: found.map_or(Token([0; 32]), |found| found.token),
            },
            report,
        }
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
        for endpoint in endpoints {
            endpoint.close(0_u32.into(), b"");
            let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        }
    }
}

fn run_state(guest: &dyn SourceGuest) -> RunState {
    if guest.is_running() { RunState::Running } else { RunState::Paused }
}

/// Pauses, saves, and lets the guest go on as it did; tells how long pausing and saving took.
fn dry_run(guest: &dyn SourceGuest) -> Result<Duration, crate::guest::GuestError> {
    let was = run_state(guest);
    let began = std::time::Instant::now();
    let saved = guest.pause().and_then(|()| guest.save_state());
    let took = began.elapsed();
    if was == RunState::Running {
        guest.resume()?;
    }
    saved.map(|_| took)
}

/// The name of an action, for failpoints.
fn name(action: &Action) -> &'static str {
    match action {
        Action::Send(_) => "Send",
        Action::Record(SourceState::Undecided) => "RecordUndecided",
        Action::Record(SourceState::Committed) => "RecordCommitted",
        Action::Record(SourceState::Done) => "RecordDone",
        Action::Record(SourceState::Aborted) => "RecordAborted",
        Action::StartPrecopy(_) => "StartPrecopy",
        Action::Probe => "Probe",
        Action::SendRound { .. } => "SendRound",
        Action::Pause => "Pause",
        Action::SendFinalRound { .. } => "SendFinalRound",
        Action::SaveState => "SaveState",
        Action::SendRemainder { .. } => "SendRemainder",
        Action::StopSending => "StopSending",
        Action::ResumeGuest => "ResumeGuest",
        Action::StopDirtyLog => "StopDirtyLog",
        Action::Reconnect => "Reconnect",
        Action::Disconnect => "Disconnect",
        Action::DropGuest => "DropGuest",
        Action::Finished(_) => "Finished",
        Action::Settled => "Settled",
    }
}
