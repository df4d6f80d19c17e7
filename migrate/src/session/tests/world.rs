//! Two hosts on loopback, with guests that consist only of memory.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use uuid::Uuid;

use super::free_pages::FakeHints;
use super::memory::{Content, FakeMemory, fill_page};
use super::missing::FakeMissing;
use super::relay::{Relay, SilencedByPause};

use crate::failpoint::Failpoints;
use crate::front::{FrontHandler, serve};
use crate::guest::{
    DestinationGuest, GuestDescription, GuestError, GuestFactory, HintProgress, MissingMemory,
    Refusal, RefusalKind, SourceGuest,
};
use crate::limits::Limits;
use crate::memory::{MemoryLayout, Region};
use crate::pages::Compression;
use crate::phase::Phase;
use crate::progress::Role;
use crate::protocol::front::{FrontReply, FrontRequest};
use crate::protocol::{Decision, MigrationId, Token};
use crate::quic::{Authority, Identity, Tls, endpoint};
use crate::record::{DestinationState, RecordStore, Side};
use crate::report::{Outcome, Report};
use crate::resolve::answer_for_dead;
use crate::session::{DestinationSession, Handle, SourceSession, destination, source};
use crate::text::Blob;

pub(super) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const CHUNK: u64 = 256 << 10;
/// Longest wait for anything in these tests; a test that reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// A guest at the source. A pause does not come between the write to a page and its mark as dirty.
pub(super) struct FakeSource {
    pub(super) memory: FakeMemory,
    dirty: Vec<AtomicU64>,
    running: AtomicBool,
    gate: RwLock<()>,
    pub(super) fail_save: AtomicBool,
    /// Whether it takes until this is false to say which pages need not be sent, and whether that
    /// panics then.
    pub(super) is_slow: AtomicBool,
    pub(super) panics: AtomicBool,
    /// Whether the next reading of the log has all pages, as with old kernels.
    pub(super) reports_all: AtomicBool,
    /// Whether its disks hang while it is paused.
    stuck: (Mutex<bool>, Condvar),
    /// Whether they hang while it runs, too.
    pub(super) is_stuck_running: AtomicBool,
    hanging: AtomicBool,
    pub(super) silenced: SilencedByPause,
    /// Flushes, pauses and saves, in their order.
    pub(super) steps: Mutex<Vec<&'static str>>,
    pub(super) hints: FakeHints,
}

pub(super) const STATE: &[u8] = b"state of vCPUs and devices";

impl FakeSource {
    pub(super) fn new(chunks: usize, content: Content) -> Arc<Self> {
        Self::hinting(chunks, content, FakeHints::default())
    }

    pub(super) fn hinting(chunks: usize, content: Content, hints: FakeHints) -> Arc<Self> {
        let memory = FakeMemory::new(chunks);
        memory.fill(content, 7);
        Arc::new(Self {
            memory,
            dirty: std::iter::repeat_with(AtomicU64::default).take(chunks).collect(),
            running: AtomicBool::new(true),
            gate: RwLock::new(()),
            fail_save: AtomicBool::new(false),
            is_slow: AtomicBool::new(false),
            panics: AtomicBool::new(false),
            reports_all: AtomicBool::new(false),
            stuck: Default::default(),
            is_stuck_running: AtomicBool::new(false),
            hanging: AtomicBool::new(false),
            silenced: SilencedByPause::default(),
            steps: Mutex::default(),
            hints,
        })
    }

    fn refuse_to_save(&self) -> Result<(), GuestError> {
        match self.fail_save.load(SeqCst) {
            true => Err(GuestError::new("cannot read the registers of vCPU 0")),
            false => Ok(()),
        }
    }

    /// Returns whether a flush hangs, or has hung.
    pub(super) fn is_hanging(&self) -> bool {
        self.hanging.load(SeqCst)
    }

    /// Makes flushes hang, or lets those that hang return. A flush that begins while the guest runs
    /// does not hang, unless `is_stuck_running`.
    pub(super) fn set_stuck(&self, stuck: bool) {
        *self.stuck.0.lock().unwrap_or_else(PoisonError::into_inner) = stuck;
        self.stuck.1.notify_all();
    }

    fn note(&self, step: &'static str) {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(step);
    }

