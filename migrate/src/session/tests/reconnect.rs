//! Connections that are lost while rounds are sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use super::super::liveness::FRESH;
use super::cancel::slow;
use super::memory::Content;
use super::relay::Relay;
use super::world::{FakeSource, World, in_time, reach};
use crate::decisions::DecisionKind;
use crate::failpoint::Failpoints;
use crate::guest::SourceGuest;
use crate::limits::{Limits, LimitsChange};
use crate::memory::{CHUNK_BYTES, PAGES_PER_CHUNK};
use crate::phase::Phase;
use crate::progress::Progress;
use crate::reason::Reason;
use crate::report::Report;
use crate::session::{Handle, SourceSession};

/// Chunks of a guest of these tests: 16 MiB.
const CHUNKS: usize = 64;

fn reconnections(report: &Report) -> usize {
    let kinds = report.decisions.iter().map(|decided| decided.what.kind());
    kinds.filter(|kind| *kind == DecisionKind::Reconnected).count()
}

/// A destination whose network can fall silent.
fn behind_relay() -> (World, Relay) {
    let relay = Relay::default();
    (World::with(|node| node.relay = Some(relay.clone())), relay)
}

async fn until_out_of_reach(handle: &Handle) {
    let mut progress = handle.progress();
    in_time(progress.wait_for(|progress| progress.disconnected.is_some())).await.unwrap();
}

