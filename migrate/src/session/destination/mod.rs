//! The shell of the destination: receives one guest.

mod actions;
mod calls;
mod postcopy;
mod records;

use postcopy::PageStream;

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};
use tokio::time::timeout;
use tracing::Instrument;
use uuid::Uuid;

use super::accept::{Arrival, Gate, NOT_ADMITTED, accept};
use super::clock::Clock;
use super::control::{Control, Heard, Joining};
use super::fetch::Fetch;
use super::handle::{Command, Handle, PendingCommand, SessionChannels, handle};
use super::line::{self, Line};
use super::pace::{self, INPUTS_MAX, LEFTOVER_TIME, Next};
use super::receiver::{Memory, receive, receive_on_link};
use super::record_writer::{RecordWriter, RecordedState};
use super::thread::{StartError, connections_useful, run};
use super::totals::Totals;
use super::worker::Worker;
use crate::destination::{Destination, DestinationConfig, Event};
use crate::failpoint::Failpoints;
use crate::guest::{
    DestinationGuest, GuestDescription, GuestError, GuestFactory, MissingMemory, Refusal,
};
use crate::phase::Phase;
use crate::progress::Role;
use crate::protocol::preamble::LINK_JOINED;
use crate::protocol::{
    FEATURE_LINKS, FEATURE_POSTCOPY, Features, MAX_LINKS, MAX_STREAMS, MigrationId, Offer,
    SourceMessage, Token,
};
use crate::quic::{LinkError, Tls, endpoint, peers};
use crate::record::{DestinationState, RecordStore};
use crate::text::PeerText;

/// The migration that a destination waits for, and where it listens.
#[derive(Debug, Clone)]
pub struct DestinationSession {
    /// The admitted migration.
    pub migration: MigrationId,
    /// The token that its source must show.
    pub token: Token,
    /// Address to listen on.
    pub listen: IpAddr,
    /// UDP ports to choose from; with `0..=0` the system chooses.
    pub ports: RangeInclusive<u16>,
    /// The guest's name as admitted, for the record.
    pub guest: String,
    /// The guest's identity as admitted, for the record: of all guests' processes, only this
    /// guest's may settle the migration with the node, even if the guest was never described.
    pub guest_uuid: Uuid,
    /// How long to wait for the source's `Finish` once the guest's fate is recorded.
    pub linger: Duration,
    /// Whether this host can run a guest before its memory is there.
    pub postcopy: bool,
}

/// Starts to receive a guest, on a separate thread; its port is bound when this returns.
///
/// The session holds the guest only while the migration needs it. The owner of `factory` keeps the
/// guest running if the report says so ([`crate::report::Outcome::Migrated`]), and must otherwise
/// hold nothing that keeps its memory allocated.
///
/// # Errors
/// [`StartError`] if no port can be bound or no thread started.
pub fn start_destination(
    session: DestinationSession,
    factory: Arc<dyn GuestFactory>,
    tls: &Tls,
    records: RecordStore,
) -> Result<Handle, StartError> {
    start_with(session, factory, tls, records, Failpoints::from_environment())
}

pub(super) fn start_with(
    session: DestinationSession,
    factory: Arc<dyn GuestFactory>,
    tls: &Tls,
    records: RecordStore,
    failpoints: Failpoints,
) -> Result<Handle, StartError> {
    let (handle, channels, over) = handle(session.migration, Role::Destination);
    let (bound, outcome) = std::sync::mpsc::channel();
    let span = tracing::info_span!("migration", id = %session.migration, role = "destination");
    let tls = tls.clone();
    run("migrate-target", connections_useful(), over, move || {
        async move {
            // The runtime that drives the endpoint must also open it.
            let endpoint = match bind(&session, &tls) {
                Ok(endpoint) => endpoint,
                Err(error) => return drop(bound.send(Err(error))),
            };
            let port = endpoint.local_addr().map_or(0, |address| address.port());
            let _ = bound.send(Ok(port));
            let driver =
                Driver::new(session, factory, endpoint, port, records, failpoints, channels);
            driver.drive().await;
        }
        .instrument(span)
    })?;
    let gone = |_| StartError::Thread(std::io::Error::other("it ended at once"));
    let port = outcome.recv().map_err(gone)??;
    Ok(handle.with_port(port))
}

