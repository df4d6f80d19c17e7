//! Cuts, lost messages and damaged frames at every point of a migration.

use std::sync::Arc;

use super::memory::Content;
use super::world::{FakeSource, World, in_time};
use crate::failpoint::Failpoints;
use crate::guest::SourceGuest;
use crate::report::Outcome;
use crate::session::{Handle, SourceSession};

async fn start(source: &str, destination: &str) -> (World, Arc<FakeSource>, Handle) {
    eprintln!("{source} {destination}");
    let world = World::with(|node| node.failpoints = Failpoints::parse(destination).into());
    let guest = FakeSource::new(8, Content::Mixed);
    let session = SourceSession { ..world.session() };
    let handle = world.start_with(session, &guest, Failpoints::parse(source));
    (world, guest, handle)
}

/// Asserts that exactly one copy runs, with the guest's memory.
async fn assert_one_runs(
    world: &World,
    guest: &FakeSource,
    handle: &Handle,
    what: &str,
) -> Outcome {
    let report = in_time(handle.settled()).await.expect(what);
    match report.outcome {
        Outcome::Migrated => world.assert_migrated(guest, handle).await,
        Outcome::StayedAtSource => world.assert_stayed(guest, handle).await,
        other => panic!("{what}: {other:?} {report:?}"),
    };
    assert_ne!(guest.is_running(), report.outcome == Outcome::Migrated, "{what}");
    report.outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_before_the_commit_leaves_the_guest_at_the_source() {
    for point in [
        "source.send.hello",
        "source.recv.welcome",
        "source.send.prepare",
        "source.act.sendremainder",
    ] {
        let (world, guest, handle) = start(&format!("{point}:cut"), "").await;
        let outcome = assert_one_runs(&world, &guest, &handle, point).await;
        assert_eq!(outcome, Outcome::StayedAtSource, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_during_the_hand_over_is_replaced_and_the_guest_moves() {
    for point in ["source.act.sendfinalround", "source.act.savestate"] {
        let (world, guest, handle) = start(&format!("{point}:cut"), "").await;
        let outcome = assert_one_runs(&world, &guest, &handle, point).await;
        assert_eq!(outcome, Outcome::Migrated, "{point}");
        assert_eq!(in_time(handle.settled()).await.unwrap().returns, 1, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_by_the_destination_before_the_pause_leaves_the_guest_at_the_source() {
    for point in ["destination.send.welcome", "destination.act.create", "destination.send.prepared"]
    {
        let (world, guest, handle) = start("", &format!("{point}:cut")).await;
        let outcome = assert_one_runs(&world, &guest, &handle, point).await;
        assert_eq!(outcome, Outcome::StayedAtSource, "{point}");
    }
}

/// Which side has the guest afterwards depends on what the destination has received by then, or on
/// whether the guest is already paused when the source notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_at_the_hand_over_leaves_one_copy() {
    for (source, destination) in [
        ("source.send.switchover:cut", ""),
        ("source.send.commit:cut", ""),
        ("", "destination.recv.switchover:cut"),
        ("", "destination.recv.state:cut"),
        ("", "destination.act.loadstate:cut"),
    ] {
        let (world, guest, handle) = start(source, destination).await;
        assert_one_runs(&world, &guest, &handle, &format!("{source}{destination}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_cut_after_the_commit_is_restored_and_the_guest_moves() {
    for (source, destination) in [
        ("source.recv.running:cut", ""),
        ("source.send.finish:cut", ""),
        ("", "destination.act.recordtaking:cut"),
        ("", "destination.act.recordrunning:cut"),
        ("", "destination.act.resumeguest:cut"),
        ("", "destination.send.running:cut"),
    ] {
        let point = format!("{source}{destination}");
        let (world, guest, handle) = start(source, destination).await;
        let outcome = assert_one_runs(&world, &guest, &handle, &point).await;
        assert_eq!(outcome, Outcome::Migrated, "{point}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_frame_is_found_and_the_guest_runs_once() {
    for (source, destination, reason) in [
        ("source.send.hello:flip", "", "checksum"),
        ("source.send.prepare:flip", "", "checksum"),
        ("source.data.pages:flip", "", "checksum"),
        ("source.data.end:flip", "", ""),
        ("source.send.state:flip", "", "checksum"),
        ("source.send.commit:flip", "", ""),
        ("", "destination.send.welcome:flip", "checksum"),
        ("", "destination.send.prepared:flip", "checksum"),
        ("", "destination.send.running:flip", ""),
    ] {
        let point = format!("{source}{destination}");
        let (world, guest, handle) = start(source, destination).await;
        assert_one_runs(&world, &guest, &handle, &point).await;
        let report = handle.settled().await.unwrap();
        let message = report.error.map_or(String::new(), |error| error.message);
        assert!(message.contains(reason), "{point}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_migration_can_be_cancelled_in_every_phase_before_the_commit() {
    for (source, destination) in [
        ("source.send.hello:hold", ""),
        ("source.act.sendround:hold", ""),
        ("source.data.pages:hold", ""),
        ("source.act.sendfinalround:hold", ""),
        ("source.act.savestate:hold", ""),
        ("source.act.sendremainder:hold", ""),
        ("", "destination.send.prepared:hold"),
    ] {
        let point = format!("{source}{destination}");
        let (world, guest, handle) = start(source, destination).await;
        // Waits until the progress has not changed for a while.
        let mut progress = handle.progress();
        let mut last = None;
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(150)).await;
            let now = progress.borrow_and_update();
            let seen = Some((now.phase, now.round, now.transfer.frames));
            if seen == last {
                break;
            }
            last = seen;
        }
        handle.cancel("a test").await.unwrap_or_else(|error| panic!("{point}: {error}"));
        let outcome = assert_one_runs(&world, &guest, &handle, &point).await;
        assert_eq!(outcome, Outcome::StayedAtSource, "{point}");
    }
}
