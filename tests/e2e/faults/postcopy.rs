//! Faults while a guest is handed over before its memory, and while that follows it: the rows of
//! *Who may run the guest* in docs/adr/0029-post-copy.md.

use nix::sys::signal::Signal;

use super::phase::Side;
use super::scene::{GUEST, Scene};
use support::checks::guest_is_gone;
use support::{CRAWL, Exit, HELD, Migration, NodePlan};

/// Starts the migration, and hands the guest over before most of its memory. The downtime limit is
/// for hosts that are busy with other tests: a hand-over that takes too long is called off.
pub(super) fn hand_over_first(scene: &mut Scene) -> Migration {
    scene.migrate_with(&[CRAWL, HELD].concat());
    let migration = scene.take_migration();
    migration.await_phase("precopy");
    scene.pair.a.run(&["migrate", GUEST, "--postcopy-now"]).ok();
    // Refused if a fault has ended the migration by now.
    let _set = scene.pair.a.run(&["migrate", GUEST, "--set", "bandwidth=none"]);
    migration
}

/// A migration that is held at `point`, and at `further` failpoints of the source.
fn held_at(point: &str, further: &str) -> (Scene, Migration) {
    let held = format!("{point}:hold");
    let mut scene = match Side::of(point) {
        Side::Source => Scene::with_failpoints(&format!("{held},{further}"), ""),
        Side::Destination => Scene::with_failpoints(further, &held),
    };
    let migration = hand_over_first(&mut scene);
    scene.await_failpoint(Side::of(point), point);
    (scene, migration)
}

/// Keeps what the guest does not wait for from following it.
pub(super) const UNASKED: &str = "source.take.background:hold";

/// A guest that runs at its destination and waits for a page. On a new connection, all will come.
pub(super) fn fetching() -> (Scene, Migration) {
    let (scene, migration) = held_at("source.data.requested", UNASKED);
    migration.await_phase("postcopy");
    (scene, migration)
}

/// The states in the records of source and destination.
fn recorded(scene: &Scene) -> [String; 2] {
    let state = |record: &serde_json::Value| record["side"]["state"].as_str().map(str::to_owned);
    let only = |records: Vec<serde_json::Value>| records.iter().find_map(state);
    scene.pair.hosts().map(|host| only(host.records()).expect("a record"))
}

/// Asserts that the guest is on neither host, and that the records say that it has run and is lost.
#[track_caller]
fn is_lost(scene: &Scene) {
    guest_is_gone(&scene.pair.hosts(), GUEST);
    assert_eq!(recorded(scene), ["done", "lost"]);
}

