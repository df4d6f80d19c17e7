//! The cable is unplugged exactly at the switchover, and plugged in again: two network namespaces,
//! as in [`crate::network`].

use super::phase::{self, Phase, Side};
use super::scene::{GUEST, Stall, environment};
use crate::network::cable::Cable;
use support::checks::{exactly_one_copy_runs, no_copy_runs, one_intact_copy};
use support::{Guest, GuestPlan, HELD, Migration, NodePlan, Pair};

/// A migration between two namespaces that is held in `phase`, with the cable unplugged.
struct Pulled {
    pair: Pair,
    cable: Cable,
    migration: Migration,
    witness: Guest,
}

fn pulled_in(phase: &Phase) -> Option<Pulled> {
    let (pulled, stall) =
        pulled(|stall, side| stall.environment(phase, side), |_, stall| stall.await_reached())?;
    stall.release();
    Some(pulled)
}

/// A migration between two namespaces with these failpoints, and the cable unplugged once `stands`
/// returns.
fn pulled(
    failpoints: impl Fn(&Stall, Side) -> Vec<(String, String)>,
    stands: impl FnOnce(&Pair, &Stall),
) -> Option<(Pulled, Stall)> {
    let cable = Cable::lay()?;
    let mut pair = cable.hosts();
    let stall = Stall::new(&pair);
    let environment = |side: Side| failpoints(&stall, side);
    let stalled = NodePlan { environment: environment(Side::Destination), ..cable.node_plan(1) };
    pair.a.start_node(&cable.node_plan(0));
    pair.b.start_node(&stalled);
    let plan = |name: &str, environment| GuestPlan {
        name: name.to_owned(),
        namespace: cable.end_a(),
        environment,
        ..GuestPlan::default()
    };
    let witness = Guest::start(&pair.a, &plan("witness", Vec::new()));
    Guest::start(&pair.a, &plan(GUEST, environment(Side::Source)));
    let migration = Migration::start(&pair.a, GUEST, &pair.b, &HELD);
    stands(&pair, &stall);
    cable.pull();
    Some((Pulled { pair, cable, migration, witness }, stall))
}

#[test]
fn between_commit_and_running_no_copy_runs_until_the_network_is_back() {
    // A source that is blocked instead might still have the last pages.
    let held = pulled(
        |_, side| environment(Side::Source, side, "source.send.commit:hold"),
        |pair, _| pair.b.guest(GUEST).await_received(),
    );
    let Some((Pulled { pair, cable, migration, witness }, _)) = held else { return };
    pair.a.guest(GUEST).await_state("in-doubt");
    pair.b.guest(GUEST).await_state("in-doubt");
    no_copy_runs(&pair.hosts(), GUEST, &witness);

    cable.put_back();
    one_intact_copy(&pair.hosts(), GUEST, &pair.b);
    drop(migration);
}

#[test]
fn a_guest_that_is_being_loaded_runs_while_the_network_is_gone() {
    let Some(Pulled { pair, cable, migration, .. }) = pulled_in(&phase::loading()) else { return };
    pair.b.guest(GUEST).await_state("running");
    cable.put_back();
    one_intact_copy(&pair.hosts(), GUEST, &pair.b);
    drop(migration);
}

#[test]
fn between_running_and_its_acknowledgement_only_the_destination_runs() {
    let Some(Pulled { pair, cable, migration, .. }) = pulled_in(&phase::resume()) else { return };
    pair.a.guest(GUEST).await_state("in-doubt");
    exactly_one_copy_runs(&pair.hosts(), GUEST, &pair.b);

    cable.put_back();
    one_intact_copy(&pair.hosts(), GUEST, &pair.b);
    drop(migration);
}

#[test]
fn between_ready_and_commit_the_source_runs_the_guest_and_the_destination_waits_for_an_order() {
    let Some(Pulled { mut pair, cable, migration, .. }) = pulled_in(&phase::ready()) else {
        return;
    };
    migration.finish().stayed(&["connection", "ready"]);
    exactly_one_copy_runs(&pair.hosts(), GUEST, &pair.a);
    pair.b.guest(GUEST).await_state("in-doubt");

    cable.put_back();
    one_intact_copy(&pair.hosts(), GUEST, &pair.a);
    pair.b.kill_node();
    pair.b.start_node(&cable.node_plan(1));
    Migration::run(&pair.a, GUEST, &pair.b).ok();
    one_intact_copy(&pair.hosts(), GUEST, &pair.b);
}
