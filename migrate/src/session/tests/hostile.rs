//! Sources that break the rules of post-copy: a destination that is as in the product, and a source
//! that the tests play message by message and stream by stream.

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use quinn::{Connection, Endpoint, RecvStream, SendStream};
use tempfile::TempDir;
use tokio::task::{JoinSet, spawn_blocking};

use super::memory::{Content, FakeMemory};
use super::missing::FakeMissing;
use super::world::{Factory, FakeSource, FakeTarget, LOOPBACK, STATE, in_time, reach};
use crate::failpoint::Failpoints;
use crate::framing;
use crate::guest::{GuestDescription, MissingMemory, RunState, SourceGuest};
use crate::memory::PageSet;
use crate::pages::{BufferPool, Compression, Encoder, Position, WireRate};
use crate::phase::Phase;
use crate::protocol::page_request::{PageRequest, REQUEST_BYTES};
use crate::protocol::preamble::{Preamble, StreamRole};
use crate::protocol::{
    Decision, DestinationMessage, FEATURE_POSTCOPY, Features, MigrationId, Offer, PageMasks,
    Prepare, SavedState, SourceMessage, Token,
};
use crate::quic::endpoint::{self, Peer};
use crate::quic::pair::Pair;
use crate::quic::{Authority, Tls};
use crate::reason::Reason;
use crate::record::RecordStore;
use crate::report::Outcome;
use crate::session::fetch::Fetch;
use crate::session::{DestinationSession, Handle, destination};
use crate::text::Blob;

/// Chunks of the guest.
const CHUNKS: usize = 2;
/// The pages of each chunk that the first list names.
const FIRST: [u64; CHUNKS] = [0xFFFF_FFFF, 0];
/// The pages that the second one names; one of them is in the first, too.
const SECOND: [u64; CHUNKS] = [1, 0xFFFF << 48];
/// Streams with unrequested pages that one connection carries at once, beside the data stream.
const BACKGROUND_STREAMS: usize = 15;

/// A source in the hands of a test, and the destination that it has connected to.
struct Rogue {
    guest: Arc<FakeSource>,
    there: Handle,
    factory: Arc<Factory>,
    migration: MigrationId,
    token: Token,
    dialer: Endpoint,
    connection: Connection,
    control: (SendStream, RecvStream),
    _folder: TempDir,
}

