//! Two hosts, their disks and the network between them, in virtual time.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroU16;
use std::time::Duration;

use migrate::destination::{self, Destination, DestinationConfig};
use migrate::protocol::codec::{CodecError, HEAD_BYTES, Message, decode, head};
use migrate::protocol::{
    DestinationMessage, FEATURE_EARLY_COMMIT, FEATURE_POSTCOPY, Features, MigrationId, Offer,
    SourceMessage,
};
use migrate::record::{DestinationState, SourceState};
use migrate::report::Report;
use migrate::source::{self, Source, SourceConfig};
use migrate::{Limits, PageSet};
use uuid::Uuid;

use crate::faults::{Reached, RecordLoss, Scenario, Side, What, When};
use crate::guest::{CHUNKS, Content, SimGuest, description};

/// The downtime limit of the migrations here.
pub(crate) const DOWNTIME_LIMIT: Duration = Duration::from_millis(100);

/// Virtual time after which no event may be left.
pub(crate) const END: Duration = Duration::from_secs(30 * 24 * 3600);

pub(crate) struct SourceProcess {
    pub(crate) machine: Source,
    pub(crate) guest: Option<SimGuest>,
    pub(crate) conn: Option<u64>,
    pub(crate) settled: bool,
    pub(crate) pending: PageSet,
    /// Pages of the current round that are not copied yet.
    pub(crate) unsent: PageSet,
    /// Pages that follow the guest, and that the destination does not request.
    pub(crate) rest: PageSet,
    /// When the last page that follows the guest will have been sent.
    pub(crate) served_at: Duration,
    /// Invalidates the rounds from before the last `StopSending` or `ReopenStreams`.
    pub(crate) generation: u32,
    /// Invalidates what was to be saved before the last `StopSending`.
    pub(crate) stops: u32,
    /// The factor by which the cost of a page on the link has grown since the pause.
    pub(crate) slower: u32,
    pub(crate) frames: Vec<u64>,
    /// For each stream, how many frames of earlier ones with its number were applied.
    pub(crate) frames_before: Vec<u64>,
    /// For each chunk, the last frame that carried it, and the pages of all that did.
    pub(crate) journal: Vec<(u64, u64)>,
    pub(crate) stream_clock: Vec<Duration>,
}

/// A chunk, which of its pages are sent, and the content of all of them.
pub(crate) type ChunkPages = (usize, u64, Vec<u64>);

pub(crate) struct DestinationProcess {
    pub(crate) machine: Destination,
    pub(crate) guest: Option<SimGuest>,
    pub(crate) conn: Option<u64>,
    pub(crate) settled: bool,
    pub(crate) accepts: bool,
    pub(crate) fetches: bool,
    /// Pages of chunks that arrived before the last missing pages were dropped.
    pub(crate) early: Vec<ChunkPages>,
    /// Frames applied of each data stream, of all connections.
    pub(crate) applied: Vec<u64>,
    /// The same of one connection and stream.
    pub(crate) applied_of: HashMap<(u64, usize), u64>,
}

/// A piece of a data stream.
#[derive(Debug, Clone)]
pub(crate) struct Carried {
    pub(crate) conn: u64,
    pub(crate) stream: usize,
    pub(crate) piece: Piece,
}

#[derive(Debug, Clone)]
pub(crate) enum Piece {
    /// The n-th frame of the stream, from 1.
    Frame { number: u64, pages: ChunkPages },
    /// Its end, and the number of its frames.
    End { frames: u64 },
}

/// The party at one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Source,
    /// The node of the source's host, after the source's death.
    SourceNode,
    Destination,
    /// The node of the destination's host, after the destination's death.
    DestinationNode,
}

#[derive(Debug, Clone)]
pub(crate) struct Conn {
    pub(crate) near: End,
    pub(crate) far: End,
    pub(crate) broken: bool,
    /// Pieces of data streams that are on their way or not applied.
    pub(crate) under_way: u32,
    /// When the last message of each side arrives: none overtakes another.
    pub(crate) last_arrival: HashMap<Side, Duration>,
}

impl Conn {
    pub(crate) fn new(near: End, far: End) -> Self {
        Self { near, far, broken: false, under_way: 0, last_arrival: HashMap::new() }
    }
}