fn bind(session: &DestinationSession, tls: &Tls) -> Result<Endpoint, LinkError> {
    let mut outcome = Err(LinkError::Socket {
        address: session.listen.to_string(),
        reason: "no port to choose from".into(),
    });
    for port in session.ports.clone() {
        outcome = endpoint::listen_for_memory(SocketAddr::new(session.listen, port), tls);
        if outcome.is_ok() {
            return outcome;
        }
    }
    let (first, last) = (session.ports.start(), session.ports.end());
    match outcome {
        Err(LinkError::Socket { reason, .. }) if first != last => Err(LinkError::Socket {
            address: format!("{}, any of the ports {first} to {last}", session.listen),
            reason: format!("{reason}; give the node more or other ports (`lighter node --ports`)"),
        }),
        outcome => outcome,
    }
}

/// Returns the offer of a host that can, or cannot, run a guest before its memory is there.
fn offer(postcopy: bool) -> Offer {
    let ours = Offer::ours();
    let more = if postcopy { FEATURE_POSTCOPY } else { Features::default() };
    Offer { features: ours.features.with(more), ..ours }
}

/// Returns the event for a reader that has panicked, which the panic handler has reported: what it
/// had read is lost.
fn failed(ended: Result<(), JoinError>) -> Option<Event> {
    let error = ended.err().filter(JoinError::is_panic)?;
    Some(Event::DataFailed { detail: error.to_string().as_str().into() })
}

/// An input of the driver.
enum Input {
    Event(Event),
    Recorded(DestinationState, Result<(), PeerText>),
    Created(Result<Arc<dyn DestinationGuest>, Refusal>),
    Cleared(Result<Arc<dyn MissingMemory>, GuestError>),
    /// Nothing of lost connections is being applied any more.
    Counted,
    /// The last missing pages are dropped.
    Dropped,
    /// A stream of this control stream's connection carries what cannot be used.
    Unfit(u64, String),
    Heard(u64, Heard<SourceMessage>),
    Arrived(Arrival),
}

struct Driver {
    session: DestinationSession,
    factory: Arc<dyn GuestFactory>,
    line: Line,
    machine: Destination,
    clock: Clock,
    channels: SessionChannels,
    /// Answers to actions.
    input_receiver: mpsc::UnboundedReceiver<Input>,
    input_sender: mpsc::UnboundedSender<Input>,
    /// Input from the network.
    heard: mpsc::Receiver<Input>,
    hear: mpsc::Sender<Input>,
    tasks: JoinSet<()>,
    worker: Worker,
    record_writer: RecordWriter,
    totals: Arc<Totals>,
    endpoint: Endpoint,
    port: u16,
    description: Option<GuestDescription>,
    guest: Option<Arc<dyn DestinationGuest>>,
    /// Set when a copy was discarded: a guest that is still being built is then dropped.
    discarded: bool,
    memory: Option<Arc<Memory>>,
    /// Streams that arrived before the guest was built.
    early: Vec<(u16, RecvStream)>,
    /// The same, of several links.
    early_links: Vec<(SendStream, RecvStream)>,
    /// Whether streams of several links have arrived: a migration has those or the others.
    has_link_pages: bool,
    /// Streams that have arrived, one bit each.
    seen: u64,
    readers: JoinSet<()>,
    /// Wait for those of lost connections.
    counting: JoinSet<()>,
    /// The connection that has replaced lost ones: only on this may data streams come.
    successor: Option<usize>,
    features: Features,
    /// Memory that is being fetched.
    fetch: Option<Fetch>,
    /// Streams with pages that arrived before all missing pages were dropped.
    early_pages: Vec<PageStream>,
    /// Pages that arrive are placed.
    is_placing: bool,
    /// All memory that was to be fetched is there.
    is_fetched: bool,
    stated: RecordedState<DestinationState>,
    started_unix_ms: u64,
    /// Present address of the source and a name of its host, for the record.
    source: Option<(SocketAddr, Option<String>)>,
}