/// The first rounds are cut after the n-th batch of pages, one after the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_arrives_whose_connections_are_cut_in_its_rounds() {
    for connections in [1, 3] {
        for batches in [vec![0], vec![1], vec![5], vec![4, 1, 0]] {
            let world = World::new();
            let guest = FakeSource::new(CHUNKS, Content::Mixed);
            let cut_after =
                |n: &usize| "source.data.pages:pass,".repeat(*n) + "source.data.pages:cut";
            let points: Vec<_> = batches.iter().map(cut_after).collect();
            let session = SourceSession { connections: Some(connections), ..world.session() };
            let handle = world.start_with(session, &guest, Failpoints::parse(&points.join(",")));
            let report = world.assert_migrated(&guest, &handle).await;
            // Several streams share the batches, so rounds may end before the later cuts.
            let least = if connections == 1 { batches.len() } else { 1 };
            let seen = reconnections(&report);
            assert!((least..=batches.len()).contains(&seen), "{batches:?} {seen} {report:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_arrives_though_the_connection_is_cut_before_a_round_is_sent() {
    for point in ["source.recv.prepared", "source.act.probe", "source.act.sendround"] {
        let world = World::new();
        let guest = FakeSource::new(8, Content::Mixed);
        let cut = Failpoints::parse(&format!("{point}:cut"));
        let handle = world.start_with(world.session(), &guest, cut);
        let report = world.assert_migrated(&guest, &handle).await;
        assert_eq!(reconnections(&report), 1, "{point} {report:?}");
    }
}

/// The answer of the destination is lost, so it counts again.
#[tokio::test(flavor = "multi_thread")]
async fn a_destination_is_asked_again_if_its_answer_is_lost() {
    let world = World::with(|node| {
        node.failpoints = Failpoints::parse("destination.send.applied:cut").into();
    });
    let guest = FakeSource::new(CHUNKS, Content::Mixed);
    let cut = Failpoints::parse("source.data.pages:pass,source.data.pages:cut");
    let handle = world.start_with(world.session(), &guest, cut);
    let report = world.assert_migrated(&guest, &handle).await;
    assert_eq!(reconnections(&report), 1, "{report:?}");
}

/// What such a thread had to send is not known: another connection would not bring it.
#[tokio::test(flavor = "multi_thread")]
async fn a_thread_that_panics_is_no_loss_of_the_connection() {
    let world = World::new();
    let guest = FakeSource::new(8, Content::Mixed);
    guest.panics.store(true, SeqCst);
    let handle = world.start(world.session(), &guest);
    let report = world.assert_stayed(&guest, &handle).await;
    assert_eq!(report.error.as_ref().unwrap().reason, Reason::Guest, "{report:?}");
}

/// The disk and the destination are on the same network.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_fails_while_the_destination_is_out_of_reach_stays() {
    let (world, relay) = behind_relay();
    let guest = FakeSource::new(8, Content::Mixed);
    guest.panics.store(true, SeqCst);
    guest.is_slow.store(true, SeqCst);
    let handle = world.start(world.session(), &guest);
    reach(&handle, Phase::Precopy).await;
    relay.silent.store(true, SeqCst);
    until_out_of_reach(&handle).await;
    guest.is_slow.store(false, SeqCst);
    let report = in_time(handle.reported()).await.unwrap();
    assert_eq!(report.error.as_ref().unwrap().reason, Reason::Guest, "{report:?}");
    relay.silent.store(false, SeqCst);
    world.assert_stayed(&guest, &handle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_goes_silent_is_noticed_soon_and_rounds_go_on_when_it_is_back() {
    let (world, relay) = behind_relay();
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let handle = slow(&world, &guest).await;
    handle.change(LimitsChange { bandwidth: Some(1 << 20), ..Default::default() }).await.unwrap();
    let most = |progress: &Progress| progress.transfer.wire_bytes >= 5 << 20;
    in_time(handle.progress().wait_for(most)).await.unwrap();
    relay.silent.store(true, SeqCst);
    let cut = Instant::now();
    until_out_of_reach(&handle).await;
    // Within 10 s on an idle machine: the time-out is 7 s, and a test with its own clock covers
    // what is added to it.
    assert!(cut.elapsed() < Duration::from_secs(30), "{:?}", cut.elapsed());
    for page in 0..200 {
        guest.write(page * 20, Content::Random, 9);
    }
    handle.change(LimitsChange { bandwidth: Some(0), ..Default::default() }).await.unwrap();
    relay.silent.store(false, SeqCst);
    let report = world.assert_migrated(&guest, &handle).await;
    assert_eq!(reconnections(&report), 1, "{report:?}");
    println!("{} pages of {} were sent", report.transfer.raw_pages, CHUNKS * PAGES_PER_CHUNK);
    // What had arrived is not sent again, but for what was under way.
    assert!(report.transfer.wire_bytes < 5 * CHUNK_BYTES as u64 * CHUNKS as u64 / 4, "{report:?}");
}

/// Hands a guest over to a network that has this fault from the pause on. The last pages fit the
/// transport's queue: only missing acknowledgements show it.
async fn called_off_and_replaced(connections: u16, fault: impl Fn(&Relay) -> Arc<AtomicBool>) {
    let (world, relay) = behind_relay();
    let guest = FakeSource::new(8, Content::Mixed);
    let fault = fault(&relay);
    assert!(guest.silenced.fault.set(fault.clone()).is_ok());
    let session = SourceSession { connections: Some(connections), ..world.session() };
    let handle = world.start_with(session, &guest, Failpoints::default());
    until_out_of_reach(&handle).await;
    assert!(guest.is_running());
    fault.store(false, SeqCst);
    let report = world.assert_migrated(&guest, &handle).await;
    assert_eq!((report.returns, reconnections(&report)), (1, 1), "{report:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_into_a_silent_network_is_called_off_and_the_connection_replaced() {
    called_off_and_replaced(1, |relay| relay.silent.clone()).await;
    called_off_and_replaced(3, |relay| relay.silent.clone()).await;
}

/// The destination repeats its last acknowledgement in everything that it sends.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_to_a_destination_that_only_sends_is_called_off_and_the_connection_replaced() {
    called_off_and_replaced(1, |relay| relay.deaf.clone()).await;
}

/// What comes over the others is acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn a_hand_over_whose_control_stream_is_dead_is_called_off_and_the_connection_replaced() {
    called_off_and_replaced(3, |relay| relay.first_deaf.clone()).await;
}

/// The last round was acknowledged before. Without another check the source commits, and the guest
/// is paused until the network is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_dies_during_the_last_flush_does_not_keep_the_guest_paused() {
    for connections in [1, 3] {
        let (world, relay) = behind_relay();
        let guest = FakeSource::new(8, Content::Mixed);
        guest.set_stuck(true);
        let limits = Limits { downtime: Duration::from_secs(2), ..Limits::default() };
        let session = SourceSession { limits, connections: Some(connections), ..world.session() };
        let handle = world.start(session, &guest);
        in_time(async {
            while guest.is_running() || !guest.is_hanging() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        // For the last round, and then so long that no acknowledgement of it counts.
        tokio::time::sleep(Duration::from_secs(1)).await;
        relay.silent.store(true, SeqCst);
        tokio::time::sleep(3 * FRESH).await;
        guest.set_stuck(false);
        let report = in_time(handle.reported()).await.unwrap();
        assert!(guest.is_running(), "{report:?}");
        // Before the loss of the connection is noticed.
        assert_eq!(report.error.as_ref().unwrap().reason, Reason::Downtime, "{report:?}");
        assert_eq!(report.returns, 0, "{report:?}");
        relay.silent.store(false, SeqCst);
        world.assert_stayed(&guest, &handle).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_can_be_cancelled_while_the_network_is_silent() {
    let (world, relay) = behind_relay();
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let handle = slow(&world, &guest).await;
    relay.silent.store(true, SeqCst);
    handle.cancel("a test").await.unwrap();
    let report = in_time(handle.reported()).await.unwrap();
    assert_eq!(report.error.unwrap().reason, Reason::Cancelled);
    assert!(guest.is_running());
    // The destination keeps its copy until it hears of that.
    relay.silent.store(false, SeqCst);
    world.assert_stayed(&guest, &handle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_can_be_cancelled_while_the_destination_is_looked_for() {
    let (world, relay) = behind_relay();
    let guest = FakeSource::new(CHUNKS, Content::Random);
    let handle = slow(&world, &guest).await;
    relay.silent.store(true, SeqCst);
    until_out_of_reach(&handle).await;
    handle.cancel("a test").await.unwrap();
    let report = in_time(handle.reported()).await.unwrap();
    assert_eq!(report.error.unwrap().reason, Reason::Cancelled);
    relay.silent.store(false, SeqCst);
    world.assert_stayed(&guest, &handle).await;
}
