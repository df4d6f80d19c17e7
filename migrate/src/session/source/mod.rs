//! The shell of the source: sends one guest to another host.

mod actions;
mod calls;
mod links;
mod records;

pub(super) use calls::{dry_run, flush_twice, run_state};

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use quinn::Endpoint;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::Instrument;

use super::clock::Clock;
use super::connect::{Contact, Joined, NoContact, Reached, Route};
use super::control::{Control, Heard};
use super::handle::{Command, Handle, PendingCommand, SessionChannels, handle};
use super::limiter::Limiter;
use super::line::{self, Line};
use super::links::Links;
use super::pace::{self, INPUTS_MAX, LEFTOVER_TIME, Next};
use super::record_writer::{RecordWriter, RecordedState};
use super::sender::{Sender, SenderReport};
use super::serve::Server;
use super::stream_sender::StreamContext;
use super::thread::{StartError, connections_useful, run};
use super::totals::Totals;
use super::worker::Worker;
use crate::error::RecoverRefused;
use crate::failpoint::Failpoints;
use crate::guest::{GuestDescription, SourceGuest};
use crate::limits::Limits;
use crate::memory::PageSet;
use crate::pages::Compression;
use crate::phase::Phase;
use crate::progress::{Progress, Role};
use crate::protocol::{DestinationMessage, FEATURE_POSTCOPY, MigrationId, Offer};
use crate::quic::Tls;
use crate::quic::transport::CONNECTIONS_MAX;
use crate::record::{RecordStore, SourceState};
use crate::report::Estimated;
use crate::source::{Event, Source, SourceConfig};
use crate::text::PeerText;

/// The destination and the settings of a migration.
#[derive(Debug, Clone)]
pub struct SourceSession {
    /// Identifier of this attempt; [`MigrationId::random`].
    pub migration: MigrationId,
    /// Host name or IP address of the destination's node.
    pub host: String,
    /// UDP port of the destination's node.
    pub port: u16,
    /// Addresses of that host, tried in turn; looked up if empty.
    pub addresses: Vec<SocketAddr>,
    /// Name that the destination's certificate must carry; `host` if none.
    pub server_name: Option<String>,
    /// The operator's limits.
    pub limits: Limits,
    /// Most bytes per second on the data streams; none for no limit.
    pub bandwidth: Option<u64>,
    /// The compression mode.
    pub compression: Compression,
    /// Number of connections, 1 to 16; none for the best number on this host, or if there are
    /// links.
    pub connections: Option<u16>,
    /// Addresses of the destination's host on the links to use at once, at most
    /// [`MAX_LINKS`](crate::protocol::MAX_LINKS); empty to use one of `addresses`.
    pub links: Vec<IpAddr>,
    /// UDP port of this host's node, which the destination records; none if no node runs here.
    pub node_port: Option<NonZeroU16>,
    /// What an estimate said of this migration, for its report.
    pub estimate: Option<Estimated>,
}

impl SourceSession {
    /// Whether it uses several links at once.
    fn has_links(&self) -> bool {
        self.links.len() > 1
    }

    /// Returns the number of connections to make at first; each of several links has one.
    pub(super) fn connections_wanted(&self) -> u16 {
        match self.has_links() {
            true => 1,
            false => {
                self.connections.unwrap_or_else(connections_useful).clamp(1, CONNECTIONS_MAX.into())
            }
        }
    }

    /// Returns the configuration of the state machine for the guest of this description.
    pub(super) fn config(&self, guest: GuestDescription) -> SourceConfig {
        let ours = Offer::ours();
        SourceConfig {
            migration: self.migration,
            guest,
            offer: Offer { features: ours.features.with(FEATURE_POSTCOPY), ..ours },
            streams: self.connections.unwrap_or(1),
            has_links: self.has_links(),
            limits: self.limits,
            node_port: self.node_port,
            estimate: self.estimate,
        }
    }
}