    /// Writes a page as a running guest does; returns false if it is paused.
    pub(super) fn write(&self, page: usize, content: Content, seed: u64) -> bool {
        let _open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
        if !self.running.load(SeqCst) {
            return false;
        }
        let (chunk, at) = (page / 64, page % 64);
        self.memory.with(chunk, |bytes| {
            fill_page(&mut bytes[at * 4096..][..4096], content, page as u64, seed);
        });
        self.dirty[chunk].fetch_or(1 << at, SeqCst);
        true
    }
}

impl SourceGuest for FakeSource {
    fn describe(&self) -> GuestDescription {
        let bytes = self.memory.chunks() as u64 * CHUNK;
        GuestDescription {
            name: "web-1".into(),
            uuid: uuid::Uuid::from_u128(7),
            layout: MemoryLayout::new(vec![Region { base: 0, bytes }]).unwrap(),
            vcpus: 1,
            config: Blob(b"config".to_vec()),
            disks: Vec::new(),
            has_pci: false,
        }
    }

    fn start_dirty_log(&self) -> Result<(), GuestError> {
        self.dirty.iter().for_each(|word| word.store(u64::MAX, SeqCst));
        Ok(())
    }

    fn leave_out(&self, _words: &mut [u64]) -> Result<(), GuestError> {
        while self.is_slow.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!self.panics.load(SeqCst), "a test");
        Ok(())
    }

    fn gives_hints(&self) -> bool {
        !self.hints.pages.is_empty()
    }

    fn begin_hints(&self) -> Result<(), GuestError> {
        self.hints.is_holding.store(true, SeqCst);
        self.hints.cleared.iter().for_each(|page| assert!(self.write(*page, Content::Zero, 0)));
        Ok(())
    }

    fn hint_progress(&self) -> Result<HintProgress, GuestError> {
        let FakeHints { pages, taken_back, is_endless, named, .. } = &self.hints;
        let index = named.load(SeqCst) as usize;
        if let Some(page) = pages.get(index) {
            named.store(index as u64 + 1, SeqCst);
            if taken_back.contains(page) {
                assert!(self.write(*page, Content::Random, 99));
            }
        }
        let complete = index >= pages.len() && !is_endless;
        Ok(HintProgress { pages: named.load(SeqCst), complete })
    }

    fn end_hints(&self, words: &mut [u64]) -> Result<(), GuestError> {
        for page in &self.hints.pages[..self.hints.named.load(SeqCst) as usize] {
            words[page / 64] |= 1 << (page % 64);
        }
        self.hints.is_holding.store(false, SeqCst);
        for page in &self.hints.used_afterwards {
            assert!(self.write(*page, Content::Random, 100));
        }
        Ok(())
    }

    fn stop_dirty_log(&self) -> Result<(), GuestError> {
        Ok(())
    }

    fn collect_dirty(&self, words: &mut [u64]) -> Result<(), GuestError> {
        for (word, dirty) in words.iter_mut().zip(&self.dirty) {
            *word |= dirty.load(SeqCst);
        }
        if self.reports_all.swap(false, SeqCst) {
            words.fill(!0);
        }
        Ok(())
    }

    fn rearm_dirty(&self, first_chunk: usize, words: &[u64]) -> Result<(), GuestError> {
        for (dirty, word) in self.dirty[first_chunk..].iter().zip(words) {
            dirty.fetch_and(!word, SeqCst);
        }
        Ok(())
    }

    fn copy_out(&self, chunk: usize, first_page: usize, buf: &mut [u8]) -> Result<(), GuestError> {
        self.memory.with(chunk, |bytes| {
            buf.copy_from_slice(&bytes[first_page * 4096..][..buf.len()]);
        });
        Ok(())
    }

    fn flush(&self) -> Result<(), GuestError> {
        self.note("flush");
        let mut stuck = self.stuck.0.lock().unwrap_or_else(PoisonError::into_inner);
        while *stuck && (self.is_stuck_running.load(SeqCst) || !self.running.load(SeqCst)) {
            self.hanging.store(true, SeqCst);
            stuck = self.stuck.1.wait(stuck).unwrap_or_else(PoisonError::into_inner);
        }
        Ok(())
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.note("pause");
        let _closed = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        self.running.store(false, SeqCst);
        self.silenced.on_pause();
        Ok(())
    }

    fn resume(&self) -> Result<(), GuestError> {
        self.running.store(true, SeqCst);
        Ok(())
    }

    fn is_running(&self) -> bool {
        self.running.load(SeqCst)
    }

    fn save_state(&self) -> Result<Vec<u8>, GuestError> {
        self.note("save");
        self.refuse_to_save()?;
        // Saving state dirties memory, as KVM's does.
        self.memory.with(0, |bytes| bytes[8] ^= 1);
        self.dirty[0].fetch_or(1, SeqCst);
        Ok(STATE.to_vec())
    }
}

