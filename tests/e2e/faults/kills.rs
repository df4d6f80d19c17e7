//! `kill -9` of the destination, the source and the command in each phase.

use std::time::Duration;

use super::phase::{self, Owner, Phase, Side};
use super::scene::{GUEST, Scene};
use support::checks::guest_is_gone;
use support::{Exit, wait};

in_each_phase!(destination_killed: connect prepare precopy switchover remainder ready loading commit resume);
in_each_phase!(source_killed: connect prepare precopy switchover remainder ready commit resume);
in_each_phase!(command_line_killed: connect prepare precopy switchover remainder ready loading commit resume);

/// As long as the destination's copy has not run, the guest continues at the source, even after the
/// commit: the destination's node confirms that the copy is gone. A copy that has run is lost, as
/// in any crash, and is not replaced by the source's.
fn destination_killed(phase: &Phase) {
    let mut scene = Scene::held_in(phase);
    if phase.name == "resume" {
        // The destination sends "running" before it records it; until the record is written, it is
        // unknown whether the copy has run.
        wait::until("the destination has recorded that the guest runs", || {
            let records = scene.pair.b.records();
            wait::holds(records.iter().any(|it| it["side"]["state"] == "running"), records)
        });
    }
    scene.destination().kill();
    let outcome = scene.take_migration().finish();
    if phase.name == "resume" {
        outcome.ok();
        return guest_is_gone(&scene.pair.hosts(), GUEST);
    }
    // The hand-over is called off before the destination is known to be dead.
    outcome.stayed(&["b", if phase.is_repaired() { "precopy" } else { phase.name }]);
    scene.runs_only_on(&scene.pair.a);
    scene.another_migration_succeeds();
}

/// Before the commit is on disk, the guest is lost with its only owner; afterwards the source's
/// node tells the destination, which runs it.
fn source_killed(phase: &Phase) {
    let mut scene = Scene::held_in(phase);
    scene.source().kill();
    let words = [GUEST, "died during the migration", "lighter show"];
    scene.take_migration().finish().done.complains(Exit::Failed, &words);
    match phase.owner {
        Owner::Source => guest_is_gone(&scene.pair.hosts(), GUEST),
        Owner::Destination => scene.runs_only_on(&scene.pair.b),
    }
}

/// The source's node repeats the commit, and nobody else knows of it.
#[test]
fn a_guest_that_is_being_loaded_runs_although_its_source_is_killed() {
    let mut scene = Scene::stalled_in(&phase::loading());
    let migration = scene.take_migration();
    migration.await_phase("commit");
    scene.source().kill();
    drop(migration);
    scene.release();
    scene.runs_only_on(&scene.pair.b);
}

/// The migration belongs to the guest's process: it continues without the command.
fn command_line_killed(phase: &Phase) {
    let mut scene = Scene::stalled_in(phase);
    let migration = scene.take_migration();
    migration.pid().kill();
    assert_eq!(migration.finish().done.exit, Exit::Other);
    scene.release();
    scene.runs_only_on(&scene.pair.b);
}

/// A guest that was on its way is where it was: its definition here does not start it again.
#[test]
fn a_process_that_is_killed_before_it_has_its_guest_is_no_failure_of_the_guest() {
    let point = "destination.act.create";
    let mut scene = Scene::with_failpoint(Side::Destination, &format!("{point}:hold"));
    let info = scene.pair.a.guest(GUEST).get("/v1/guest").expect("the guest's state");
    let uuid = info["uuid"].as_str().expect("a UUID");
    let text = format!("name = \"{GUEST}\"\nuuid = \"{uuid}\"\nrestart = \"on-failure\"\n");
    let path = scene.pair.folder().join("guest.toml");
    std::fs::write(&path, text).expect("a guest's file");
    scene.pair.b.run(&["define", &path.display().to_string()]).ok();

    scene.migrate();
    scene.await_failpoint(Side::Destination, point);
    scene.destination().kill();
    scene.take_migration().finish().stayed(&["b"]);
    scene.pair.b.await_log(&[GUEST, "the process of a guest that arrived here has ended"]);
    std::thread::sleep(Duration::from_secs(3));
    scene.runs_only_on(&scene.pair.a);
    let shown = scene.pair.b.run(&["show", GUEST, "--json"]).ok().json();
    assert!(shown["ended"].is_null(), "{shown:#}");
}
