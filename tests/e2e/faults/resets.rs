//! Resets of a guest during its migration.

use super::phase;
use super::scene::{GUEST, Scene};

#[test]
fn a_guest_that_is_reset_while_it_migrates_arrives_as_it_boots() {
    let mut scene = Scene::stalled_in(&phase::precopy());
    scene.pair.a.run(&["reset", GUEST]).ok();
    assert_eq!(scene.pair.a.guest(GUEST).state().as_deref(), Some("migrating"));
    scene.release();
    scene.take_migration().finish().ok();
    let arrived = scene.pair.b.guest(GUEST);
    arrived.await_workload("it works", |workload| workload["phase"] == "working");
    scene.runs_only_on(&scene.pair.b);
    // The guest has brought its boot images with it.
    scene.pair.b.run(&["reset", GUEST]).ok();
    arrived.await_workload("it works again", |workload| workload["phase"] == "working");
    scene.runs_only_on(&scene.pair.b);
}