/// Kills the source, and its command says so.
#[track_caller]
fn kill_source(scene: &Scene, migration: Migration) {
    scene.source().kill();
    let words = [GUEST, "died during the migration"];
    migration.finish().done.complains(Exit::Failed, &words);
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

at!(connection_cut_before_the_decision: missing "source.send.missing" cleared "destination.send.cleared"
    written_since "source.act.collectmissing" state "source.send.state" ready "destination.send.ready");
at!(connection_cut_after_the_decision: commit "destination.act.recordtaking" taking "destination.act.adoptguest"
    about_to_run "destination.act.resumeguest" running "destination.send.running"
    fetching "destination.act.recordfetching" heard_that_it_runs "source.recv.running"
    all_there "destination.act.recordrunning" complete "destination.send.complete");

at!(destination_breaks_down: running "destination.send.running"
    fetching "destination.act.recordfetching");

/// The session panics, and nothing fetches memory any more: the source must not hear that it is all
/// there.
fn destination_breaks_down(point: &str) {
    let mut scene = Scene::with_failpoints(UNASKED, &format!("{point}:panic"));
    let migration = hand_over_first(&mut scene);
    migration.finish().done.complains(Exit::Failed, &[GUEST]);
    is_lost(&scene);
}

/// Migrates with a cut of the connection at `point`.
fn cut_at(point: &str) -> (Scene, Migration) {
    let mut scene = Scene::with_failpoint(Side::of(point), &format!("{point}:cut"));
    let migration = hand_over_first(&mut scene);
    (scene, migration)
}

/// As in rounds: the guest stays.
fn connection_cut_before_the_decision(point: &str) {
    let (scene, migration) = cut_at(point);
    migration.finish().stayed(&["connection"]);
    scene.runs_only_on(&scene.pair.a);
    scene.another_migration_succeeds();
}

/// The source reconnects, and memory follows.
fn connection_cut_after_the_decision(point: &str) {
    let (scene, migration) = cut_at(point);
    migration.finish().ok();
    scene.runs_only_on(&scene.pair.b);
}

#[test]
fn a_destination_that_is_killed_when_it_is_ready_gives_the_guest_back() {
    let (scene, migration) = held_at("source.send.commit", "");
    assert_eq!(recorded(&scene), ["serving", "loading"]);
    scene.destination().kill();
    migration.finish().stayed(&[]);
    scene.runs_only_on(&scene.pair.a);
    scene.another_migration_succeeds();
}

#[test]
fn a_destination_that_is_killed_while_it_takes_the_guest_leaves_it_in_doubt() {
    let (scene, migration) = held_at("destination.act.adoptguest", UNASKED);
    assert_eq!(recorded(&scene), ["serving", "taking"]);
    scene.destination().kill();
    migration.finish().in_doubt();
    scene.pair.a.guest(GUEST).await_state("in-doubt");
    // All of its memory is still here.
    scene.pair.a.run(&["migrate", GUEST, "--resolve", "run"]).ok();
    scene.runs_only_on(&scene.pair.a);
}

#[test]
fn a_guest_is_lost_with_a_destination_that_is_killed_while_it_fetches() {
    let (scene, migration) = fetching();
    scene.destination().kill();
    migration.finish().done.complains(Exit::Failed, &[GUEST]);
    is_lost(&scene);
}

#[test]
fn a_guest_is_lost_with_a_source_that_is_killed_while_it_serves() {
    let (scene, migration) = fetching();
    kill_source(&scene, migration);
    is_lost(&scene);
}

#[test]
fn a_guest_is_lost_with_a_source_that_is_killed_before_a_ready_destination_has_its_memory() {
    let (scene, migration) = held_at("source.send.commit", UNASKED);
    kill_source(&scene, migration);
    guest_is_gone(&scene.pair.hosts(), GUEST);
    // It has not run there.
    assert_eq!(recorded(&scene), ["aborted", "discarded"]);
}

/// Kills the source while the destination stands at `point`, which then continues.
fn source_killed_at(point: &str, further: &str) -> Scene {
    let mut scene = Scene::with_failpoints(further, &format!("{point}:stall"));
    let migration = hand_over_first(&mut scene);
    scene.await_stalled();
    kill_source(&scene, migration);
    scene.release();
    scene
}

#[test]
fn a_guest_is_lost_with_a_source_that_is_killed_while_the_destination_takes_it() {
    is_lost(&source_killed_at("destination.act.resumeguest", UNASKED));
}

#[test]
fn a_guest_that_has_all_its_memory_runs_on_when_the_source_is_killed() {
    let scene = source_killed_at("destination.act.recordrunning", "");
    scene.runs_only_on(&scene.pair.b);
}

#[test]
fn memory_for_a_destination_that_is_gone_is_given_up_by_the_operator_only() {
    let (mut scene, migration) = fetching();
    let (listen, destination) = (scene.pair.b.last_address().to_owned(), scene.destination());
    scene.pair.b.kill_node();
    destination.kill();
    scene.pair.a.guest(GUEST).await_out_of_reach();
    // It has run there.
    scene.pair.a.guest(GUEST).await_state("migrating");
    let detail = scene.pair.a.guest(GUEST).get("/v1/guest").expect("its state")["detail"].clone();
    let way_out = format!("`lighter migrate {GUEST} --resolve discard --unsafe`");
    assert!(detail.as_str().is_some_and(|detail| detail.contains(&way_out)), "{detail}");
    let resolve =
        |choice: &[&str]| scene.pair.a.run(&[&["migrate", GUEST, "--resolve"], choice].concat());
    resolve(&["run"]).complains(Exit::Failed, &[GUEST]);
    resolve(&["discard"]).complains(Exit::Failed, &["only here", "--unsafe"]);
    resolve(&["discard", "--unsafe"]).ok();
    migration.finish().done.complains(Exit::Failed, &[GUEST]);
    // If the destination's host comes back after all, it hears so.
    scene.pair.b.start_node(&NodePlan { listen: Some(listen), ..NodePlan::default() });
    is_lost(&scene);
}

/// Its node could not send the memory in its place.
#[test]
fn a_source_that_is_told_to_end_waits_for_its_destination_to_come_back() {
    let (scene, migration) = fetching();
    let (source, destination) = (scene.source(), scene.destination());
    destination.freeze();
    scene.pair.a.guest(GUEST).await_out_of_reach();
    source.signal(Signal::SIGTERM);
    scene.pair.a.guest(GUEST).await_state("ended");
    destination.thaw();
    let _ended = migration.finish();
    scene.runs_only_on(&scene.pair.b);
}

/// What the host asks a guest regularly must not wait for a page, which the guest may never get.
#[test]
fn a_guest_whose_memory_is_missing_is_shown_without_what_is_in_there() {
    let (scene, migration) = fetching();
    let guest = scene.pair.b.guest(GUEST);
    let refused = guest.get("/v1/guest/workload").unwrap_err();
    assert!(refused.contains("a part of its memory is still at its source"), "{refused}");
    let info = guest.get("/v1/guest").expect("its state");
    assert_eq!((&info["state"], &info["kind"]), (&"running".into(), &"linux".into()), "{info:#}");
    assert!(guest.get("/v1/guest/memory").expect("its memory")["balloon"].is_null());
    scene.pair.b.run(&["show", GUEST]).ok();
    scene.destination().kill();
    drop(migration);
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
    let discard = ["migrate", GUEST, "--resolve", "discard"];
    scene.pair.a.run(&discard).complains(Exit::Failed, &["only here", "--unsafe"]);
    let unsafe_discard = [&discard[..], &["--unsafe"]].concat();
    scene.pair.a.run(&unsafe_discard).complains(Exit::Failed, &["connected"]);
    scene.pair.b.run(&discard).complains(Exit::Failed, &["`lighter destroy` ends it"]);
    scene.destination().kill();
    drop(migration);
}
