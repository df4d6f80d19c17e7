//! Memory that follows its guest, and a side that withholds what the other waits for: a source that
//! sends no page, a destination that never says that it has all of them.

use nix::sys::signal::Signal;

use super::phase::Side;
use super::postcopy::{UNASKED, hand_over_first};
use super::scene::{GUEST, Scene};
use crate::events::{await_events, listen};
use crate::metrics::{scrape, value};
use support::checks::{
    exactly_one_copy_runs, guest_is_gone, memory_is_intact, nothing_left_behind,
};
use support::{Exit, wait};

/// From when on a page counts as withheld, in seconds.
const WITHHELD_SECONDS: f64 = 5.0;

#[test]
fn a_guest_whose_pages_never_come_is_said_to_wait_and_ends_when_it_is_destroyed() {
    let point = "source.data.requested";
    let mut scene = Scene::with_failpoints(&format!("{point}:hold,{UNASKED}"), "");
    let listener = listen(&scene.pair.b);
    let migration = hand_over_first(&mut scene);
    scene.await_failpoint(Side::Source, point);
    migration.await_phase("postcopy");

    let told = await_events(&listener, &["migration-started", "waits-for-memory"]);
    let waits = told.iter().find(|event| event["event"] == "waits-for-memory").expect("it is told");
    assert_eq!(waits["migration_id"], told[0]["migration_id"], "{told:#?}");
    assert!(waits["seconds"].as_f64() >= Some(WITHHELD_SECONDS), "{waits:#}");
    let labels = [("guest", GUEST), ("direction", "incoming")];
    let metric = "lighter_migration_oldest_page_wait_seconds";
    let waited = value(&scrape(&scene.pair.b), metric, &labels);
    assert!(waited >= Some(WITHHELD_SECONDS), "{waited:?}");
    let text = scene.pair.b.run(&["show", GUEST]).ok().stdout;
    assert!(text.contains("the guest has waited for a page for"), "{text}");
    let shown = scene.pair.b.run(&["show", GUEST, "--json"]).ok().json();
    let oldest = shown["migration"]["progress"]["page_waits"]["oldest_seconds"].as_f64();
    assert!(oldest >= Some(WITHHELD_SECONDS), "{shown:#}");

    scene.pair.b.run(&["destroy", GUEST]).ok();

    migration.finish().ok();
    await_events(&listener, &["waits-for-memory", "stopped"]);
    drop(listener);
    guest_is_gone(&scene.pair.hosts(), GUEST);
}

/// The record that the guest runs is never written there, so its source never hears that it may
/// forget the guest.
#[test]
fn a_source_whose_destination_never_has_enough_answers_and_ends_when_it_is_told_to() {
    let point = "destination.act.recordrunning";
    let mut scene = Scene::with_failpoint(Side::Destination, &format!("{point}:hold"));
    let migration = hand_over_first(&mut scene);
    scene.await_failpoint(Side::Destination, point);
    migration.await_phase("postcopy");
    let (here, there) = (&scene.pair.a, &scene.pair.b);
    here.run(&["show", GUEST]).ok();
    here.run(&["cancel", GUEST]).complains(Exit::Failed, &["too late"]);
    for choice in ["run", "discard"] {
        here.run(&["migrate", GUEST, "--resolve", choice]).complains(Exit::Failed, &[GUEST]);
    }
    here.run(&["destroy", GUEST]).complains(Exit::Failed, &["its memory follows it"]);

    scene.source().signal(Signal::SIGTERM);

    wait::until("the source has ended", || {
        let state = here.guest(GUEST).state();
        wait::holds(state.is_none(), state)
    });
    let _ended = migration.finish();
    memory_is_intact(&exactly_one_copy_runs(&scene.pair.hosts(), GUEST, there));
    nothing_left_behind(&[here]);
}