pub(crate) enum Happening {
    Start,
    ToSource(source::Event),
    ToDestination(destination::Event),
    FromSource(u64, Vec<u8>),
    FromDestination(u64, Vec<u8>),
    Lost(u64, Side),
    Dialled,
    PauseDone,
    Save { stops: u32 },
    Copy { generation: u32, chunk: usize, mask: u64 },
    RoundDone { generation: u32, pages: u64 },
    Arrived(Carried),
    Applied(Carried),
    Counting,
    Postcopy,
    Fetched { conn: u64, pages: ChunkPages },
    Dropped { missing: PageSet },
    Resolver,
    Fault(What),
}

/// The facts of a run, which the final checks judge.
#[derive(Default)]
pub(crate) struct Facts {
    pub(crate) source_reports: Vec<Report>,
    pub(crate) destination_reports: Vec<Report>,
    pub(crate) violations: Vec<String>,
    /// The source died with the only copy that could run.
    pub(crate) source_died_as_owner: bool,
    /// The destination died with the only copy that could run.
    pub(crate) destination_died_as_owner: bool,
    pub(crate) source_killed: bool,
    pub(crate) destination_killed: bool,
    pub(crate) destination_disk_lost: bool,
    pub(crate) operator_discarded: bool,
    pub(crate) forced: bool,
    pub(crate) cancelled_in_time: bool,
    /// The destination owned the guest but could not resume it.
    pub(crate) takeover_failed: bool,
    /// The source could not resume its guest, and keeps it paused.
    pub(crate) resume_failed: bool,
    pub(crate) node_in_doubt: bool,
    /// The destination died between its record that the guest is its own and the guest's start.
    pub(crate) died_taking_over: bool,
    pub(crate) source_record_failed: bool,
    pub(crate) destination_ran: bool,
}

pub(crate) struct World {
    pub(crate) scenario: Scenario,
    pub(crate) now: Duration,
    sequence: u64,
    queue: BTreeMap<(Duration, u64), Happening>,
    pub(crate) source: Option<SourceProcess>,
    pub(crate) destination: Option<DestinationProcess>,
    pub(crate) source_disk: Option<SourceState>,
    pub(crate) destination_disk: Option<DestinationState>,
    pub(crate) conns: HashMap<u64, Conn>,
    pub(crate) resolver_conn: Option<u64>,
    pub(crate) resolver_tries: u32,
    pub(crate) outage_until: Duration,
    pub(crate) messages: u32,
    pub(crate) actions: HashMap<Side, u32>,
    /// Where the source was about to slow the guest down or to pause it for the first time.
    pub(crate) turn: Option<Reached>,
    /// How often it has asked the guest to pause.
    pub(crate) hand_overs: u32,
    pub(crate) lose_message: bool,
    pub(crate) hold_message: Duration,
    pub(crate) lose_frame: bool,
    pub(crate) fail_record: HashMap<Side, RecordLoss>,
    pub(crate) fail_guest: HashMap<Side, bool>,
    /// When the source asked a running guest to pause; `None` once it has committed or resumed the
    /// guest.
    pub(crate) stands_since: Option<Duration>,
    /// When the flush of the disks that the guest has written completes.
    pub(crate) flushed_at: Option<Duration>,
    /// The source has sent the last of what the destination needs to be ready.
    pub(crate) is_all_sent: bool,
    /// The content that the next copy to run must have.
    pub(crate) truth: Option<Content>,
    pub(crate) facts: Facts,
    /// What has happened, if it is traced.
    pub(crate) trace: Option<Vec<String>>,
}

/// The operator's limits, unless a scenario has others.
pub(crate) fn limits() -> Limits {
    let total = Some(Duration::from_secs(120));
    Limits { downtime: DOWNTIME_LIMIT, total, ..Limits::default() }
}

pub(crate) fn migration() -> MigrationId {
    MigrationId(Uuid::from_u128(0xfeed))
}

/// Returns the offer of a side whose host can do everything, or everything but early commits.
fn offer(is_early: bool) -> Offer {
    let features = Features::SUPPORTED.with(FEATURE_POSTCOPY);
    let late = features.without(FEATURE_EARLY_COMMIT);
    Offer { features: if is_early { features } else { late }, ..Offer::ours() }
}

fn source_config(scenario: &Scenario) -> SourceConfig {
    SourceConfig {
        migration: migration(),
        guest: description(),
        offer: offer(scenario.is_early),
        streams: scenario.streams,
        has_links: false,
        limits: Limits {
            downtime_max: scenario.downtime_max,
            on_stall: scenario.on_stall,
            ..limits()
        },
        node_port: NonZeroU16::new(4950),
        estimate: None,
    }
}