impl Rogue {
    /// Starts a destination, connects to it and greets it.
    async fn greeted() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let records = RecordStore::open(folder.path()).unwrap();
        let identity = Authority::create().unwrap().issue(&["127.0.0.1".into()]).unwrap();
        let tls = Tls::new(&identity).unwrap();
        let (factory, guest) = (Arc::<Factory>::default(), FakeSource::new(CHUNKS, Content::Mixed));
        let GuestDescription { name, uuid, .. } = guest.describe();
        let (migration, token) = (MigrationId::random(), Token::random());
        let session = DestinationSession {
            migration,
            token,
            listen: LOOPBACK,
            ports: 0..=0,
            guest: name,
            guest_uuid: uuid,
            linger: Duration::from_secs(5),
            postcopy: true,
        };
        let started =
            destination::start_with(session, factory.clone(), &tls, records, Failpoints::default());
        let there = started.unwrap();
        let address = (LOOPBACK, there.port()).into();
        let dialer = endpoint::dialer_for_memory(address, &tls, 1).unwrap();
        let peer = Peer { address, name: "127.0.0.1".into() };
        let connection = endpoint::connect(&dialer, &peer).await.unwrap();
        let preamble = Preamble { role: StreamRole::Control, migration, token };
        let control = both_ways(&connection, preamble).await;
        let mut rogue = Self {
            guest,
            there,
            factory,
            migration,
            token,
            dialer,
            connection,
            control,
            _folder: folder,
        };
        let features = Features::SUPPORTED.with(FEATURE_POSTCOPY);
        let offer = Offer { features, ..Offer::ours() };
        rogue.say(SourceMessage::Hello { migration, offer }).await;
        assert!(matches!(rogue.hear().await, DestinationMessage::Welcome { .. }));
        rogue
    }

    /// As [`Self::greeted`]; the guest is built there.
    async fn prepared() -> Self {
        let mut rogue = Self::greeted().await;
        let guest = rogue.guest.describe();
        rogue.say(SourceMessage::Prepare(Prepare { guest, streams: 1 })).await;
        assert_eq!(rogue.hear().await, DestinationMessage::Prepared);
        rogue
    }

    /// As [`Self::prepared`]; all pages were sent, and those in `FIRST` are dropped there.
    async fn between_the_lists() -> Self {
        let mut rogue = Self::prepared().await;
        let data = rogue.one_way(StreamRole::Data { stream: 0 }).await;
        let (mut batch, mut encoder) = (BufferPool::new().batch(), Encoder::new(Compression::Off));
        encoder.end(&mut batch, 0, CHUNKS as u64);
        let frames = [rogue.pages(0, u64::MAX), rogue.pages(1, u64::MAX)].concat();
        finish(data, &[&frames[..], &batch.into_bytes()].concat()).await;
        rogue.say(SourceMessage::Missing(masks(FIRST))).await;
        assert_eq!(rogue.hear().await, DestinationMessage::Cleared);
        rogue
    }

    /// Sends the second list, the guest's state and the decision.
    async fn hand_over(&mut self) {
        self.say(SourceMessage::Switchover).await;
        self.say(SourceMessage::Missing(masks(SECOND))).await;
        let state = SavedState { run_state: RunState::Running, state: Blob(STATE.to_vec()) };
        self.say(SourceMessage::State(state)).await;
        self.say(SourceMessage::Commit).await;
    }

    /// As [`Self::between_the_lists`]; the guest runs there.
    async fn handed_over() -> Self {
        let mut rogue = Self::between_the_lists().await;
        rogue.hand_over().await;
        assert!(matches!(rogue.hear().await, DestinationMessage::Running(_)));
        rogue
    }

    async fn say(&mut self, message: SourceMessage) {
        framing::write(&mut self.control.0, &message).await.unwrap();
    }

    async fn hear(&mut self) -> DestinationMessage {
        in_time(framing::read(&mut self.control.1)).await.unwrap()
    }

    /// Opens a stream that only this side writes to.
    async fn one_way(&self, role: StreamRole) -> SendStream {
        let Self { migration, token, .. } = *self;
        let mut stream = in_time(self.connection.open_uni()).await.unwrap();
        stream.write_all(&Preamble { role, migration, token }.encode()).await.unwrap();
        stream
    }

    /// Opens a stream for requests, and for the pages that answer them.
    async fn requests(&self) -> (SendStream, RecvStream) {
        let Self { migration, token, .. } = *self;
        both_ways(&self.connection, Preamble { role: StreamRole::Requests, migration, token }).await
    }

    /// Returns a frame with these pages of a chunk, as the guest has them.
    fn pages(&self, chunk: usize, pages: u64) -> Vec<u8> {
        frame(&self.guest.memory, chunk, pages)
    }

    fn target(&self) -> Arc<FakeTarget> {
        self.factory.built.lock().unwrap().clone().unwrap()
    }

    fn missing(&self) -> Arc<FakeMissing> {
        self.target().missing.get().unwrap().clone()
    }

    /// Sends all pages that were missing, and asserts that the guest has its memory then.
    async fn assert_completes(&mut self) {
        let rest = self.one_way(StreamRole::Background).await;
        let missing = (0..CHUNKS).map(|chunk| self.pages(chunk, FIRST[chunk] | SECOND[chunk]));
        finish(rest, &missing.collect::<Vec<_>>().concat()).await;
        assert!(matches!(self.hear().await, DestinationMessage::Complete { .. }));
        self.assert_arrived().await;
    }

    /// Asserts that the guest runs there, with its memory.
    async fn assert_arrived(&mut self) {
        self.say(SourceMessage::Finish).await;
        let report = in_time(self.there.settled()).await.unwrap();
        assert_eq!(report.outcome, Outcome::Migrated, "{report:?}");
        let target = self.target();
        assert!(target.runs.load(SeqCst));
        assert_eq!(self.guest.memory.first_difference(&target.memory), None);
        assert!(!self.missing().was_placed_early());
    }

    /// Asserts that the destination has given up, says why, and keeps nothing of the guest.
    async fn assert_refused(&mut self, words: &str) {
        let said = self.hear().await;
        let DestinationMessage::GaveUp(complaint) = &said else { panic!("{said:?}") };
        assert_eq!(complaint.reason(), Reason::Data);
        assert!(complaint.text.to_string().contains(words), "{complaint:?}");
        self.connection.close(0_u32.into(), b"");
        let report = in_time(self.there.settled()).await.unwrap();
        assert_eq!(report.outcome, Outcome::StayedAtSource, "{report:?}");
        if let Some(target) = self.factory.built.lock().unwrap().as_ref() {
            assert!(!target.runs.load(SeqCst));
            assert_eq!(Arc::strong_count(target), 1, "the copy was not let go of");
        }
    }
}

