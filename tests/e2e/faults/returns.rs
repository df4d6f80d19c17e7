//! A hand-over takes too long and is called off, and just then the connection breaks or one of the
//! processes dies.

use super::phase::Side;
use super::scene::{GUEST, Scene};
use support::Exit;
use support::checks::guest_is_gone;

at!(connection_cut: before_the_destination_is_told "source.send.return"
    when_the_destination_hears_of_it "destination.recv.return"
    before_the_guest_runs_on "source.act.resumeguest");
at!(destination_killed: before_the_destination_is_told "source.send.return"
    when_the_destination_hears_of_it "destination.recv.return"
    before_the_guest_runs_on "source.act.resumeguest");
// A source does not wait for a destination that hears of it late: it may have committed by then.
at!(source_killed: before_the_destination_is_told "source.send.return"
    before_the_guest_runs_on "source.act.resumeguest");

/// A migration whose first hand-over is called off, since the flush of the disks never ends, with a
/// failpoint on the way back.
fn called_off(point: &str, action: &str) -> Scene {
    let (hangs, failpoint) = ("source.guest.flush:hold", format!("{point}:{action}"));
    let mut scene = match Side::of(point) {
        Side::Source => Scene::with_failpoints(&format!("{hangs},{failpoint}"), ""),
        Side::Destination => Scene::with_failpoints(hangs, &failpoint),
    };
    scene.migrate_with(&["--downtime", "1s"]);
    scene
}

/// The connection is replaced, as in rounds.
fn connection_cut(point: &str) {
    let mut scene = called_off(point, "cut");
    let report = scene.take_migration().finish().ok();
    let decided = report["decisions"].as_array().expect("decisions").iter();
    let kinds: Vec<_> = decided.map(|it| it["decision"].as_str().expect("a name")).collect();
    assert!(kinds.starts_with(&["called_off", "disconnected", "reconnected"]), "{report:#}");
    scene.runs_only_on(&scene.pair.b);
}

fn destination_killed(point: &str) {
    let mut scene = called_off(point, "stall");
    scene.await_stalled();
    scene.destination().kill();
    scene.release();
    scene.take_migration().finish().stayed(&[]);
    scene.runs_only_on(&scene.pair.a);
    scene.another_migration_succeeds();
}

/// The guest is lost with its only owner.
fn source_killed(point: &str) {
    let mut scene = called_off(point, "stall");
    scene.await_stalled();
    scene.source().kill();
    scene.release();
    let words = [GUEST, "died during the migration"];
    scene.take_migration().finish().done.complains(Exit::Failed, &words);
    guest_is_gone(&scene.pair.hosts(), GUEST);
}
