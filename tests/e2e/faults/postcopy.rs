//! Faults while a guest runs at its destination and its memory follows it.

use super::phase::Side;
use super::scene::{GUEST, Scene};
use support::checks::guest_is_gone;
use support::{CRAWL, Exit, Migration};

/// Starts the migration, and hands the guest over before most of its memory.
fn hand_over_first(scene: &mut Scene) -> Migration {
    scene.migrate_with(&[&CRAWL[..], &["--downtime", "100ms"]].concat());
    let migration = scene.take_migration();
    migration.await_phase("precopy");
    scene.pair.a.run(&["migrate", GUEST, "--postcopy-now"]).ok();
    migration.await_phase("postcopy");
    scene.pair.a.run(&["migrate", GUEST, "--set", "bandwidth=none"]).ok();
    migration
}

/// A guest that runs at its destination, to which the source sends only what it waits for.
fn fetching() -> (Scene, Migration) {
    let mut scene = Scene::with_failpoint(Side::Source, "source.data.background:hold");
    let migration = hand_over_first(&mut scene);
    migration.await_phase("postcopy");
    (scene, migration)
}

#[test]
fn a_guest_whose_memory_follows_it_arrives_and_can_move_again() {
    let mut scene = Scene::without_failpoint();
    let report = hand_over_first(&mut scene).finish().ok();
    let phases = report["phases"].as_array().expect("phases");
    assert!(phases.iter().any(|phase| phase["phase"] == "postcopy"), "{report:#}");
    scene.runs_only_on(&scene.pair.b);
    Migration::run(&scene.pair.b, GUEST, &scene.pair.a).ok();
    scene.runs_only_on(&scene.pair.a);
}

#[test]
fn a_connection_that_is_cut_while_memory_follows_is_restored() {
    for point in ["send.running", "act.recordfetching", "act.recordrunning", "send.complete"] {
        let point = format!("destination.{point}:cut");
        let mut scene = Scene::with_failpoint(Side::Destination, &point);
        hand_over_first(&mut scene).finish().ok();
        scene.runs_only_on(&scene.pair.b);
    }
}

#[test]
fn a_guest_is_lost_with_a_destination_that_is_killed_while_it_fetches() {
    let (scene, migration) = fetching();
    scene.destination().kill();
    migration.finish().done.complains(Exit::Failed, &[GUEST]);
    guest_is_gone(&scene.pair.hosts(), GUEST);
}

#[test]
fn a_guest_is_lost_with_a_source_that_is_killed_while_it_serves() {
    let (scene, migration) = fetching();
    scene.source().kill();
    migration.finish().done.complains(Exit::Failed, &[GUEST]);
    guest_is_gone(&scene.pair.hosts(), GUEST);
}

#[test]
fn what_needs_all_of_memory_is_refused_until_it_is_there() {
    let (scene, migration) = fetching();
    let words = ["a part of its memory is still at its source"];
    let file = scene.pair.folder().join("saved").display().to_string();
    for verb in [&["save", GUEST, &file][..], &["pause", GUEST]] {
        scene.pair.b.run(verb).complains(Exit::Failed, &words);
    }
    scene.pair.a.run(&["cancel", GUEST]).complains(Exit::Failed, &["too late"]);
    scene.pair.a.run(&["migrate", GUEST, "--resolve", "run"]).complains(Exit::Failed, &[GUEST]);
    scene.destination().kill();
    drop(migration);
}