/// Starts to migrate `guest` to another host, on a separate thread.
///
/// The guest's owner destroys it once the report says that it is at the destination
/// ([`crate::report::Outcome::Migrated`]) or lost; the session itself only stops using it.
///
/// # Errors
/// [`StartError`] if no thread can be started; the report has all later errors.
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
    let (handle, channels, over) = handle(session.migration, Role::Source);
    let connections = session.connections_wanted();
    let all_connections = connections.max(u16::try_from(session.links.len()).unwrap_or(u16::MAX));
    let span = tracing::info_span!("migration", id = %session.migration, role = "source");
    run("migrate-source", all_connections.min(connections_useful()), over, move || {
        let session = SourceSession { connections: Some(connections), ..session };
        async move { Driver::new(session, guest, tls, records, failpoints, channels).drive().await }
            .instrument(span)
    })?;
    Ok(handle)
}

/// An input of the driver.
#[derive(Debug)]
enum Input {
    Event(Event),
    Sender(SenderReport),
    Recorded(SourceState, Result<(), PeerText>),
    Heard(u64, Heard<DestinationMessage>),
    Approached(Result<Contact, NoContact>),
    Reached(u64, Result<Reached, String>),
    /// The destination has added these links to this control stream; its greeting can be handled.
    Joined(u64, DestinationMessage, Vec<Joined>),
    /// The record names this route, which an operator gave, or could not be written.
    Named(Route, Result<(), RecoverRefused>, oneshot::Sender<Result<(), RecoverRefused>>),
}

struct Driver {
    session: SourceSession,
    guest: Arc<dyn SourceGuest>,
    description: GuestDescription,
    tls: Tls,
    line: Line,
    machine: Source,
    clock: Clock,
    channels: SessionChannels,
    /// Answers to actions.
    input_receiver: mpsc::UnboundedReceiver<Input>,
    input_sender: mpsc::UnboundedSender<Input>,
    /// Messages from the peer.
    heard: mpsc::Receiver<Input>,
    hear: mpsc::Sender<Input>,
    tasks: JoinSet<()>,
    worker: Worker,
    record_writer: RecordWriter,
    limiter: Arc<Limiter>,
    totals: Arc<Totals>,
    found: Option<Route>,
    /// Where it was last reached: an address that an operator gives may be wrong.
    reached: Option<Route>,
    /// What records say of that: another route from an operator comes into them before it is taken.
    named: Option<Route>,
    endpoints: Vec<Endpoint>,
    links: Arc<Links>,
    /// Connections on further links, until the destination can add those.
    further: Vec<(IpAddr, quinn::Connection)>,
    /// What reconnects on each of several links.
    redialers: Vec<(IpAddr, Endpoint)>,
    sender: Option<Sender>,
    /// What all streams with pages share, once there are some.
    context: Option<StreamContext>,
    /// Pages that the destination lacked when it was last reached.
    missing: PageSet,
    /// Sends those to the destination on the present connection.
    server: Option<Server>,
    /// Round-trip time of the last connection that was measured.
    round_trip: Duration,
    /// Set while a flush of the disks during a round is under way.
    flushing: Arc<AtomicBool>,
    /// Set when the guest is no longer this migration's to pause and resume.
    is_called_off: Arc<AtomicBool>,
    stated: RecordedState<SourceState>,
    started_unix_ms: u64,
}

impl Driver {
    fn new(
        session: SourceSession,
        guest: Arc<dyn SourceGuest>,
        tls: Tls,
        records: RecordStore,
        failpoints: Failpoints,
        channels: SessionChannels,
    ) -> Self {
        let clock = Clock::start();
        let description = guest.describe();
        let config = session.config(description.clone());
        let (input_sender, input_receiver) = mpsc::unbounded_channel();
        let (hear, heard) = mpsc::channel(INPUTS_MAX);
        let mut tasks = JoinSet::new();
        Self {
            guest,
            description,
            tls,
            line: Line::new(line::SOURCE, failpoints),
            machine: Source::new(config, clock.now()),
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
            limiter: Arc::new(Limiter::new(session.bandwidth)),
            totals: Arc::default(),
            found: None,
            reached: None,
            named: None,
            endpoints: Vec::new(),
            links: Arc::new(Links::new(if session.has_links() { &session.links } else { &[] })),
            further: Vec::new(),
            redialers: Vec::new(),
            sender: None,
            context: None,
            missing: PageSet::empty(0),
            server: None,
            round_trip: Duration::ZERO,
            flushing: Arc::default(),
            is_called_off: Arc::default(),
            stated: RecordedState::new(SourceState::Undecided),
            session,
        }
    }

