//! Nodes that die during a migration: the migration and the guests continue without them.

use super::phase::{self, Phase};
use super::scene::{GUEST, Scene};
use support::checks::guest_is_gone;
use support::{Migration, NodePlan};

in_each_phase!(both_nodes_killed_and_started_again: prepare precopy switchover remainder ready loading commit resume);

/// The nodes are not in the data path: the migration completes without them, and new nodes find the
/// result.
fn both_nodes_killed_and_started_again(phase: &Phase) {
    let mut scene = Scene::stalled_in(phase);
    scene.pair.a.kill_node();
    scene.pair.b.kill_node();
    scene.release();
    scene.take_migration().finish().ok();
    scene.pair.a.start_node(&NodePlan::default());
    scene.pair.b.start_node(&NodePlan::default());
    scene.runs_only_on(&scene.pair.b);
    Migration::run(&scene.pair.b, GUEST, &scene.pair.a).ok();
    scene.runs_only_on(&scene.pair.a);
}

#[test]
fn a_restarted_node_reports_what_its_dead_guest_had_decided() {
    let mut scene = Scene::held_in(&phase::commit());
    scene.pair.a.kill_node();
    scene.source().kill();
    drop(scene.take_migration());
    scene.pair.b.guest(GUEST).await_state("in-doubt");
    scene.pair.a.start_node(&NodePlan::default());
    scene.runs_only_on(&scene.pair.b);
}

#[test]
fn a_restarted_node_reports_that_its_dead_guest_had_not_decided() {
    let mut scene = Scene::held_in(&phase::ready());
    scene.pair.a.kill_node();
    scene.source().kill();
    drop(scene.take_migration());
    scene.pair.b.guest(GUEST).await_state("in-doubt");
    scene.pair.a.start_node(&NodePlan::default());
    guest_is_gone(&scene.pair.hosts(), GUEST);
}
