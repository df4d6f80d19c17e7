//! A migration breaks while it slows its guest down: a guest that stays runs at full speed again.

use super::phase::Side;
use super::scene::{GUEST, Scene};
use crate::converging::{LINK, hot, is_throttled, writes_at_its_full_rate};
use support::checks::guest_is_gone;
use support::{Exit, GuestPlan};

/// A migration of a guest that writes too fast, even on a busy host, and is throttled for it, with
/// a failpoint at the source.
fn throttling(failpoint: &str, downtime: &str) -> Scene {
    let environment = vec![("LIGHTER_FAILPOINT".to_owned(), failpoint.to_owned())];
    let mut scene = Scene::with_guest(&GuestPlan { environment, dirty_rate: 100_000, ..hot() });
    let options = ["--on-stall", "throttle", "--downtime", downtime];
    scene.migrate_with(&[&LINK[..], &options].concat());
    scene
}

/// Asserts that the guest is where it was, as fast as before.
#[track_caller]
fn goes_on(scene: &Scene) {
    writes_at_its_full_rate(&scene.pair.a.guest(GUEST));
    scene.runs_only_on(&scene.pair.a);
}

/// It is throttled again once its destination is back.
#[test]
fn a_guest_whose_connection_is_cut_when_it_is_throttled_arrives() {
    let mut scene = throttling("source.act.throttle:cut", "300ms");
    let report = scene.take_migration().finish().ok();
    let decided: Vec<_> = report["decisions"].as_array().expect("decisions").iter().collect();
    let after = decided.iter().skip_while(|it| it["decision"] != "disconnected");
    let kinds: Vec<_> = after.map(|it| it["decision"].as_str().expect("a name")).collect();
    assert!(kinds.starts_with(&["disconnected", "unthrottled", "reconnected"]), "{report:#}");
    assert!(kinds[3..].contains(&"throttled"), "{report:#}");
    scene.runs_only_on(&scene.pair.b);
}

#[test]
fn a_throttled_guest_whose_destination_is_killed_runs_at_full_speed() {
    let mut scene = throttling("", "100ms");
    is_throttled(&scene.pair);
    scene.destination().kill();
    scene.take_migration().finish().stayed(&[]);
    goes_on(&scene);
}

/// The throttle ends with the process, and so does the guest.
#[test]
fn a_throttled_guest_that_is_killed_is_gone_as_any_other() {
    let mut scene = throttling("", "100ms");
    is_throttled(&scene.pair);
    scene.source().kill();
    let words = [GUEST, "died during the migration"];
    scene.take_migration().finish().done.complains(Exit::Failed, &words);
    guest_is_gone(&scene.pair.hosts(), GUEST);
}

/// It is still throttled when it is to be paused for the hand-over.
#[test]
fn a_throttled_guest_whose_session_panics_runs_at_full_speed() {
    let point = "source.act.pause";
    let mut scene = throttling(&format!("{point}:panic"), "300ms");
    is_throttled(&scene.pair);
    scene.await_failpoint(Side::Source, point);
    scene.take_migration().finish().stayed(&[]);
    goes_on(&scene);
}