    async fn drive(mut self) {
        self.approach();
        let mut ticks = pace::sample_ticks();
        loop {
            let deadline = self.machine.deadline();
            let is_frozen = self.line.failpoints().is_frozen();
            let next = tokio::select! {
                Some(input) = self.input_receiver.recv() => self.take(input),
                Some(input) = self.heard.recv() => self.take(input),
                Some(command) = self.channels.commands.recv() => self.obey(command),
                () = self.clock.reach(deadline), if !is_frozen => self.handle(Event::Tick),
                _ = ticks.tick(), if self.sender.is_some() => {
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
            Input::Event(event) => self.handle(event),
            Input::Sender(report) => self.on_sender_report(report),
            Input::Recorded(state, outcome) => self.on_recorded(state, outcome),
            Input::Heard(generation, heard) if generation == self.line.generation() => {
                self.listen(heard)
            }
            Input::Heard(..) => Next::GoOn,
            Input::Approached(Ok(contact)) => {
                self.named = Some(contact.found.clone());
                self.reached = Some(contact.found.clone());
                self.found = Some(contact.found);
                self.endpoints = contact.endpoints;
                self.keep_links(contact.links);
                self.connected(contact.connections, contact.control)
            }
            Input::Approached(Err(NoContact::Refused(refusal))) => {
                self.handle(Event::Message(DestinationMessage::Refused(refusal)))
            }
            Input::Approached(Err(NoContact::Failed(reason, detail))) => {
                self.line.close();
                self.handle(Event::NotConnected { reason, detail: detail.as_str().into() })
            }
            Input::Reached(generation, reached) if generation == self.line.generation() => {
                match reached {
                    Ok(Reached::Process(route, connection, control)) => {
                        self.links.regain(route.process.ip());
                        self.reached = Some(route.clone());
                        self.prefer(route);
                        self.connected(vec![connection], control)
                    }
                    Ok(Reached::Node(decided, answer)) if decided == self.decision() => {
                        self.answered(answer)
                    }
                    Ok(Reached::Node(..)) => self.lost("it was told what is decided no more"),
                    Err(detail) => self.lost(&detail),
                }
            }
            Input::Joined(generation, welcome, joined) if generation == self.line.generation() => {
                self.on_joined(welcome, joined)
            }
            Input::Reached(..) | Input::Joined(..) => Next::GoOn,
            Input::Named(route, outcome, answer) => {
                self.on_named(route, &outcome);
                // The operator may no longer wait for it.
                drop(answer.send(outcome));
                Next::GoOn
            }
        }
    }

    /// Handles a report of the sender, unless it is of a connection that was lost since.
    fn on_sender_report(&mut self, report: SenderReport) -> Next {
        match report {
            SenderReport::GuestFailed(error) => self.handle(Event::GuestFailed(error)),
            SenderReport::Done(generation, event) if generation == self.line.generation() => {
                // The machine's totals must include the whole round.
                self.handle(Event::Transferred(self.totals.read()));
                self.handle(event)
            }
            SenderReport::Lost(generation, detail) if generation == self.line.generation() => {
                self.lost(&detail)
            }
            SenderReport::Done(..) | SenderReport::Lost(..) => Next::GoOn,
        }
    }

    fn listen(&mut self, heard: Heard<DestinationMessage>) -> Next {
        match heard {
            Heard::Message(message) => {
                if !self.line.may_hear(message.name()) {
                    return Next::GoOn;
                }
                if matches!(message, DestinationMessage::Complete { .. }) {
                    // The report must include all that followed the guest.
                    self.handle(Event::Transferred(self.totals.read()));
                }
                self.hear_message(message)
            }
            Heard::Malformed(error) => self.handle(Event::Malformed(error)),
            Heard::LinkLost(address, detail) => self.link_lost(address, &detail),
            Heard::Lost(detail) => self.lost(&detail),
        }
    }

    fn obey(&mut self, command: Command) -> Next {
        let (ordered, answer) = command.ask(&self.machine);
        let next = match ordered {
            Some(PendingCommand::Cancel { by }) => self.handle(Event::Cancel { by }),
            Some(PendingCommand::Change(change)) => {
                if let Some(rate) = change.bandwidth {
                    self.limiter.set(rate);
                }
                self.handle(Event::Change(change))
            }
            Some(PendingCommand::Postcopy) => self.handle(Event::Postcopy),
            Some(PendingCommand::Recover { address, answer }) => {
                self.look_at(address, answer);
                Next::GoOn
            }
            Some(PendingCommand::Resolve(choice)) => self.handle(Event::Resolve(choice)),
            Some(PendingCommand::GuestStopped { detail }) => {
                self.handle(Event::GuestStopped { detail })
            }
            None => Next::GoOn,
        };
        answer.give();
        next
    }

    fn connected(
        &mut self,
        connections: Vec<quinn::Connection>,
        stream: (quinn::SendStream, quinn::RecvStream),
    ) -> Next {
        let name = self.found.as_ref().map_or("", |found| &found.node.name).to_owned();
        self.round_trip = connections.first().map_or(self.round_trip, quinn::Connection::rtt);
        let inbox = self.line.next_inbox(self.hear.clone(), Input::Heard);
        self.line.open(Control::start(connections, &name, stream, &mut self.tasks, &inbox));
        self.handle(Event::Connected)
    }

    /// The node has answered instead of the process: there is no connection, only this message.
    fn answered(&mut self, message: DestinationMessage) -> Next {
        if matches!(message, DestinationMessage::Missing(_)) {
            // A process that lacks pages is asked itself, on a connection that can carry them.
            return self.lost("the node spoke for a process");
        }
        self.line.close();
        match self.handle(Event::Connected) {
            Next::GoOn => self.handle(Event::Message(message)),
            Next::End => Next::End,
        }
    }

    fn lost(&mut self, detail: &str) -> Next {
        self.server = None;
        if self.machine.phase() <= Phase::Precopy || self.machine.may_return() {
            // Streams on what is left of it must not wait any longer.
            self.line.cut("another of its connections or streams is lost");
        }
        self.line.close();
        self.handle(Event::ConnectionLost { detail: detail.into() })
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
        self.publish();
        next
    }

    fn publish(&self) {
        let progress = self.machine.progress(self.clock.now());
        self.channels.progress.send_replace(Progress { links: self.links.read(), ..progress });
    }

    /// Waits until queued messages and records are written, then ends all tasks and frees
    /// everything.
    async fn leave(self) {
        self.call_off();
        let Self {
            mut tasks,
            mut endpoints,
            redialers,
            sender,
            server,
            line,
            record_writer,
            worker,
            input_receiver,
            heard,
            ..
        } = self;
        drop((sender, server, line, record_writer, worker, input_receiver, heard));
        let quiet = async { while tasks.join_next().await.is_some() {} };
        if timeout(LEFTOVER_TIME, quiet).await.is_err() {
            tracing::warn!("gave up waiting for parts of the migration to end");
            tasks.shutdown().await;
        }
        endpoints.extend(redialers.into_iter().map(|(_, redialer)| redialer));
        endpoints.iter().for_each(|endpoint| endpoint.close(0_u32.into(), b""));
        let idle = async {
            for endpoint in &endpoints {
                endpoint.wait_idle().await;
            }
        };
        let _ = timeout(Duration::from_secs(1), idle).await;
    }
}
