//! Migrations that are cancelled or fail half way, without failpoints.

use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::memory::Content;
use super::world::{FakeSource, World, in_time, reach};
use crate::error::CancelRefused;
use crate::phase::Phase;
use crate::reason::Reason;
use crate::session::SourceSession;

/// Starts a migration that takes minutes; returns during its first round.
pub(super) async fn slow(
    world: &World,
    guest: &std::sync::Arc<FakeSource>,
) -> crate::session::Handle {
    let session = SourceSession { bandwidth: Some(100_000), ..world.session() };
    let handle = world.start(session, guest);
    reach(&handle, Phase::Precopy).await;
    let mut progress = handle.progress();
    in_time(progress.wait_for(|progress| progress.transfer.frames > 0)).await.unwrap();
    handle
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_migration_ends_at_once_though_the_bandwidth_is_small() {
    let world = World::new();
    let guest = FakeSource::new(64, Content::Random);
    let handle = slow(&world, &guest).await;
    let asked = Instant::now();
    handle.cancel("a test").await.unwrap();
    let report = world.assert_stayed(&guest, &handle).await;
    // Sending all of its memory would take minutes.
    assert!(asked.elapsed() < Duration::from_secs(30), "{:?}", asked.elapsed());
    assert_eq!(report.error.unwrap().reason, Reason::Cancelled);
    assert_eq!(handle.cancel("a test").await, Err(CancelRefused::Over));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_cancelled_right_after_its_admission_lets_the_destination_go_at_once() {
    let world = World::new();
    let guest = FakeSource::new(16, Content::Mixed);
    let handle = world.start(world.session(), &guest);
    let there = world.arrival().await;
    let asked = Instant::now();
    handle.cancel("a test").await.unwrap();
    in_time(there.settled()).await.unwrap();
    // A process whose source sends nothing waits for five seconds.
    assert!(asked.elapsed() < Duration::from_secs(4), "{:?}", asked.elapsed());
    world.assert_stayed(&guest, &handle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_cancelled_migration_another_one_succeeds() {
    let world = World::new();
    let guest = FakeSource::new(16, Content::Mixed);
    let handle = slow(&world, &guest).await;
    handle.cancel("a test").await.unwrap();
    world.assert_stayed(&guest, &handle).await;
    let handle = world.start(world.session(), &guest);
    world.assert_migrated(&guest, &handle).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_cancelled_at_the_destination_leaves_the_guest_at_the_source() {
    let world = World::new();
    let guest = FakeSource::new(16, Content::Mixed);
    let handle = slow(&world, &guest).await;
    world.arrival().await.cancel("the operator there").await.unwrap();
    let report = world.assert_stayed(&guest, &handle).await;
    let message = report.error.unwrap().message;
    assert!(message.contains("the operator there"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_state_cannot_be_saved_stays() {
    let world = World::new();
    let guest = FakeSource::new(4, Content::Text);
    guest.fail_save.store(true, SeqCst);
    let handle = world.start(world.session(), &guest);
    let report = world.assert_stayed(&guest, &handle).await;
    assert_eq!(report.error.unwrap().reason, Reason::Guest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_stops_on_its_own_ends_its_migration() {
    let world = World::new();
    let guest = FakeSource::new(16, Content::Random);
    let handle = slow(&world, &guest).await;
    handle.guest_stopped("it shut down");
    let report = in_time(handle.settled()).await.unwrap();
    assert_eq!(report.error.unwrap().reason, Reason::GuestStopped);
    in_time(world.arrival().await.settled()).await.unwrap();
}