impl Driver {
    fn new(
        session: DestinationSession,
        factory: Arc<dyn GuestFactory>,
        endpoint: Endpoint,
        port: u16,
        records: RecordStore,
        failpoints: Failpoints,
        channels: SessionChannels,
    ) -> Self {
        let clock = Clock::start();
        let config = DestinationConfig {
            migration: session.migration,
            offer: offer(session.postcopy),
            linger: session.linger,
        };
        let (input_sender, input_receiver) = mpsc::unbounded_channel();
        let (hear, heard) = mpsc::channel(INPUTS_MAX);
        let mut tasks = JoinSet::new();
        Self {
            session,
            factory,
            line: Line::new(line::DESTINATION, failpoints),
            machine: Destination::new(config, clock.now()),
            clock,
            channels,
            input_receiver,
            input_sender,
            heard,
            hear,
            worker: Worker::start(&mut tasks),
            started_unix_ms: records.timestamp(),
            record_writer: RecordWriter::start(records, &mut tasks),
            tasks,
            totals: Arc::default(),
            endpoint,
            port,
            source: None,
            description: None,
            guest: None,
            discarded: false,
            memory: None,
            early: Vec::new(),
            early_links: Vec::new(),
            has_link_pages: false,
            seen: 0,
            readers: JoinSet::new(),
            counting: JoinSet::new(),
            successor: None,
            features: Features::default(),
            fetch: None,
            early_pages: Vec::new(),
            is_placing: false,
            is_fetched: false,
            stated: RecordedState::new(DestinationState::Loading),
        }
    }

