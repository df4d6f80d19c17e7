//! Migrations over several links, of which some fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use tokio::task::{JoinHandle, spawn_blocking};

use super::memory::Content;
use super::relay::Relay;
use super::world::{FakeSource, LOOPBACK, World, in_time, link, reach};
use crate::limits::{Limits, LimitsChange};
use crate::memory::CHUNK_BYTES;
use crate::phase::Phase;
use crate::protocol::preamble::{LINK_JOINED, Preamble, StreamRole};
use crate::quic::endpoint;
use crate::report::{Outcome, Report};
use crate::session::{Handle, SourceSession};

/// Chunks of a guest of these tests: 16 MiB.
const CHUNKS: usize = 64;

/// A destination with a link for each of these rates, in MiB per second.
fn world(rates: &[u64]) -> World {
    World::with(|node| {
        let relay = |rate: &u64| Relay { bytes_per_second: rate << 20, ..Relay::default() };
        node.links = rates.iter().map(relay).collect();
        node.postcopy = true;
    })
}

fn silence(world: &World, place: usize, is_silent: bool) {
    world.node.links[place].silent.store(is_silent, SeqCst);
}

/// Waits until so many bytes have been sent, or the migration is over.
async fn sent(handle: &Handle, bytes: u64) {
    let mut progress = handle.progress();
    let _ = in_time(progress.wait_for(|it| it.transfer.wire_bytes >= bytes)).await;
}

/// Waits until the link at this place is lost.
async fn lost(handle: &Handle, place: usize) {
    let mut progress = handle.progress();
    in_time(progress.wait_for(|it| it.links[place].lost.is_some())).await.unwrap();
}

/// Asserts which links are lost.
fn assert_lost(report: &Report, lost: &[bool]) {
    let seen: Vec<_> = report.links.iter().map(|link| link.lost.is_some()).collect();
    assert_eq!(seen, lost, "{:?}", report.links);
}