async fn both_ways(connection: &Connection, preamble: Preamble) -> (SendStream, RecvStream) {
    let (mut send, receive) = in_time(connection.open_bi()).await.unwrap();
    send.write_all(&preamble.encode()).await.unwrap();
    (send, receive)
}

async fn finish(mut stream: SendStream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.finish().unwrap();
}

fn masks(words: [u64; CHUNKS]) -> PageMasks {
    let mut set = PageSet::empty(CHUNKS);
    set.words_mut().copy_from_slice(&words);
    PageMasks::of(&set)
}

/// Returns a frame with these pages of a chunk.
fn frame(memory: &FakeMemory, chunk: usize, pages: u64) -> Vec<u8> {
    let (mut batch, mut encoder) = (BufferPool::new().batch(), Encoder::new(Compression::Off));
    let (position, wire) = (Position { round: 0, chunk: chunk as u64, pages }, WireRate::default());
    let copied = encoder.encode::<()>(&mut batch, position, &wire, |first, out| {
        memory.with(chunk, |bytes| out.copy_from_slice(&bytes[first * 4096..][..out.len()]));
        Ok(())
    });
    copied.unwrap();
    batch.into_bytes().to_vec()
}

/// Returns a frame with these pages, of another guest.
fn foreign(chunk: usize, pages: u64) -> Vec<u8> {
    let memory = FakeMemory::new(CHUNKS);
    memory.fill(Content::Random, 99);
    frame(&memory, chunk, pages)
}