    async fn drive(mut self) {
        let gate = Gate {
            migration: self.session.migration,
            token: self.session.token,
            inputs: self.hear.clone(),
            wrap: Input::Arrived,
        };
        self.tasks.spawn(accept(self.endpoint.clone(), gate).in_current_span());
        let mut ticks = pace::sample_ticks();
        loop {
            let deadline = self.machine.deadline();
            let is_frozen = self.line.failpoints().is_frozen();
            let next = tokio::select! {
                Some(input) = self.input_receiver.recv() => self.take(input),
                Some(input) = self.heard.recv() => self.take(input),
                Some(command) = self.channels.commands.recv() => self.obey(command),
                () = self.clock.reach(deadline), if !is_frozen => self.handle(Event::Tick),
                _ = ticks.tick(), if self.memory.is_some() => {
                    self.report_waits();
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
            Input::Event(event @ Event::StreamEnded { .. }) => {
                // The machine's totals must include the whole stream.
                self.handle(Event::Transferred(self.totals.read()));
                self.handle(event)
            }
            Input::Event(Event::Fetched) => self.on_fetched(),
            Input::Event(event) => self.handle(event),
            Input::Recorded(state, outcome) => self.on_recorded(state, outcome),
            Input::Created(Ok(guest)) => {
                if !self.discarded {
                    self.guest = Some(guest);
                }
                self.handle(Event::Created(Ok(())))
            }
            Input::Cleared(cleared) => self.on_cleared(cleared),
            Input::Counted => self.on_counted(),
            Input::Dropped => self.on_dropped(),
            Input::Unfit(generation, detail) => {
                self.on_unfit(generation, &detail);
                Next::GoOn
            }
            Input::Created(Err(refusal)) => self.handle(Event::Created(Err(refusal))),
            Input::Heard(generation, heard) if generation == self.line.generation() => {
                self.listen(heard)
            }
            Input::Heard(..) => Next::GoOn,
            Input::Arrived(Arrival::Control(connection, send, receive)) => {
                self.connected(connection, (send, receive))
            }
            Input::Arrived(Arrival::Data(connection, stream, receive)) => {
                self.admit_data(connection, stream, receive)
            }
            Input::Arrived(Arrival::Background(receive)) => self.admit_pages((None, receive)),
            Input::Arrived(Arrival::Requests(send, receive)) => {
                self.admit_pages((Some(send), receive))
            }
            Input::Arrived(Arrival::Link(connection, send, receive)) => {
                self.join(connection, (send, receive));
                Next::GoOn
            }
            Input::Arrived(Arrival::LinkPages(send, receive)) => {
                self.admit_link_pages((send, receive))
            }
        }
    }

    fn listen(&mut self, heard: Heard<SourceMessage>) -> Next {
        match heard {
            Heard::Message(message) => {
                if !self.line.may_hear(message.name()) {
                    return Next::GoOn;
                }
                self.handle(Event::Message(message))
            }
            Heard::Malformed(error) => self.handle(Event::Malformed(error)),
            Heard::LinkLost(from, detail) => {
                tracing::debug!(%from, detail, "a link of the source is lost; the others go on");
                Next::GoOn
            }
            Heard::Lost(detail) => {
                self.line.close();
                self.handle(Event::ConnectionLost { detail: detail.as_str().into() })
            }
        }
    }

    fn obey(&mut self, command: Command) -> Next {
        let (ordered, answer) = command.ask(&self.machine);
        let next = match ordered {
            Some(PendingCommand::Cancel { by }) => self.handle(Event::Cancel { by }),
            Some(PendingCommand::Resolve(choice)) => self.handle(Event::Resolve(choice)),
            // A guest that has run needs no more memory.
            Some(PendingCommand::GuestStopped { .. })
                if self.fetch.is_some() && self.machine.phase() == Phase::Postcopy =>
            {
                self.on_fetched()
            }
            // The session no longer handles the guest that runs here; the rest is the source's.
            Some(
                PendingCommand::GuestStopped { .. }
                | PendingCommand::Change(_)
                | PendingCommand::Postcopy
                | PendingCommand::Recover { .. },
            )
            | None => Next::GoOn,
        };
        answer.give();
        next
    }

    fn connected(&mut self, connection: Connection, stream: (SendStream, RecvStream)) -> Next {
        self.line.cut("replaced by a new connection of the source");
        while self.tasks.try_join_next().is_some() {}
        let address = connection.remote_address();
        let before = self.source.replace((address, peers::host_name_at(&connection)));
        let inbox = self.line.next_inbox(self.hear.clone(), Input::Heard);
        self.line.open(Control::start(vec![connection], "", stream, &mut self.tasks, &inbox));
        let next = self.handle(Event::Connected);
        if before.is_some_and(|(before, _)| before.ip() != address.ip()) {
            self.record_again();
        }
        next
    }

    /// Adds a further link to the control stream, and says so: the source sends nothing until then.
    fn join(&mut self, connection: Connection, stream: (SendStream, RecvStream)) {
        let inbox = self.line.inbox(self.hear.clone(), Input::Heard);
        let may_join = self.machine.may_add_links();
        match self.line.control_mut() {
            Some(control) if may_join && control.links() < MAX_LINKS => {
                let joining = Joining { connection, stream, greeting: &LINK_JOINED };
                control.join(joining, "", &mut self.tasks, &inbox);
            }
            _ => connection.close(NOT_ADMITTED.into(), b"no further link can be added now"),
        }
    }

    /// Reads the pages that one of several links carries, once the guest's memory exists.
    fn admit_link_pages(&mut self, stream: (SendStream, RecvStream)) -> Next {
        if self.early_links.len() >= MAX_LINKS {
            return self.data_failed("too many links carry pages");
        }
        self.early_links.push(stream);
        self.read_streams()
    }

    fn admit_data(&mut self, connection: usize, stream: u16, receive: RecvStream) -> Next {
        if self.successor.is_some_and(|successor| successor != connection) {
            tracing::debug!(stream, "a data stream of a lost connection comes too late");
            return Next::GoOn;
        }
        let bit = 1_u64 << (stream % MAX_STREAMS);
        if self.seen & bit != 0 {
            return self.data_failed(&format!("data stream {stream} was opened twice"));
        }
        self.seen |= bit;
        self.early.push((stream, receive));
        self.read_streams()
    }

    /// Starts to read the streams that have arrived, once the guest's memory exists.
    fn read_streams(&mut self) -> Next {
        let Some(memory) = self.memory.clone() else { return Next::GoOn };
        if !self.early_links.is_empty() && !self.features.has(FEATURE_LINKS) {
            return self.data_failed("a link carries pages, which was not agreed on");
        }
        self.has_link_pages |= !self.early_links.is_empty();
        if self.has_link_pages && self.seen != 0 {
            return self.data_failed("pages come both on links and on data streams");
        }
        // Tasks that have ended: a peer may open such streams without end.
        while let Some(ended) = self.readers.try_join_next() {
            if let Some(event) = failed(ended) {
                return self.handle(event);
            }
        }
        for (stream, receive_from) in std::mem::take(&mut self.early) {
            if stream >= memory.streams() {
                let detail = format!("data stream {stream} was not announced");
                return self.data_failed(&detail);
            }
            let (memory, input_sender) = (memory.clone(), self.input_sender.clone());
            self.readers.spawn(async move {
                if let Some(event) = receive(memory, stream, receive_from).await {
                    let _ = input_sender.send(Input::Event(event));
                }
            });
        }
        for stream in std::mem::take(&mut self.early_links) {
            let (memory, input_sender) = (memory.clone(), self.input_sender.clone());
            self.readers.spawn(async move {
                if let Some(event) = receive_on_link(memory, stream).await {
                    let _ = input_sender.send(Input::Event(event));
                }
            });
        }
        Next::GoOn
    }

    /// Nothing of lost connections is being applied: the frames are counted, and streams with the
    /// same numbers may come again.
    fn on_counted(&mut self) -> Next {
        self.seen = 0;
        let frames = self.memory.as_ref().map_or_else(Vec::new, |memory| memory.applied());
        self.handle(Event::Counted(frames))
    }

    fn data_failed(&mut self, detail: &str) -> Next {
        self.handle(Event::DataFailed { detail: detail.into() })
    }

    /// Passes an event to the state machine, and performs its actions.
    fn handle(&mut self, event: Event) -> Next {
        let actions = self.machine.handle(event, self.clock.now());
        let mut next = Next::GoOn;
        for action in actions {
            if self.perform(action) == Next::End {
                next = Next::End;
            }
        }
        self.channels.progress.send_replace(self.machine.progress(self.clock.now()));
        next
    }

    /// Waits until queued messages and records are written, then ends all tasks and frees
    /// everything.
    async fn leave(self) {
        let Self {
            mut tasks,
            mut readers,
            mut counting,
            endpoint,
            line,
            record_writer,
            worker,
            ..
        } = self;
        readers.shutdown().await;
        counting.shutdown().await;
        drop((
            line,
            record_writer,
            worker,
            self.memory,
            self.fetch,
            self.guest,
            self.input_receiver,
            self.heard,
        ));
        endpoint.set_server_config(None);
        // The writer of the control stream closes its connection once everything is acknowledged.
        // The endpoint then has none left and can be closed, which also ends the accepting task.
        let quiet = async {
            let _ = timeout(Duration::from_secs(3), endpoint.wait_idle()).await;
            endpoint.close(0_u32.into(), b"");
            while tasks.join_next().await.is_some() {}
            let _ = timeout(Duration::from_secs(1), endpoint.wait_idle()).await;
        };
        if timeout(LEFTOVER_TIME, quiet).await.is_err() {
            tracing::warn!("gave up waiting for parts of the migration to end");
            tasks.shutdown().await;
        }
    }
}
