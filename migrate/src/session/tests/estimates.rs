//! Estimates of guests that consist only of memory, over loopback.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use tokio::task::spawn_blocking;

use super::memory::Content;
use super::world::{FakeSource, LOOPBACK, World, in_time};
use crate::estimate::Estimate;
use crate::guest::SourceGuest;
use crate::limits::Limits;
use crate::quic::{Tls, endpoint};
use crate::session::{EstimateError, SourceSession, estimate};

/// Estimates the migration of `guest` on a thread that may block.
async fn estimated(
    world: &World,
    session: SourceSession,
    guest: &Arc<FakeSource>,
) -> Result<Estimate, EstimateError> {
    let (tls, records) = (world.tls.clone(), world.records.clone());
    let guest: Arc<dyn SourceGuest> = guest.clone();
    spawn_blocking(move || estimate(session, &guest, &tls, &records)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_measures_a_guest_and_leaves_it_as_it_was() {
    let world = World::new();
    let guest = FakeSource::new(64, Content::Mixed);
    guest.reports_all.store(true, SeqCst);
    let limits = Limits { downtime: Duration::from_secs(10), ..Limits::default() };
    let session = SourceSession { bandwidth: Some(16 << 20), limits, ..world.session() };
    let estimate = estimated(&world, session, &guest).await.unwrap();

    assert!(guest.is_running());
    assert!(world.node.factory.built.lock().unwrap().is_none(), "no guest was created");
    let measured = &estimate.measured;
    assert_eq!(measured.memory_pages, 64 * 64);
    assert!((0.2..0.5).contains(&measured.zero_ratio), "a third is zero: {measured:?}");
    assert!((0.3..0.7).contains(&measured.compressible_ratio), "half is text: {measured:?}");
    assert!(measured.written.iter().all(|window| window.pages == 0), "{measured:?}");
    assert!(measured.path.is_measured && measured.path.lost_ratio < 0.5, "{measured:?}");
    let limit = f64::from(16 << 20);
    assert!(measured.path.bytes_per_second < limit * 1.5, "the limit holds: {measured:?}");
    assert!(estimate.converges && estimate.forecast.arrives, "{estimate:?}");
}

/// Writes the first chunk again and again, and the pages after it one by one, until the sender of
/// `over` is dropped.
fn write(guest: &FakeSource, over: &mpsc::Receiver<()>) {
    for page in (64..64 * 64).cycle() {
        for written in (0..64).chain([page]) {
            guest.write(written, Content::Random, 3);
        }
        if over.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_tells_what_is_written_again_and_again() {
    let world = World::new();
    let guest = FakeSource::new(64, Content::Text);
    let (under_way, over) = mpsc::channel();
    let writing = thread::spawn({
        let guest = guest.clone();
        move || write(&guest, &over)
    });
    let estimate = estimated(&world, world.session(), &guest).await.unwrap();
    drop(under_way);
    writing.join().unwrap();
    let last = estimate.measured.written.last().unwrap();
    assert_eq!(last.hot_pages, 64, "{last:?}");
    assert!(last.pages > 64, "{last:?}");
    assert!(estimate.measured.dry_run.record_change_seconds > 0.0, "{estimate:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_cannot_be_saved_runs_on_after_its_estimate() {
    let world = World::new();
    let guest = FakeSource::new(4, Content::Zero);
    guest.fail_save.store(true, SeqCst);
    let error = estimated(&world, world.session(), &guest).await.unwrap_err();
    assert!(error.to_string().contains("registers of vCPU 0"), "{error}");
    assert!(guest.is_running());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_of_a_guest_whose_disk_hangs_fails_soon() {
    let world = World::new();
    let guest = FakeSource::new(4, Content::Zero);
    guest.is_stuck_running.store(true, SeqCst);
    guest.set_stuck(true);
    let error = in_time(estimated(&world, world.session(), &guest)).await.unwrap_err();
    assert!(matches!(error, EstimateError::Disks(..)), "{error}");
    assert!(guest.is_running() && guest.is_hanging());
    guest.set_stuck(false);
    assert!(!guest.steps.lock().unwrap().contains(&"pause"), "the guest is left alone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_does_not_answer_is_named_before_the_guest_is_touched() {
    let world = World::new();
    let guest = FakeSource::new(4, Content::Random);
    let session = SourceSession { server_name: Some("host-b".into()), ..world.session() };
    let error = estimated(&world, session, &guest).await.unwrap_err();
    assert!(matches!(error, EstimateError::Node(_)), "{error}");
    assert!(guest.steps.lock().unwrap().is_empty(), "it was not paused");
}

/// Starts a node of an earlier version, which closes the connection on a request that it does not
/// know.
fn earlier_node(tls: &Tls) -> SocketAddr {
    let listener = endpoint::listen(SocketAddr::new(LOOPBACK, 0), tls).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Some(incoming) = listener.accept().await {
            let connection = incoming.await.unwrap();
            let _request = connection.accept_bi().await;
            connection.close(0_u32.into(), b"unknown kind 71 of control message");
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn the_rate_to_an_earlier_node_is_the_bandwidth_limit() {
    let world = World::new();
    let guest = FakeSource::new(4, Content::Random);
    let port = earlier_node(&world.tls).port();
    let session = || SourceSession { port, ..world.session() };
    let error = estimated(&world, session(), &guest).await.unwrap_err();
    assert!(matches!(error, EstimateError::Unmeasurable), "{error}");
    assert!(error.to_string().contains("--bandwidth"), "{error}");

    let limited = SourceSession { bandwidth: Some(8 << 20), ..session() };
    let path = estimated(&world, limited, &guest).await.unwrap().measured.path;
    assert!(!path.is_measured, "{path:?}");
    assert_eq!(path.bytes_per_second, f64::from(8 << 20));
}
