//! A switchover that takes longer than expected: the guest continues instead of waiting for it.

use super::phase;
use super::scene::{GUEST, Scene};

#[test]
fn a_guest_whose_disk_hangs_at_the_hand_over_keeps_running_and_is_handed_over_later() {
    let mut scene = Scene::stalling_in(&phase::flush());
    // A busy host may take seconds to make a record durable. Twice the limit and a second more are
    // allowed.
    scene.migrate_with(&["--downtime", "3s"]);
    scene.await_stalled();

    // The flush that hangs is that of the first hand-over; the second one has its own.
    let report = scene.take_migration().finish().ok();
    scene.release();
    assert_eq!(report["returns"], 1, "{report:#}");
    assert!(report["return_seconds"].as_f64() >= Some(7.0), "{report:#}");
    assert!(report["downtime_seconds"].as_f64() < Some(7.0), "{report:#}");
    let flush = report["standstill"]["flush_seconds"].as_f64();
    assert!(flush < Some(7.0), "the flush that hung is not one of this hand-over: {report:#}");
    scene.runs_only_on(&scene.pair.b);
}

/// The destination says that it will not run its copy before it can end it.
#[test]
fn a_guest_whose_destination_hangs_at_the_hand_over_keeps_running() {
    let mut scene = Scene::with_failpoints("", "destination.guest.load:stall");
    scene.migrate_with(&["--downtime", "3s"]);
    scene.await_stalled();
    let words = ["longer than 7 s", "had not said that it has taken it over", "--downtime"];
    scene.take_migration().finish().stayed(&words);
    scene.pair.a.guest(GUEST).await_state("running");
    scene.release();
    scene.runs_only_on(&scene.pair.a);
    scene.another_migration_succeeds();
}
