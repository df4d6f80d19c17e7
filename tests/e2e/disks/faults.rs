//! Faults in each phase of a migration that copies a disk: one guest runs, with its disk, and no
//! file is left over.

use std::fs;

use vmm_core::virtio::block::departed_to;

use super::place::{GUEST, Place};
use support::{Exit, NodePlan, Pid, wait};

/// A place in which one side does `what` when it reaches failpoint `point`.
fn place(point: &str, what: &str) -> Place {
    place_with(&format!("{point}:{what}"))
}

/// A place in which one side has `failpoints`.
fn place_with(failpoints: &str) -> Place {
    let set = vec![("LIGHTER_FAILPOINT".to_owned(), failpoints.to_owned())];
    if failpoints.starts_with("source") {
        Place::with_environment(&set, &[])
    } else {
        Place::with_environment(&[], &set)
    }
}

/// Asserts that the guest stays with its disk, that nothing is left of the copy, and that the next
/// attempt succeeds.
#[track_caller]
fn stays_and_leaves_nothing(mut place: Place) {
    place.runs_only_on(&place.pair.a);
    wait::until("nothing is left of the copy", || {
        wait::holds(place.files_of("b").is_empty(), place.files_of("b"))
    });
    let folder = place.folder("b").display().to_string();
    place.pair.b.kill_node();
    place.pair.b.start_node(&NodePlan {
        arguments: vec!["--disk-dir".to_owned(), folder],
        ..Default::default()
    });
    place.migrate(&[]).ok();
    arrived(&place);
}

#[track_caller]
fn arrived(place: &Place) {
    place.runs_only_on(&place.pair.b);
    assert_eq!(place.files_of("b"), ["disk.raw"]);
    let [here, there] =
        [place.disk_a(), place.disk_b()].map(|path| fs::read(path).expect("a disk"));
    assert!(here == there, "the copy differs");
}

#[track_caller]
fn destination(place: &Place) -> Pid {
    let children = place.pair.b.node().pid().children();
    assert_eq!(children.len(), 1, "one guest is on its way");
    children[0]
}

#[track_caller]
fn await_failpoint(place: &Place, point: &str) {
    wait::until(&format!("{point} is reached"), || {
        let logs = [&place.pair.a, &place.pair.b].map(|host| host.logs()).concat();
        let struck = logs.lines().any(|line| line.contains("failpoint") && line.contains(point));
        wait::holds(struck, logs)
    });
}

fn destination_killed_at(point: &str) {
    let place = place(point, "hold");
    let migration = place.start(&[]);
    await_failpoint(&place, point);
    destination(&place).kill();
    migration.finish().stayed(&[]);
    stays_and_leaves_nothing(place);
}

#[test]
fn destination_killed_while_content_comes() {
    destination_killed_at("source.data.pages");
}

#[test]
fn destination_killed_with_all_content_and_before_it_takes_the_guest() {
    destination_killed_at("destination.act.loadstate");
}

#[test]
fn connection_cut_in_a_round() {
    let place = place_with("source.data.pages:pass,source.data.pages:cut");
    place.migrate(&[]).ok();
    arrived(&place);
}

#[test]
fn connection_cut_when_all_is_to_be_sent() {
    let place = place("source.act.sendremainder", "cut");
    place.migrate(&[]).stayed(&["connection"]);
    stays_and_leaves_nothing(place);
}

#[test]
fn connection_cut_after_the_decision() {
    let place = place("destination.act.recordtaking", "cut");
    place.migrate(&[]).ok();
    arrived(&place);
}

#[test]
fn content_damaged_on_its_way() {
    let place = place("source.data.pages", "flip");
    place.migrate(&[]).stayed(&["checksum"]);
    stays_and_leaves_nothing(place);
}

#[test]
fn source_killed_after_the_decision() {
    let place = source_killed_before_it_commits("source.send.commit:hold");
    arrived(&place);
}

/// The decision is recorded, and the destination has everything. `failpoints` hold the commit.
fn source_killed_before_it_commits(failpoints: &str) -> Place {
    let place = place_with(failpoints);
    let migration = place.start(&[]);
    await_failpoint(&place, "source.send.commit");
    // A source that dies while the last pages are on their way loses the guest.
    place.pair.b.guest(GUEST).await_received();
    place.pair.a.guest(GUEST).pid().kill();
    drop(migration);
    place
}

#[test]
fn source_killed_before_there_is_a_note_on_its_disk() {
    let failpoints = "source.act.releaseguest:hold,source.send.commit:hold";
    let place = source_killed_before_it_commits(failpoints);
    arrived(&place);
    let disk = place.disk_a();
    let words = ["has moved to 127.0.0.1", "with the guest db", "departed/guests/db/"];
    let words = [&[disk.to_str().expect("UTF-8")], &words[..]].concat();
    place.run_on("again", &disk).complains(Exit::Failed, &words);
}

/// The guest died with its two processes; its disk on the source is the one that it had.
#[test]
fn both_sides_killed_between_the_decision_and_its_arrival() {
    let mut place = place("source.send.commit", "hold");
    let migration = place.start(&[]);
    await_failpoint(&place, "source.send.commit");
    wait::until("there is a note", || wait::holds(departed_to(&place.disk_a()).is_some(), ()));
    place.pair.a.kill_node();
    place.pair.a.guest(GUEST).pid().kill();
    destination(&place).kill();
    drop(migration);
    let moved = ["old: its content has moved to 127.0.0.1", ", migration "];
    place.run_on("again", &place.disk_a()).complains(Exit::Failed, &moved);
    place.pair.a.start_node(&NodePlan::default());
    wait::until("the disk is this host's again", || {
        let done = place.run_on("again", &place.disk_a());
        wait::holds(done.exit == Exit::Done, done)
    });
    assert_eq!(place.files_of("b"), [""; 0]);
}

/// The disk already has its final name: it is complete, and no temporary file is left. Which host
/// has the guest is for the operator to decide.
#[test]
fn destination_host_lost_between_the_disks_name_and_the_word_that_the_guest_runs() {
    let mut place = place("destination.send.running", "hold");
    let migration = place.start(&[]);
    await_failpoint(&place, "destination.send.running");
    let destination = destination(&place);
    place.pair.b.kill_node();
    destination.kill();
    migration.finish().in_doubt();
    assert_eq!(place.files_of("b"), ["disk.raw"]);
    let [here, there] =
        [place.disk_a(), place.disk_b()].map(|path| fs::read(path).expect("a disk"));
    assert!(here == there, "the copy differs");
    place.pair.a.run(&["migrate", GUEST, "--resolve", "run"]).ok();
    place.runs_only_on(&place.pair.a);
}