#[tokio::test(flavor = "multi_thread")]
async fn page_streams_before_any_list_of_missing_pages_are_refused() {
    for is_built in [false, true] {
        for is_for_requests in [false, true] {
            let mut rogue = match is_built {
                true => Rogue::prepared().await,
                false => Rogue::greeted().await,
            };
            let pages = rogue.pages(0, 1);
            let (mut stream, _requests) = match is_for_requests {
                true => {
                    let (send, receive) = rogue.requests().await;
                    (send, Some(receive))
                }
                false => (rogue.one_way(StreamRole::Background).await, None),
            };
            // It may have been stopped already.
            let _ = stream.write_all(&pages).await;
            rogue.assert_refused("memory follows a guest whose memory is here").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_come_between_the_lists_are_placed_after_the_second() {
    let mut rogue = Rogue::between_the_lists().await;
    let [(mut answers, _requests), _further] = [rogue.requests().await, rogue.requests().await];
    // Of another guest: what is not missing stays as it is.
    answers.write_all(&foreign(1, 0xFFFF)).await.unwrap();
    for place in 0..BACKGROUND_STREAMS {
        let stream = rogue.one_way(StreamRole::Background).await;
        // The first one carries those that no other does, too.
        let pages = if place == 0 { 0b11 << 30 | 0b11 } else { 0b11 << (2 * place) };
        finish(stream, &[rogue.pages(0, pages), rogue.pages(1, pages << 32)].concat()).await;
    }

    rogue.hand_over().await;

    assert!(matches!(rogue.hear().await, DestinationMessage::Running(_)));
    assert!(matches!(rogue.hear().await, DestinationMessage::Complete { .. }));
    rogue.assert_arrived().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn more_streams_than_a_source_has_are_refused_between_the_lists() {
    let mut rogue = Rogue::between_the_lists().await;
    let mut open = Vec::new();
    for _ in 0..BACKGROUND_STREAMS {
        open.push(rogue.one_way(StreamRole::Background).await);
    }
    let _requests = [rogue.requests().await, rogue.requests().await, rogue.requests().await];
    rogue.assert_refused("too many streams of memory that follows its guest").await;
}

/// Some come while the last pages are being dropped, too many of them perhaps: those are not read.
#[tokio::test(flavor = "multi_thread")]
async fn streams_during_the_hand_over_leave_the_guest_with_what_is_its_own() {
    let mut rogue = Rogue::between_the_lists().await;
    rogue.hand_over().await;
    reach(&rogue.there, Phase::Ready).await;
    for _ in 0..4 {
        for _ in 0..BACKGROUND_STREAMS {
            let mut stream = rogue.one_way(StreamRole::Background).await;
            // It may have been stopped already.
            let _ = stream.write_all(&foreign(1, 0xFFFF)).await;
            let _ = stream.finish();
        }
    }
    assert!(matches!(rogue.hear().await, DestinationMessage::Running(_)));
    rogue.assert_completes().await;
}

/// The guest waits for three pages. They come in another order, twice, and beside others.
#[tokio::test(flavor = "multi_thread")]
async fn requested_pages_may_come_in_any_order() {
    let mut rogue = Rogue::handed_over().await;
    let (mut send, mut requests) = rogue.requests().await;
    let missing = rogue.missing();
    let wanted = [5, 64 + 50, 31];
    let mut reading = JoinSet::new();
    for page in wanted {
        let missing = missing.clone();
        reading.spawn_blocking(move || missing.read(page));
    }
    // One request may be for both pages of the first chunk. A page that is waited for when the
    // stream begins may be requested twice.
    let (mut asked, mut unasked) = (Vec::new(), [1 << 5 | 1 << 31, 1 << 50]);
    while unasked != [0, 0] {
        let mut bytes = [0; REQUEST_BYTES];
        in_time(requests.read_exact(&mut bytes)).await.unwrap();
        let (chunk, pages) = PageRequest::decode(bytes, CHUNKS).unwrap();
        unasked[chunk] &= !pages;
        asked.push((chunk, pages));
    }
    asked.reverse();
    send.write_all(&foreign(1, 1)).await.unwrap();
    for (chunk, pages) in asked.iter().chain(&asked) {
        send.write_all(&rogue.pages(*chunk, *pages)).await.unwrap();
        // Of another guest: it is not missing any more.
        send.write_all(&foreign(*chunk, *pages)).await.unwrap();
    }
    in_time(async { while reading.join_next().await.is_some() {} }).await;
    let lacking = FIRST[0].count_ones() + SECOND[1].count_ones() - wanted.len() as u32;
    assert_eq!(missing.left(), u64::from(lacking));
    rogue.assert_completes().await;
}

/// What cannot be used costs the source its connection; on another one, all goes on.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_cannot_be_used_closes_the_connection_and_no_more() {
    let mut rogue = Rogue::handed_over().await;
    let mut damaged = rogue.pages(0, 0b11);
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    let mut stream = rogue.one_way(StreamRole::Background).await;
    stream.write_all(&damaged).await.unwrap();
    in_time(rogue.connection.closed()).await;

    let peer = Peer { address: rogue.connection.remote_address(), name: "127.0.0.1".into() };
    rogue.connection = endpoint::connect(&rogue.dialer, &peer).await.unwrap();
    let Rogue { migration, token, .. } = rogue;
    let preamble = Preamble { role: StreamRole::Control, migration, token };
    rogue.control = both_ways(&rogue.connection, preamble).await;
    rogue.say(SourceMessage::Resolve { migration, decision: Decision::Serve }).await;
    assert!(matches!(rogue.hear().await, DestinationMessage::Running(_)));
    let all = [FIRST[0] | SECOND[0], SECOND[1]];
    assert_eq!(rogue.hear().await, DestinationMessage::Missing(masks(all)));
    rogue.assert_completes().await;
}

/// A source may open one stream of requests after the other: only the newest is kept.
#[tokio::test(flavor = "multi_thread")]
async fn streams_of_requests_leave_nothing_behind() {
    let memory = Arc::new(FakeMissing::new(Arc::new(FakeMemory::new(CHUNKS))));
    memory.clear(&FIRST).unwrap();
    let reader = memory.clone();
    let waiting = spawn_blocking(move || reader.read(7));
    let (mut tasks, totals) = (JoinSet::new(), Arc::default());
    let fetch = Fetch::start(memory.clone(), CHUNKS, Features::default(), totals, &mut tasks, drop);
    let pair = Pair::new().await;
    let before = tasks.len();
    for _ in 0..100 {
        let (mut send, mut receive) = pair.near.open_bi().await.unwrap();
        send.write_all(b"!").await.unwrap();
        let (requests, _answers) = pair.far.accept_bi().await.unwrap();
        fetch.request_on(requests, &mut tasks);
        let mut bytes = [0; REQUEST_BYTES];
        in_time(receive.read_exact(&mut bytes)).await.unwrap();
        assert_eq!(PageRequest::decode(bytes, CHUNKS), Ok((0, 1 << 7)), "it is repeated");
    }
    let kept = tasks.len() - before;
    assert!(kept < 10, "{kept} tasks");
    memory.end().unwrap();
    waiting.await.unwrap();
}