/// A guest at the destination.
pub(super) struct FakeTarget {
    pub(super) memory: Arc<FakeMemory>,
    /// Set once memory is to follow it.
    pub(super) missing: OnceLock<Arc<FakeMissing>>,
    pub(super) runs: AtomicBool,
    pub(super) adopted: AtomicBool,
    state: Mutex<Vec<u8>>,
}

impl FakeTarget {
    pub(super) fn new(chunks: usize) -> Self {
        Self {
            memory: Arc::new(FakeMemory::new(chunks)),
            missing: OnceLock::new(),
            runs: AtomicBool::new(false),
            adopted: AtomicBool::new(false),
            state: Mutex::default(),
        }
    }
}

impl DestinationGuest for FakeTarget {
    fn copy_in(&self, chunk: usize, first_page: usize, data: &[u8]) -> Result<(), GuestError> {
        self.memory.with(chunk, |bytes| {
            bytes[first_page * 4096..][..data.len()].copy_from_slice(data);
        });
        Ok(())
    }

    fn zero(&self, chunk: usize, mask: u64) -> Result<(), GuestError> {
        self.memory.with(chunk, |bytes| {
            for page in (0..64).filter(|page| mask >> page & 1 == 1) {
                bytes[page * 4096..][..4096].fill(0);
            }
        });
        Ok(())
    }

    fn load_state(&self, state: &[u8]) -> Result<(), GuestError> {
        *self.state.lock().unwrap() = state.to_vec();
        Ok(())
    }

    fn adopt(&self) -> Result<(), GuestError> {
        assert_eq!(*self.state.lock().unwrap(), STATE);
        self.adopted.store(true, SeqCst);
        Ok(())
    }

    fn resume(&self) -> Result<(), GuestError> {
        assert!(self.adopted.load(SeqCst));
        self.runs.store(true, SeqCst);
        Ok(())
    }

    fn follow_with_memory(&self) -> Result<Arc<dyn MissingMemory>, GuestError> {
        let missing = Arc::new(FakeMissing::new(self.memory.clone()));
        assert!(self.missing.set(missing.clone()).is_ok(), "it was asked for twice");
        Ok(missing)
    }

    fn strand(&self) -> Result<(), GuestError> {
        self.runs.store(false, SeqCst);
        Ok(())
    }
}

/// Builds a [`FakeTarget`] and keeps it for the test, or refuses the guest.
#[derive(Default)]
pub(super) struct Factory {
    pub(super) refuse: Option<&'static str>,
    pub(super) built: Mutex<Option<Arc<FakeTarget>>>,
}

impl GuestFactory for Factory {
    fn check(&self, _guest: &GuestDescription) -> Result<(), Refusal> {
        match self.refuse {
            Some(text) => Err(Refusal::new(RefusalKind::Cpu, text)),
            None => Ok(()),
        }
    }

    fn create(&self, guest: &GuestDescription) -> Result<Arc<dyn DestinationGuest>, Refusal> {
        let target = Arc::new(FakeTarget::new(guest.layout.chunks()));
        *self.built.lock().unwrap() = Some(target.clone());
        Ok(target)
    }
}

/// The node of the destination host.
pub(super) struct Node {
    pub(super) tls: Tls,
    pub(super) factory: Arc<Factory>,
    pub(super) records: RecordStore,
    pub(super) refuse: Option<&'static str>,
    pub(super) failpoints: Mutex<Failpoints>,
    /// Token that the source is told; the right one if none.
    pub(super) token_sent: Option<Token>,
    /// The token of the guest that was admitted.
    pub(super) token_given: Mutex<Option<Token>>,
    /// The guest identity that it expects; that of the source's guest if none.
    pub(super) expects: Option<Uuid>,
    /// Whether it can run a guest before its memory is there.
    pub(super) postcopy: bool,
    /// Relay between the source and the process, if any.
    pub(super) relay: Option<Relay>,
    /// Relays on the links, at `link(0)` and on, instead of that one.
    pub(super) links: Vec<Relay>,
    pub(super) arrived: watch::Sender<Option<Handle>>,
}

