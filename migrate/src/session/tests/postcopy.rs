//! Guests that run at the destination before their memory is there.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use tokio::task::{JoinSet, spawn_blocking};

use super::memory::{Content, FakeMemory};
use super::missing::FakeMissing;
use super::relay::Relay;
use super::world::{FakeSource, LOOPBACK, World, in_time, reach};
use crate::error::{ChangeRefused, PostcopyRefused, RecoverRefused};
use crate::guest::MissingMemory;
use crate::limits::LimitsChange;
use crate::pages::{BufferPool, Compression, Encoder, HEADER_BYTES, Position, WireRate};
use crate::phase::Phase;
use crate::progress::Role;
use crate::protocol::Features;
use crate::quic::pair::{Ending, Pair};
use crate::record::Side;
use crate::session::fetch::{Fetch, FetchError};
use crate::session::{Handle, SourceSession};

/// Pages of a guest of these tests: 16 MiB.
const PAGES: usize = 64 * 64;

/// Both hosts can use post-copy, over a link that takes two seconds for the guest.
fn world(relay: Relay) -> World {
    World::with(|node| {
        node.postcopy = true;
        node.relay = Some(Relay { bytes_per_second: 8 << 20, ..relay });
    })
}

/// Starts to migrate a guest of random content, and hands it over before most of its memory. The
/// link has no limit from then on.
async fn handed_over(world: &World) -> (Arc<FakeSource>, Handle) {
    let (guest, handle) = handed_over_slowly(world).await;
    handle.change(bandwidth(0)).await.unwrap();
    (guest, handle)
}

fn bandwidth(bytes_per_second: u64) -> LimitsChange {
    LimitsChange { bandwidth: Some(bytes_per_second), ..LimitsChange::default() }
}

/// A session with a limit of 64 pages a second.
fn slow(world: &World) -> SourceSession {
    SourceSession { bandwidth: Some(256 << 10), ..world.session() }
}