fn destination_config() -> DestinationConfig {
    DestinationConfig {
        migration: migration(),
        offer: offer(true),
        linger: Duration::from_secs(60),
    }
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let mut guest = SimGuest::filled(scenario.writes_per_second, scenario.working_set);
        guest.running = !scenario.paused_by_user;
        let streams = usize::from(scenario.streams);
        let mut world = Self {
            source: Some(SourceProcess {
                machine: Source::new(source_config(&scenario), Duration::ZERO),
                guest: Some(guest),
                conn: None,
                settled: false,
                pending: PageSet::full(CHUNKS),
                unsent: PageSet::empty(CHUNKS),
                rest: PageSet::empty(CHUNKS),
                served_at: Duration::ZERO,
                generation: 0,
                stops: 0,
                slower: 1,
                frames: vec![0; streams],
                frames_before: vec![0; streams],
                journal: vec![(0, 0); CHUNKS],
                stream_clock: vec![Duration::ZERO; streams],
            }),
            destination: Some(DestinationProcess {
                machine: Destination::new(destination_config(), Duration::ZERO),
                guest: None,
                conn: None,
                settled: false,
                accepts: false,
                fetches: false,
                early: Vec::new(),
                applied: vec![0; streams],
                applied_of: HashMap::new(),
            }),
            scenario,
            now: Duration::ZERO,
            sequence: 0,
            queue: BTreeMap::new(),
            source_disk: None,
            destination_disk: None,
            conns: HashMap::new(),
            resolver_conn: None,
            resolver_tries: 0,
            outage_until: Duration::ZERO,
            messages: 0,
            actions: HashMap::new(),
            turn: None,
            hand_overs: 0,
            lose_message: false,
            hold_message: Duration::ZERO,
            lose_frame: false,
            fail_record: HashMap::new(),
            fail_guest: HashMap::new(),
            stands_since: None,
            flushed_at: None,
            is_all_sent: false,
            truth: None,
            facts: Facts::default(),
            trace: None,
        };
        world.after(Duration::ZERO, Happening::Start);
        if let Some(ms) = world.scenario.postcopy_at_ms {
            world.after(Duration::from_millis(ms.into()), Happening::Postcopy);
        }
        for fault in world.scenario.faults.clone() {
            if let When::At(ms) = fault.when {
                world.after(Duration::from_millis(ms.into()), Happening::Fault(fault.what));
            }
        }
        world
    }

    pub(crate) fn after(&mut self, delay: Duration, what: Happening) {
        self.sequence += 1;
        self.queue.insert((self.now + delay, self.sequence), what);
    }

    pub(crate) fn at(&mut self, time: Duration, what: Happening) {
        self.after(time.saturating_sub(self.now), what);
    }

    pub(crate) fn note(&mut self, text: impl FnOnce() -> String) {
        let now = self.now;
        if let Some(trace) = self.trace.as_mut().filter(|trace| trace.len() < 2000) {
            trace.push(format!("{:>12.3} ms  {}", now.as_secs_f64() * 1e3, text()));
        }
    }

    pub(crate) fn violation(&mut self, text: &str) {
        self.note(|| format!("VIOLATION {text}"));
        self.facts.violations.push(text.to_owned());
    }

    /// Returns how far it has come.
    pub(crate) fn reached(&self) -> Reached {
        let next = |side| self.actions.get(&side).copied().unwrap_or_default();
        Reached {
            message: self.messages,
            source_action: next(Side::Source),
            destination_action: next(Side::Destination),
            at: self.now,
        }
    }

    /// Runs until no event is left.
    pub(crate) fn run(&mut self) {
        loop {
            let ticks = [
                self.source.as_ref().filter(|s| !s.settled).and_then(|s| s.machine.deadline()),
                self.destination.as_ref().filter(|d| !d.settled).and_then(|d| d.machine.deadline()),
            ];
            let next = self.queue.keys().next().map(|(time, _)| *time);
            let Some(time) = ticks.into_iter().flatten().chain(next).min() else { break };
            self.now = self.now.max(time);
            if self.now > END {
                self.violation("something is still happening after the end");
                break;
            }
            self.advance_guests();
            if next == Some(time) {
                if let Some((_, happening)) = self.queue.pop_first() {
                    self.happen(happening);
                }
            } else if ticks[0] == Some(time) {
                self.feed_source(source::Event::Tick);
            } else {
                self.feed_destination(destination::Event::Tick);
            }
            self.check_always();
        }
    }

    fn advance_guests(&mut self) {
        let now = self.now;
        let source = self.source.as_mut().and_then(|source| source.guest.as_mut());
        let destination = self.destination.as_mut().and_then(|side| side.guest.as_mut());
        for guest in source.into_iter().chain(destination) {
            guest.advance(now);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Start => self.connect(End::Source),
            Happening::ToSource(event) => self.feed_source(event),
            Happening::ToDestination(event) => self.feed_destination(event),
            Happening::FromSource(conn, bytes) => self.deliver_to_far(conn, &bytes),
            Happening::FromDestination(conn, bytes) => self.deliver_to_near(conn, &bytes),
            Happening::Lost(conn, side) => self.lose(conn, side),
            Happening::Dialled => self.connect(End::Source),
            Happening::PauseDone => self.pause_done(),
            Happening::Save { stops } => self.save(stops),
            Happening::Copy { generation, chunk, mask } => self.copy(generation, chunk, mask),
            Happening::RoundDone { generation, pages } => self.round_done(generation, pages),
            Happening::Arrived(carried) => self.arrive(carried),
            Happening::Applied(carried) => self.apply(carried),
            Happening::Counting => self.count_frames(),
            Happening::Postcopy => self.feed_source(source::Event::Postcopy),
            Happening::Fetched { conn, pages } => self.fetched(conn, pages),
            Happening::Dropped { missing } => self.dropped(&missing),
            Happening::Resolver => self.dial_as_node(),
            Happening::Fault(what) => self.inflict(what),
        }
    }

    fn deliver_to_far(&mut self, conn: u64, bytes: &[u8]) {
        let Some(end) = self.conns.get(&conn).filter(|c| !c.broken).map(|c| c.far) else { return };
        let message: Result<SourceMessage, CodecError> = decode_frame(bytes);
        match end {
            End::DestinationNode => self.ask_destination_node(conn, &message),
            _ if self.destination.as_ref().is_some_and(|d| d.conn == Some(conn)) => {
                let event = match message {
                    Ok(message) => destination::Event::Message(message),
                    Err(error) => destination::Event::Malformed(error),
                };
                self.feed_destination(event);
            }
            _ => {}
        }
    }

    fn deliver_to_near(&mut self, conn: u64, bytes: &[u8]) {
        let Some(end) = self.conns.get(&conn).filter(|c| !c.broken).map(|c| c.near) else { return };
        let message: Result<DestinationMessage, CodecError> = decode_frame(bytes);
        match end {
            End::SourceNode => self.answer_to_source_node(conn, &message),
            _ if self.source.as_ref().is_some_and(|s| s.conn == Some(conn)) => {
                let event = match message {
                    Ok(message) => source::Event::Message(message),
                    Err(error) => source::Event::Malformed(error),
                };
                self.feed_source(event);
            }
            _ => {}
        }
    }

    /// Notifies one side that a connection is gone.
    fn lose(&mut self, conn: u64, side: Side) {
        let detail = "cut by the test".into();
        match side {
            Side::Source => {
                if self.resolver_conn == Some(conn) {
                    self.resolver_conn = None;
                    self.after(Duration::from_secs(1), Happening::Resolver);
                } else if self.source.as_ref().is_some_and(|s| s.conn == Some(conn)) {
                    if let Some(source) = &mut self.source {
                        source.conn = None;
                    }
                    self.feed_source(source::Event::ConnectionLost { detail });
                }
            }
            Side::Destination => {
                if self.destination.as_ref().is_some_and(|d| d.conn == Some(conn)) {
                    if let Some(destination) = &mut self.destination {
                        destination.conn = None;
                    }
                    self.feed_destination(destination::Event::ConnectionLost { detail });
                }
            }
        }
    }

    /// Carries out the faults that are due at this point.
    pub(crate) fn faults_at(&mut self, moment: When) {
        let due: Vec<What> = self
            .scenario
            .faults
            .iter()
            .filter(|fault| fault.when == moment)
            .map(|fault| fault.what)
            .collect();
        for what in due {
            // A fault that is an event of its own waits until the current actions are done.
            let is_event = matches!(
                what,
                What::Cancel(_) | What::OperatorDiscards(_) | What::OperatorRunsAfterDeathOfSource
            );
            if is_event {
                self.after(Duration::ZERO, Happening::Fault(what));
            } else {
                self.inflict(what);
            }
        }
    }
}

/// Decodes a whole frame.
fn decode_frame<M: Message>(frame: &[u8]) -> Result<M, CodecError> {
    let Some((first, body)) = frame.split_first_chunk::<HEAD_BYTES>() else {
        let detail = format!("{} bytes are no frame", frame.len());
        return Err(CodecError::Malformed { kind: 0, detail });
    };
    decode(head::<M>(*first)?, body)
}