impl FrontHandler for Node {
    async fn answer(
        &self,
        request: FrontRequest,
        _peer: SocketAddr,
        _guest: Option<Uuid>,
    ) -> FrontReply {
        match request {
            FrontRequest::Admit { migration, guest, .. } => self.admit(migration, &guest),
            FrontRequest::Resolve { migration, decision, .. } => {
                let record = self.records.read(migration, Role::Destination, |_| true).unwrap();
                let state = record.and_then(|record| match record.side {
                    Side::Destination { state, .. } => Some(state),
                    Side::Source { .. } => None,
                });
                match &*self.arrived.borrow() {
                    Some(handle) if !handle.is_over() => {
                        FrontReply::AskProcess { port: handle.port() }
                    }
                    _ => FrontReply::Resolved(answer_for_dead(state, decision).answer),
                }
            }
            FrontRequest::Find { .. }
            | FrontRequest::Trace { .. }
            | FrontRequest::DiskUsers { .. }
            | FrontRequest::BootFiles { .. }
            | FrontRequest::IsAttachable { .. }
            | FrontRequest::AttachDevice { .. }
            | FrontRequest::Sink => FrontReply::Found(None),
        }
    }
}

impl Node {
    fn admit(&self, migration: MigrationId, guest: &GuestDescription) -> FrontReply {
        if let Some(text) = self.refuse {
            return FrontReply::Refused(Refusal::new(RefusalKind::Memory, text));
        }
        let token = Token::random();
        *self.token_given.lock().unwrap() = Some(token);
        let session = DestinationSession {
            migration,
            token,
            listen: LOOPBACK,
            ports: 0..=0,
            guest: guest.name.clone(),
            guest_uuid: self.expects.unwrap_or(guest.uuid),
            linger: Duration::from_secs(5),
            postcopy: self.postcopy,
        };
        let (factory, records) = (self.factory.clone(), self.records.clone());
        let points = self.failpoints.lock().unwrap().clone();
        let started = destination::start_with(session, factory, &self.tls, records, points);
        let handle = started.unwrap();
        let mut port = match &self.relay {
            Some(relay) => relay.start(handle.port()),
            None => handle.port(),
        };
        for (place, relay) in self.links.iter().enumerate() {
            let listens = if place == 0 { 0 } else { port };
            port = relay.start_at(SocketAddr::new(link(place), listens), handle.port());
        }
        self.arrived.send_replace(Some(handle));
        FrontReply::Admitted { port, token: self.token_sent.unwrap_or(token) }
    }
}