/// Writes pages of the guest until it is paused.
fn write_all_the_time(guest: &Arc<FakeSource>, done: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (guest, done) = (guest.clone(), done.clone());
    spawn_blocking(move || {
        let mut page = 0;
        while !done.load(SeqCst) {
            // A paused guest may be resumed.
            guest.write(page * 7 % (CHUNKS * 64), Content::Random, page as u64);
            page += 1;
            std::thread::sleep(Duration::from_micros(500));
        }
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn all_links_carry_pages_and_a_fast_one_more_than_a_slow_one() {
    let world = world(&[2, 8, 4]);
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let handle = world.start(world.session_over_links(), &guest);
    let report = world.assert_migrated(&guest, &handle).await;
    assert_lost(&report, &[false; 3]);
    let carried: Vec<_> = report.links.iter().map(|link| link.wire_bytes).collect();
    assert!(carried.iter().all(|bytes| *bytes > 1 << 20), "{carried:?}");
    assert!(carried[1] > carried[0], "{carried:?}");
    assert!(carried.iter().sum::<u64>() >= (CHUNKS << 18) as u64, "{carried:?}");
    let addresses: Vec<_> = report.links.iter().map(|link| link.address).collect();
    assert_eq!(addresses, [link(0), link(1), link(2)]);
}

/// One link falls silent in precopy, while the guest writes.
async fn one_falls_silent_in_precopy(place: usize) {
    let world = world(&[2, 2]);
    let guest = FakeSource::new(CHUNKS, Content::Mixed);
    let handle = world.start(world.session_over_links(), &guest);
    let done = Arc::default();
    let writer = write_all_the_time(&guest, &done);
    sent(&handle, 2 << 20).await;
    silence(&world, place, true);
    lost(&handle, place).await;
    done.store(true, SeqCst);
    writer.await.unwrap();
    let report = world.assert_migrated(&guest, &handle).await;
    assert_lost(&report, &[place == 0, place == 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_link_falls_silent_in_precopy() {
    one_falls_silent_in_precopy(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_link_falls_silent_in_precopy() {
    one_falls_silent_in_precopy(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_link_brings_late_does_not_overwrite_what_came_since() {
    let world = world(&[4, 4]);
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let handle = world.start(world.session_over_links(), &guest);
    let done = Arc::default();
    let writer = write_all_the_time(&guest, &done);
    sent(&handle, 1 << 20).await;
    // Always the same link: on a slow host it may count as lost, and then the other one is needed.
    for _ in 0..4 {
        let at = handle.progress().borrow().transfer.wire_bytes;
        silence(&world, 0, true);
        // The other link repeats what this one holds, and goes on; then this one delivers it.
        sent(&handle, at + (3 << 20)).await;
        silence(&world, 0, false);
        sent(&handle, at + (4 << 20)).await;
    }
    done.store(true, SeqCst);
    writer.await.unwrap();
    world.assert_migrated(&guest, &handle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_falls_silent_at_the_pause_does_not_hold_the_guest() {
    let world = world(&[8, 8]);
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let limits = Limits { downtime: Duration::from_secs(5), ..Limits::default() };
    let session = SourceSession { limits, ..world.session_over_links() };
    let handle = world.start(session, &guest);
    reach(&handle, Phase::Switchover).await;
    silence(&world, 0, true);
    let report = world.assert_migrated(&guest, &handle).await;
    assert_eq!(report.returns, 0, "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_go_on_once_one_of_the_links_that_fell_silent_is_back() {
    let world = world(&[2, 2]);
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let handle = world.start(world.session_over_links(), &guest);
    sent(&handle, 1 << 20).await;
    silence(&world, 0, true);
    silence(&world, 1, true);
    let mut progress = handle.progress();
    in_time(progress.wait_for(|it| it.disconnected.is_some())).await.unwrap();
    for page in 0..100 {
        guest.write(page * 7, Content::Random, 5);
    }
    silence(&world, 1, false);
    let report = world.assert_migrated(&guest, &handle).await;
    assert!(report.transfer.wire_bytes < 2 * CHUNK_BYTES as u64 * CHUNKS as u64, "{report:?}");
}

/// A guest handed over before most of its memory, over two links of 2 MiB a second.
async fn handed_over(world: &World) -> (Arc<FakeSource>, Handle) {
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let slow = Some(256 << 10);
    let session = SourceSession { bandwidth: slow, ..world.session_over_links() };
    let handle = world.start(session, &guest);
    reach(&handle, Phase::Precopy).await;
    handle.postcopy().await.unwrap();
    reach(&handle, Phase::Postcopy).await;
    handle.change(LimitsChange { bandwidth: Some(0), ..Default::default() }).await.unwrap();
    (guest, handle)
}

/// One link falls silent while memory follows the guest, which waits for a page meanwhile.
async fn one_falls_silent_in_postcopy(place: usize) {
    let world = world(&[2, 2]);
    let (guest, handle) = handed_over(&world).await;
    silence(&world, place, true);
    let missing = world.target().missing.get().unwrap().clone();
    let reader = spawn_blocking(move || missing.read(CHUNKS * 64 - 20));
    lost(&handle, place).await;
    in_time(reader).await.unwrap();
    let report = world.assert_migrated(&guest, &handle).await;
    assert_lost(&report, &[place == 0, place == 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_link_falls_silent_in_postcopy() {
    one_falls_silent_in_postcopy(0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_link_falls_silent_in_postcopy() {
    one_falls_silent_in_postcopy(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_comes_back_carries_memory_that_follows_the_guest() {
    let world = world(&[1, 1]);
    let (guest, handle) = handed_over(&world).await;
    silence(&world, 0, true);
    lost(&handle, 0).await;
    let before = handle.progress().borrow().links[0].wire_bytes;
    // The loss of the other link makes the source look for the destination on both.
    silence(&world, 0, false);
    silence(&world, 1, true);
    let report = in_time(handle.settled()).await.unwrap();
    assert_eq!(report.outcome, Outcome::Migrated, "{report:?}");
    assert!(report.links[0].wire_bytes > before, "{:?}", report.links);
    assert_eq!(guest.memory.first_difference(&world.target().memory), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_was_made_again_is_given_up_as_soon_as_one_that_was_not() {
    let world = world(&[1, 1, 1]);
    let (guest, handle) = handed_over(&world).await;
    silence(&world, 0, true);
    lost(&handle, 0).await;
    // The source has found the destination on the second link, and adds the third one again.
    let before = handle.progress().borrow().links[2].wire_bytes;
    let mut progress = handle.progress();
    let carries = progress.wait_for(|it| it.links[2].wire_bytes > before + (1 << 20));
    in_time(carries).await.unwrap();
    silence(&world, 2, true);
    lost(&handle, 2).await;
    let why = handle.progress().borrow().links[2].lost.clone().unwrap();
    assert!(why.contains("for 3 s"), "{why}");
    let report = world.assert_migrated(&guest, &handle).await;
    assert_lost(&report, &[true, false, true]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_dead_from_the_beginning_is_said_and_not_used() {
    let world = world(&[8, 8]);
    silence(&world, 1, true);
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let handle = world.start(world.session_over_links(), &guest);
    let report = world.assert_migrated(&guest, &handle).await;
    assert_lost(&report, &[false, true]);
    assert_eq!(report.links[1].wire_bytes, 0);
}

/// Opens a stream with this role on a connection of its own, with the token; returns the connection
/// and the stream.
async fn intrude(
    world: &World,
    handle: &Handle,
    role: StreamRole,
) -> (quinn::Endpoint, quinn::Connection, quinn::RecvStream) {
    let address = SocketAddr::new(LOOPBACK, world.arrival().await.port());
    let dialer = endpoint::dialer(address, &world.tls).unwrap();
    let peer = endpoint::Peer { address, name: "127.0.0.1".into() };
    let connection = endpoint::connect(&dialer, &peer).await.unwrap();
    let (mut send, receive) = connection.open_bi().await.unwrap();
    let token = world.node.token_given.lock().unwrap().unwrap();
    let preamble = Preamble { role, migration: handle.migration(), token };
    send.write_all(&preamble.encode()).await.unwrap();
    (dialer, connection, receive)
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_on_a_link_end_a_migration_whose_pages_come_on_data_streams() {
    let world = World::new();
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let slow = Some(1 << 20);
    let handle = world.start(SourceSession { bandwidth: slow, ..world.session() }, &guest);
    reach(&handle, Phase::Precopy).await;
    sent(&handle, 1 << 20).await;
    let _intruder = intrude(&world, &handle, StreamRole::LinkPages).await;
    let report = world.assert_stayed(&guest, &handle).await;
    let message = report.error.unwrap().message;
    assert!(message.contains("both on links and on data streams"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_can_join_only_between_the_greeting_and_the_next_message() {
    let world = world(&[4, 4]);
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let handle = world.start(world.session_over_links(), &guest);
    reach(&handle, Phase::Precopy).await;
    let (_dialer, connection, mut receive) = intrude(&world, &handle, StreamRole::Link).await;
    let closed = in_time(connection.closed()).await.to_string();
    assert!(closed.contains("no further link can be added now"), "{closed}");
    assert!(receive.read_exact(&mut [0; LINK_JOINED.len()]).await.is_err());
    world.assert_migrated(&guest, &handle).await;
}
