//! `kill -9` of the destination, the source and the command in each phase.

use super::phase::{Owner, Phase};
use super::scene::{GUEST, Scene};
use support::checks::guest_is_gone;
use support::{Exit, wait};

in_each_phase!(destination_killed: connect prepare precopy switchover ready commit resume);
in_each_phase!(source_killed: connect prepare precopy switchover ready commit resume);
in_each_phase!(command_line_killed: connect prepare precopy switchover ready commit resume);

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
    outcome.stayed(&["b", phase.name]);
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

/// The migration belongs to the guest's process: it continues without the command.
fn command_line_killed(phase: &Phase) {
    let mut scene = Scene::stalled_in(phase);
    let migration = scene.take_migration();
    migration.pid().kill();
    assert_eq!(migration.finish().done.exit, Exit::Other);
    scene.release();
    scene.runs_only_on(&scene.pair.b);
}