/// As [`handed_over`], with a limit of 64 pages a second.
async fn handed_over_slowly(world: &World) -> (Arc<FakeSource>, Handle) {
    let guest = FakeSource::new(64, Content::Random);
    let handle = world.start(slow(world), &guest);
    reach(&handle, Phase::Precopy).await;
    handle.postcopy().await.unwrap();
    reach(&handle, Phase::Postcopy).await;
    (guest, handle)
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_follows_the_guest() {
    let world = world(Relay::default());
    let (guest, handle) = handed_over(&world).await;
    let missing = world.target().missing.get().unwrap().clone();
    assert!(missing.left() > PAGES as u64 / 2, "{} pages are missing", missing.left());
    assert!(world.target().runs.load(SeqCst));

    let report = world.assert_migrated(&guest, &handle).await;

    assert!(report.downtime_seconds.unwrap() < 1.0, "{report:?}");
    let last = report.phases.last().unwrap();
    assert!(last.phase == Phase::Postcopy && last.seconds > 0.5, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_writes_arrives_with_what_it_wrote() {
    let world = world(Relay::default());
    let guest = FakeSource::new(64, Content::Mixed);
    let session = SourceSession { bandwidth: Some(4 << 20), ..world.session() };
    let handle = world.start(session, &guest);
    let done = Arc::new(AtomicBool::new(false));
    let (writing, over) = (guest.clone(), done.clone());
    let writer = spawn_blocking(move || {
        let mut page = 0;
        while !over.load(SeqCst) && writing.write(page * 7 % PAGES, Content::Random, page as u64) {
            page += 1;
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    reach(&handle, Phase::Precopy).await;
    handle.postcopy().await.unwrap();
    world.assert_migrated(&guest, &handle).await;
    assert!(!world.target().missing.get().unwrap().was_placed_early());
    done.store(true, SeqCst);
    writer.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_the_guest_reads_comes_before_the_rest() {
    let world = world(Relay::default());
    let (guest, handle) = handed_over(&world).await;
    let missing = world.target().missing.get().unwrap().clone();
    let page = PAGES - 20;
    let reader = missing.clone();
    let took = spawn_blocking(move || {
        let began = Instant::now();
        reader.read(page);
        began.elapsed()
    });
    let took = in_time(took).await.unwrap();

    assert!(missing.left() > PAGES as u64 / 4, "{} pages were left", missing.left());
    assert!(took < Duration::from_secs(1), "{took:?}");
    let here = world.assert_migrated(&guest, &handle).await.page_waits.unwrap();
    let there = world.arrival().await.settled().await.unwrap().page_waits.unwrap();
    assert_eq!(there.counts.iter().sum::<u64>(), 1, "{there:?}");
    assert!(there.longest_seconds > 0.0 && there.oldest_seconds.eq(&0.0), "{there:?}");
    assert!((here.longest_seconds - there.longest_seconds).abs() < 1e-5, "{here:?}, {there:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_guest_waits_for_does_not_wait_for_the_bandwidth_limit() {
    let world = world(Relay::default());
    let (guest, handle) = handed_over_slowly(&world).await;
    let missing = world.target().missing.get().unwrap().clone();
    let reader = missing.clone();
    let took = spawn_blocking(move || {
        let began = Instant::now();
        // Each comes with 8 neighbours: within the limit, that takes 5 s.
        (0..36).for_each(|chunk| reader.read((60 - chunk) * 64));
        began.elapsed()
    });
    let took = in_time(took).await.unwrap();
    assert!(took < Duration::from_secs(4), "{took:?}");
    assert!(missing.left() > PAGES as u64 / 2, "{} pages are missing", missing.left());
    handle.change(bandwidth(0)).await.unwrap();
    world.assert_migrated(&guest, &handle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bandwidth_limit_holds_for_memory_that_follows_the_guest() {
    let world = world(Relay::default());
    let (guest, handle) = handed_over_slowly(&world).await;
    let downtime = Some(Duration::from_secs(1));
    let other = handle.change(LimitsChange { downtime, ..bandwidth(0) }).await;
    assert_eq!(other, Err(ChangeRefused::OnlyBandwidth));
    let left = world.target().missing.get().unwrap().left();
    let began = Instant::now();

    handle.change(bandwidth(4 << 20)).await.unwrap();

    world.assert_migrated(&guest, &handle).await;
    let least = left as f64 * 4096.0 / f64::from(4 << 20) * 0.8;
    assert!(began.elapsed().as_secs_f64() > least, "{left} pages in {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_waits_while_the_link_is_lost_and_both_sides_go_on() {
    let relay = Relay::default();
    let world = world(relay.clone());
    let (guest, handle) = handed_over(&world).await;
    let missing = world.target().missing.get().unwrap().clone();
    for page in [PAGES - 20, PAGES - 100] {
        relay.silent.store(true, SeqCst);
        let mut progress = handle.progress();
        let lost = progress.wait_for(|progress| progress.in_doubt.is_some());
        drop(in_time(lost).await.unwrap());
        let reader = missing.clone();
        let reading = spawn_blocking(move || reader.read(page));
        relay.silent.store(false, SeqCst);
        in_time(reading).await.unwrap();
        if missing.left() == 0 {
            break;
        }
    }
    world.assert_migrated(&guest, &handle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_reconnects_has_as_many_connections_as_before() {
    let relay = Relay::default();
    let world = world(relay.clone());
    let guest = FakeSource::new(64, Content::Random);
    let session = SourceSession { connections: Some(3), ..slow(&world) };
    let handle = world.start(session, &guest);
    reach(&handle, Phase::Precopy).await;
    handle.postcopy().await.unwrap();
    reach(&handle, Phase::Postcopy).await;
    assert_eq!(relay.sockets.load(SeqCst), 3);
    relay.silent.store(true, SeqCst);
    let mut progress = handle.progress();
    let lost = progress.wait_for(|progress| progress.in_doubt.is_some());
    drop(in_time(lost).await.unwrap());

    handle.change(bandwidth(0)).await.unwrap();
    relay.silent.store(false, SeqCst);

    world.assert_migrated(&guest, &handle).await;
    // The first one has a socket of before; more may come to them each time that the link is lost.
    let sockets = relay.sockets.load(SeqCst);
    assert!(sockets >= 5, "{sockets} sockets");
}

/// Returns where the source's record says that the destination is: its node and its process.
fn recorded(world: &World, handle: &Handle) -> [SocketAddr; 2] {
    let record = world.records.read(handle.migration(), Role::Source, |_| true).unwrap();
    match record.unwrap().side {
        Side::Source { node_address, process_address, .. } => [node_address, process_address],
        Side::Destination { .. } => panic!("a record of the destination"),
    }
}

/// Returns where the destination's record says that the source is.
fn source_recorded(world: &World, handle: &Handle) -> IpAddr {
    let records = &world.node.records;
    let record = records.read(handle.migration(), Role::Destination, |_| true).unwrap();
    match record.unwrap().side {
        Side::Destination { source_address, .. } => source_address.ip(),
        Side::Source { .. } => panic!("a record of the source"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn another_path_between_the_hosts_is_taken_and_both_records_say_so() {
    let relay = Relay::default();
    let world = world(relay.clone());
    let (guest, handle) = handed_over_slowly(&world).await;
    assert_eq!(source_recorded(&world, &handle), LOOPBACK);
    relay.silent.store(true, SeqCst);
    let elsewhere = |address: SocketAddr| SocketAddr::from(([127, 0, 0, 2], address.port()));
    let there = recorded(&world, &handle).map(elsewhere);
    let from = IpAddr::from([127, 0, 0, 3]);
    let path = Relay { from: Some(from), ..Relay::default() };
    path.start_at(there[1], world.arrival().await.port());

    handle.recover(there[0]).await.unwrap();

    assert_eq!(recorded(&world, &handle), there);
    let missing = world.target().missing.get().unwrap().clone();
    in_time(spawn_blocking(move || missing.read(PAGES - 20))).await.unwrap();
    in_time(async {
        while source_recorded(&world, &handle) != from {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    handle.change(bandwidth(0)).await.unwrap();
    world.assert_migrated(&guest, &handle).await;
    assert_eq!(recorded(&world, &handle), there);
    assert_eq!(source_recorded(&world, &handle), from);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_address_does_not_keep_the_source_from_a_destination_that_is_back() {
    let relay = Relay::default();
    let world = world(relay.clone());
    let (guest, handle) = handed_over_slowly(&world).await;
    let there = recorded(&world, &handle);
    relay.silent.store(true, SeqCst);
    let nobody = SocketAddr::from(([127, 0, 0, 9], there[0].port()));
    handle.recover(nobody).await.unwrap();
    assert_eq!(recorded(&world, &handle)[0], nobody);
    let mut progress = handle.progress();
    in_time(progress.wait_for(|it| it.in_doubt.is_some())).await.unwrap();
    relay.silent.store(false, SeqCst);
    handle.change(bandwidth(0)).await.unwrap();
    world.assert_migrated(&guest, &handle).await;
    assert_eq!(recorded(&world, &handle), there);
}

#[tokio::test(flavor = "multi_thread")]
async fn both_sides_must_be_able_to() {
    let world = World::new();
    let guest = FakeSource::new(64, Content::Random);
    let handle = world.start(slow(&world), &guest);
    reach(&handle, Phase::Precopy).await;
    assert_eq!(handle.postcopy().await, Err(PostcopyRefused::Unsupported));
    let arrival = world.arrival().await;
    assert_eq!(arrival.postcopy().await, Err(PostcopyRefused::NotHere));
    let address = world.address;
    assert_eq!(handle.recover(address).await, Err(RecoverRefused::NotCommitted));
    handle.cancel("the test").await.unwrap();
    world.assert_stayed(&guest, &handle).await;
}

/// Returns a frame with the first page of `chunk`, or with the end of a stream if there is none.
fn frame(chunk: Option<u64>) -> Vec<u8> {
    let (mut batch, mut encoder) = (BufferPool::new().batch(), Encoder::new(Compression::Off));
    match chunk {
        Some(chunk) => {
            let (position, wire) = (Position { round: 0, chunk, pages: 1 }, WireRate::default());
            let copied = encoder.encode::<()>(&mut batch, position, &wire, |_, out| {
                out.fill(7);
                Ok(())
            });
            copied.unwrap();
        }
        None => encoder.end(&mut batch, 0, 0),
    }
    batch.into_bytes().to_vec()
}

/// Reads `bytes` from a source, for a guest that lacks two pages of the first of its two chunks;
/// returns how many it lacks then.
async fn fetched(bytes: &[u8]) -> (Result<(), FetchError>, u64) {
    let memory = Arc::new(FakeMissing::new(Arc::new(FakeMemory::new(2))));
    memory.clear(&[0b11, 0]).unwrap();
    let (mut tasks, totals) = (JoinSet::new(), Arc::default());
    let fetch = Fetch::start(memory.clone(), 2, Features::default(), totals, &mut tasks, drop);
    let pair = Pair::new().await;
    let stream = pair.incoming(bytes, Ending::Finish).await;
    (fetch.read(stream).await, memory.left())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_comes_twice_or_unasked_changes_nothing() {
    let twice = [frame(Some(0)), frame(Some(0)), frame(Some(1))].concat();
    let (read, left) = fetched(&twice).await;
    assert!(read.is_ok() && left == 1, "{read:?}, {left} pages left");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_that_are_damaged_misplaced_or_cut_off_are_not_placed() {
    let good = frame(Some(0));
    let mut damaged = good.clone();
    damaged[HEADER_BYTES + 9] ^= 1;
    let cut_off = good[..good.len() - 1].to_vec();
    for bytes in [damaged, cut_off, frame(Some(2)), frame(None), b"no frame".to_vec()] {
        let (read, left) = fetched(&bytes).await;
        assert!(read.is_err() && left == 2, "{read:?}, {left} pages left");
    }
}