/// Both hosts of a migration.
pub(super) struct World {
    pub(super) identity: Identity,
    pub(super) tls: Tls,
    pub(super) node: Arc<Node>,
    pub(super) address: SocketAddr,
    pub(super) records: RecordStore,
    arrived: watch::Receiver<Option<Handle>>,
    endpoint: quinn::Endpoint,
    _folder: TempDir,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(|_| {})
    }

    pub(super) fn with(change: impl FnOnce(&mut Node)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = |name| RecordStore::open(&folder.path().join(name)).unwrap();
        let identity = Authority::create().unwrap().issue(&["127.0.0.1".into()]).unwrap();
        let tls = Tls::new(&identity).unwrap();
        let (arrived, seen) = watch::channel(None);
        let mut node = Node {
            tls: tls.clone(),
            factory: Arc::default(),
            records: store("destination"),
            refuse: None,
            failpoints: Mutex::default(),
            token_sent: None,
            token_given: Mutex::default(),
            expects: None,
            relay: None,
            links: Vec::new(),
            postcopy: false,
            arrived,
        };
        change(&mut node);
        let node = Arc::new(node);
        let endpoint = endpoint::listen(SocketAddr::new(LOOPBACK, 0), &node.tls).unwrap();
        let address = endpoint.local_addr().unwrap();
        tokio::spawn(serve(endpoint.clone(), node.clone()));
        let records = store("source");
        Self { identity, tls, node, address, records, arrived: seen, endpoint, _folder: folder }
    }

    pub(super) fn session(&self) -> SourceSession {
        SourceSession {
            migration: MigrationId::random(),
            host: "127.0.0.1".into(),
            port: self.address.port(),
            server_name: None,
            limits: Limits::default(),
            bandwidth: None,
            compression: Compression::Auto,
            connections: Some(1),
            links: Vec::new(),
            addresses: Vec::new(),
            node_port: None,
            estimate: None,
        }
    }

    /// As [`World::session`], over the links that have relays.
    pub(super) fn session_over_links(&self) -> SourceSession {
        let links: Vec<_> = (0..self.node.links.len()).map(link).collect();
        let port = self.address.port();
        let addresses = links.iter().map(|address| SocketAddr::new(*address, port)).collect();
        SourceSession { connections: None, links, addresses, ..self.session() }
    }

    pub(super) fn start(&self, session: SourceSession, guest: &Arc<FakeSource>) -> Handle {
        self.start_with(session, guest, Failpoints::from_environment())
    }

    pub(super) fn start_with(
        &self,
        session: SourceSession,
        guest: &Arc<FakeSource>,
        points: Failpoints,
    ) -> Handle {
        let (tls, records) = (self.tls.clone(), self.records.clone());
        source::start_with(session, guest.clone(), tls, records, points).unwrap()
    }

    /// Returns the session at the destination, once the guest was admitted.
    pub(super) async fn arrival(&self) -> Handle {
        let mut seen = self.arrived.clone();
        let found = in_time(seen.wait_for(Option::is_some)).await;
        found.unwrap().clone().unwrap()
    }

    /// Returns the guest as built at the destination.
    pub(super) fn target(&self) -> Arc<FakeTarget> {
        self.node.factory.built.lock().unwrap().clone().unwrap()
    }

    /// Asserts that the guest left and runs at the destination, with its memory.
    pub(super) async fn assert_migrated(&self, source: &FakeSource, handle: &Handle) -> Report {
        let report = in_time(handle.settled()).await.unwrap();
        assert_eq!(report.outcome, Outcome::Migrated, "{report:?}");
        let there = in_time(self.arrival().await.settled()).await.unwrap();
        assert_eq!(there.outcome, Outcome::Migrated, "{there:?}");
        assert!(!source.is_running());
        assert!(self.target().runs.load(SeqCst));
        let there =
            self.node.records.read(handle.migration(), Role::Destination, |_| true).unwrap();
        let side = there.unwrap().side;
        let runs = matches!(side, Side::Destination { state: DestinationState::Running, .. });
        assert!(runs, "the destination's record: {side:?}");
        assert_eq!(decision(self, handle), None, "the source's record");
        assert_eq!(source.memory.first_difference(&self.target().memory), None);
        report
    }

    /// Asserts that the guest stayed and runs, and that none runs at the destination.
    pub(super) async fn assert_stayed(&self, source: &FakeSource, handle: &Handle) -> Report {
        let report = in_time(handle.settled()).await.unwrap();
        assert_eq!(report.outcome, Outcome::StayedAtSource, "{report:?}");
        assert!(source.is_running());
        let arrived = self.arrived.borrow().clone();
        if let Some(there) = arrived {
            let there = in_time(there.settled()).await.unwrap();
            assert_ne!(there.outcome, Outcome::Migrated, "{there:?}");
        }
        if let Some(target) = &*self.node.factory.built.lock().unwrap() {
            assert!(!target.runs.load(SeqCst));
            assert_eq!(Arc::strong_count(target), 1, "the copy was not let go of");
        }
        report
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.endpoint.close(0_u32.into(), b"");
    }
}

/// Address of a destination on one of its links: all of 127.0.0.0/8 is on loopback.
pub(super) fn link(place: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(127, 0, 0, 1 + place as u8))
}

/// Waits for `what`, at most `PATIENCE`.
pub(super) async fn in_time<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it took too long")
}

/// Waits until a migration is in `phase` or beyond.
pub(super) async fn reach(handle: &Handle, phase: Phase) {
    let mut progress = handle.progress();
    in_time(progress.wait_for(|progress| progress.phase >= phase)).await.unwrap();
}

/// Returns the decision in the records of a migration.
pub(super) fn decision(world: &World, handle: &Handle) -> Option<Decision> {
    let record = world.records.read(handle.migration(), Role::Source, |_| true).unwrap()?;
    match record.side {
        Side::Source { state, .. } => state.decision(),
        Side::Destination { .. } => None,
    }
}
