//! Migrations in doubt: the guest runs on neither host, the message names the way out, and either
//! the operator takes it or the hosts reach each other again.

use super::phase::{self, Side};
use super::scene::{GUEST, Scene, Stall};
use support::checks::{
    exactly_one_copy_runs, guest_is_gone, memory_is_intact, no_copy_runs, one_intact_copy,
};
use support::kernel::sleeper;
use support::{Exit, Guest, GuestPlan, HELD, Host, Migration, NodePlan, Pair, wait};

/// Arguments of `lighter` that resolve the doubt by running the host's own copy.
const RESOLVE_RUN: [&str; 4] = ["migrate", GUEST, "--resolve", "run"];

/// The destination is ready, and the source host is gone for good: guest and node.
fn source_host_gone() -> Scene {
    let mut scene = Scene::held_in(&phase::ready());
    scene.pair.a.kill_node();
    scene.source().kill();
    drop(scene.take_migration());
    scene.pair.b.guest(GUEST).await_state("in-doubt");
    scene
}

/// The source has committed, and the destination host is gone for good before the guest ran there.
fn destination_host_gone() -> Scene {
    let mut scene = Scene::held_in(&phase::commit());
    let destination = scene.destination();
    scene.pair.b.kill_node();
    destination.kill();
    scene.take_migration().finish().in_doubt();
    scene.pair.a.guest(GUEST).await_state("in-doubt");
    scene
}

/// A guest on host a whose progress proves that copies of the other one make none.
fn witness(scene: &Scene) -> Guest {
    Guest::start(&scene.pair.a, &GuestPlan { name: "witness".to_owned(), ..GuestPlan::default() })
}

fn says_the_way_out(text: &str) {
    for word in ["in doubt", "--resolve run", "--resolve discard"] {
        assert!(text.contains(word), "no `{word}` in {text}");
    }
}

#[test]
fn a_ready_destination_never_starts_on_its_own_and_runs_when_resolved_to_run() {
    let scene = source_host_gone();
    no_copy_runs(&scene.pair.hosts(), GUEST, &witness(&scene));
    let shown = scene.pair.b.run(&["show", GUEST]).ok().stdout;
    says_the_way_out(&shown);
    assert!(shown.contains(" received") && !shown.contains("round"), "{shown}");

    scene.pair.b.run(&RESOLVE_RUN).ok();
    let guest = exactly_one_copy_runs(&scene.pair.hosts(), GUEST, &scene.pair.b);
    memory_is_intact(&guest);
}

#[test]
fn a_ready_destination_asks_the_host_that_the_guest_came_from_before_it_runs() {
    let mut scene = source_host_gone();
    scene.pair.b.kill_node();
    // The source host was reinstalled: it knows nothing of the migration, and starts the guest from
    // its disks.
    std::fs::remove_dir_all(scene.pair.a.state_dir().join("migrations")).expect("records");
    let listen = scene.pair.a.last_address().to_owned();
    boots(&mut scene.pair.a, &listen);
    let again = GuestPlan { name: GUEST.to_owned(), ..GuestPlan::default() };
    let again = Guest::start(&scene.pair.a, &again);
    let words = ["127.0.0.1 has web-1, as web-1 (running)", "end it there first"];
    scene.pair.b.run(&RESOLVE_RUN).complains(Exit::Failed, &words);
    assert!(again.ticks().is_some());
    scene.pair.b.guest(GUEST).await_state("in-doubt");
    scene.pair.a.run(&["destroy", GUEST]).ok();
    let done = scene.pair.b.run(&RESOLVE_RUN).ok();
    assert!(!done.stderr.contains("warning"), "{}", done.stderr);
    memory_is_intact(&scene.pair.b.guest(GUEST));
}

#[test]
fn a_ready_destination_does_not_run_a_guest_that_has_moved_on_from_its_source() {
    let mut scene = source_host_gone();
    let uuid = scene.pair.b.records()[0]["guest_uuid"].as_str().expect("a UUID").to_owned();
    scene.pair.b.kill_node();
    // The source has kept the guest, and migrates it to a third host.
    std::fs::remove_dir_all(scene.pair.a.state_dir().join("migrations")).expect("records");
    let listen = scene.pair.a.last_address().to_owned();
    boots(&mut scene.pair.a, &listen);
    let options = vec!["--uuid".to_owned(), uuid];
    let kept = GuestPlan { name: GUEST.to_owned(), options, ..GuestPlan::default() };
    let _kept = Guest::start(&scene.pair.a, &kept);
    let elsewhere = third_host(&scene.pair);
    Migration::run(&scene.pair.a, GUEST, &elsewhere.b).ok();

    let words = ["127.0.0.1 had web-1", "moved to 127.0.0.1", "out of date", "--resolve discard"];
    scene.pair.b.run(&RESOLVE_RUN).complains(Exit::Failed, &words);
    scene.pair.b.guest(GUEST).await_state("in-doubt");
    scene.pair.b.run(&["migrate", GUEST, "--resolve", "discard"]).ok();
    memory_is_intact(&elsewhere.b.guest(GUEST));
}

#[test]
fn a_source_in_doubt_does_not_run_a_guest_that_has_moved_on_from_its_destination() {
    // The source never receives the message that the guest runs at its destination, and does not
    // reconnect either.
    let deaf = "source.recv.running:freeze,source.act.reconnect:hold";
    let mut scene = Scene::with_failpoint(Side::Source, deaf);
    scene.migrate();
    scene.pair.b.guest(GUEST).await_state("running");
    let elsewhere = third_host(&scene.pair);
    Migration::run(&scene.pair.b, GUEST, &elsewhere.b).ok();
    guest_is_gone(&[&scene.pair.b], GUEST);
    let (source, third) = (scene.pair.a.guest(GUEST), elsewhere.b.last_address());
    source.await_state("in-doubt");
    assert_eq!(scene.pair.a.records()[0]["side"]["state"], "committed");

    let moved = format!("moved to {third}");
    let words = [scene.pair.b.last_address(), "had web-1", &moved, "out of date", "discard"];
    scene.pair.a.run(&RESOLVE_RUN).complains(Exit::Failed, &words);
    source.await_state("in-doubt");
    let hosts = [&scene.pair.a, &scene.pair.b, &elsewhere.b];
    exactly_one_copy_runs(&hosts, GUEST, &elsewhere.b);
    scene.pair.a.run(&["migrate", GUEST, "--resolve", "discard"]).ok();
    one_intact_copy(&hosts, GUEST, &elsewhere.b);
    drop(scene.take_migration());
}

#[test]
fn a_source_in_doubt_does_not_run_a_guest_that_is_on_its_way_from_its_destination() {
    // No source ever receives the message that the guest runs at its destination, and none
    // reconnects.
    let deaf = "source.recv.running:freeze,source.act.reconnect:hold";
    let mut scene = Scene::with_failpoint_on_both(deaf);
    scene.migrate();
    scene.pair.b.guest(GUEST).await_state("running");
    let elsewhere = third_host(&scene.pair);
    let onward = Migration::start(&scene.pair.b, GUEST, &elsewhere.b, &HELD);
    elsewhere.b.guest(GUEST).await_state("running");
    scene.pair.b.guest(GUEST).await_state("in-doubt");
    scene.pair.a.guest(GUEST).await_state("in-doubt");

    let on_its_way = format!("on its way to {}", elsewhere.b.last_address());
    let words = [scene.pair.b.last_address(), "had web-1", &on_its_way, "out of date", "discard"];
    scene.pair.a.run(&RESOLVE_RUN).complains(Exit::Failed, &words);
    scene.pair.a.guest(GUEST).await_state("in-doubt");
    let hosts = [&scene.pair.a, &scene.pair.b, &elsewhere.b];
    exactly_one_copy_runs(&hosts, GUEST, &elsewhere.b);
    drop((scene.take_migration(), onward));
}

/// Defines [`GUEST`] with autostart on `host`: the guest `uuid`, with less memory than it has now.
fn define_with_autostart(scene: &Scene, host: &Host, uuid: &str) {
    let file = scene.pair.folder().join("defined.toml");
    let text = format!("name = \"{GUEST}\"\nuuid = \"{uuid}\"\nmemory = \"64M\"");
    std::fs::write(&file, text).expect("a file");
    host.run(&["define", &file.display().to_string()]).ok();
    host.run(&["autostart", GUEST]).ok();
}

/// The guest's UUID, from the first record of a host.
fn uuid_of(host: &Host) -> String {
    host.records()[0]["guest_uuid"].as_str().expect("a UUID").to_owned()
}

#[test]
fn a_source_that_kept_its_guest_does_not_restart_it_after_the_destination_was_resolved_to_run() {
    // The destination is ready and cut off; the source continues its guest, and cannot tell the
    // destination.
    let mut scene =
        Scene::with_failpoints("source.act.reconnect:stall", "destination.send.ready:cut");
    scene.migrate();
    scene.await_stalled();
    scene.pair.b.guest(GUEST).await_state("in-doubt");
    let (listen, uuid) = (scene.pair.a.last_address().to_owned(), uuid_of(&scene.pair.a));
    scene.pair.a.kill_node();
    let warned = scene.pair.b.run(&RESOLVE_RUN).ok();
    assert!(warned.stderr.contains("cannot be asked whether it runs web-1"), "{}", warned.stderr);
    scene.pair.b.guest(GUEST).await_state("running");
    scene.release();
    // Two copies run, and the operators of both hosts are told to stop one of them.
    scene.pair.a.await_log(&["stop one of them"]);
    scene.pair.a.run(&["destroy", GUEST]).ok();
    assert_eq!(scene.pair.a.records()[0]["side"]["state"], "undecided");

    define_with_autostart(&scene, &scene.pair.a, &uuid);
    boots(&mut scene.pair.a, &listen);
    scene.pair.a.await_log(&["not started with the host: web-1 has moved to"]);
    assert_eq!(scene.pair.a.records()[0]["side"]["state"], "done");
    exactly_one_copy_runs(&scene.pair.hosts(), GUEST, &scene.pair.b);
    drop(scene.take_migration());
}

#[test]
fn a_destination_that_was_off_does_not_start_a_guest_that_its_source_has_started_meanwhile() {
    let mut scene = Scene::without_failpoint();
    scene.migrate();
    scene.take_migration().finish().ok();
    let (listen, uuid) = (scene.pair.b.last_address().to_owned(), uuid_of(&scene.pair.b));
    for host in scene.pair.hosts() {
        define_with_autostart(&scene, host, &uuid);
    }
    // The host loses power.
    scene.pair.b.kill_node();
    scene.pair.b.guest(GUEST).pid().kill();
    let warned = scene.pair.a.run(&["start", GUEST, "--force"]).ok();
    assert!(warned.stderr.contains("cannot be asked whether it runs web-1"), "{}", warned.stderr);

    boots(&mut scene.pair.b, &listen);
    scene
        .pair
        .b
        .await_log(&["not started with the host", "127.0.0.1 has web-1, as web-1 (running)"]);
    assert!(scene.pair.b.list().is_empty());
    let words = ["127.0.0.1 has web-1", "end it there first"];
    scene.pair.b.run(&["start", GUEST]).complains(Exit::Failed, &words);
    exactly_one_copy_runs(&scene.pair.hosts(), GUEST, &scene.pair.a);

    // If the other host does not answer, the one that has the guest according to its records starts
    // it.
    scene.pair.a.kill_node();
    scene.pair.a.guest(GUEST).pid().kill();
    scene.pair.b.kill_node();
    boots(&mut scene.pair.b, &listen);
    scene
        .pair
        .b
        .await_log(&["cannot be asked whether it runs web-1", "started with the host guest=web-1"]);
    exactly_one_copy_runs(&scene.pair.hosts(), GUEST, &scene.pair.b);
}

#[test]
fn a_guest_that_has_moved_on_is_neither_started_nor_restored_where_it_first_was() {
    let mut scene = Scene::without_failpoint();
    scene.migrate();
    scene.take_migration().finish().ok();
    let uuid = uuid_of(&scene.pair.a);
    define_with_autostart(&scene, &scene.pair.a, &uuid);
    let elsewhere = third_host(&scene.pair);
    Migration::run(&scene.pair.b, GUEST, &elsewhere.b).ok();

    let (second, third) = (scene.pair.b.last_address(), elsewhere.b.last_address());
    let moved = format!("web-1 has moved to {third} from {second}");
    let words = [&moved, third, "has web-1, as web-1 (running)", "end it there first"];
    scene.pair.a.run(&["start", GUEST, "--force"]).complains(Exit::Failed, &words);
    let restore = ["restore", "/nowhere.lighter", "--name", GUEST];
    let moved = format!("web-1 moved to {second}");
    scene.pair.a.run(&restore).complains(Exit::Failed, &[&moved, "--force"]);
    let forced = [&restore[..], &["--force"]].concat();
    scene.pair.a.run(&forced).complains(Exit::Failed, &words);
    let hosts = [&scene.pair.a, &scene.pair.b, &elsewhere.b];
    exactly_one_copy_runs(&hosts, GUEST, &elsewhere.b);

    // Another guest may take the name.
    let run = scene.pair.a.run(&["run", "--detach", "--name", GUEST, "--memory", "64M"]).ok();
    assert!(run.stderr.contains(&format!("warning: {moved}")), "{}", run.stderr);
}

/// A third host with a node, as host b of another pair, with the certificate of host b of `pair`.
fn third_host(pair: &Pair) -> Pair {
    let mut elsewhere = Pair::without_nodes();
    for file in ["ca.pem", "host.pem", "host.key"] {
        let copied = std::fs::copy(pair.b.certs().join(file), elsewhere.b.certs().join(file));
        copied.expect("a certificate");
    }
    elsewhere.b.start_node(&NodePlan::default());
    elsewhere
}

#[test]
fn a_ready_destination_is_discarded_when_resolved_to_discard() {
    let scene = source_host_gone();
    scene.pair.b.run(&["migrate", GUEST, "--resolve", "discard"]).ok();
    let (copy, list) = (scene.pair.b.guest(GUEST), || scene.pair.b.list());
    wait::until("the copy is gone", || {
        wait::holds(copy.state().is_none() && list().is_empty(), list())
    });
}

#[test]
fn a_source_in_doubt_stays_paused_and_runs_when_resolved_to_run() {
    let scene = destination_host_gone();
    no_copy_runs(&scene.pair.hosts(), GUEST, &witness(&scene));
    says_the_way_out(&scene.pair.a.run(&["show", GUEST]).ok().stdout);

    scene.pair.a.run(&RESOLVE_RUN).ok();
    let guest = exactly_one_copy_runs(&scene.pair.hosts(), GUEST, &scene.pair.a);
    memory_is_intact(&guest);
}

#[test]
fn a_source_in_doubt_is_discarded_when_resolved_to_discard() {
    let scene = destination_host_gone();
    scene.pair.a.run(&["migrate", GUEST, "--resolve", "discard"]).ok();
    guest_is_gone(&[&scene.pair.a], GUEST);
}

#[test]
fn a_source_in_doubt_gets_its_guest_back_when_the_destinations_node_returns_and_vouches() {
    let mut scene = destination_host_gone();
    let listen = scene.pair.b.last_address().to_owned();
    scene.pair.b.start_node(&NodePlan { listen: Some(listen), ..NodePlan::default() });
    scene.runs_only_on(&scene.pair.a);
}

#[test]
fn a_guest_in_doubt_is_neither_resumed_nor_migrated() {
    let mut scene = destination_host_gone();
    scene.pair.b.start_node(&NodePlan::default());
    let address = scene.pair.b.node().address().to_owned();
    for verb in [&["resume", GUEST][..], &["pause", GUEST], &["migrate", GUEST, &address]] {
        scene.pair.a.run(verb).complains(Exit::Failed, &[GUEST, "doubt"]);
    }
    scene.pair.a.run(&["cancel", GUEST]).complains(Exit::Failed, &[GUEST, "too late"]);
    no_copy_runs(&scene.pair.hosts(), GUEST, &witness(&scene));
}

/// Starts the node as if its host had rebooted.
fn boots(host: &mut Host, listen: &str) {
    host.boots_again();
    host.start_node(&NodePlan { listen: Some(listen.to_owned()), ..NodePlan::default() });
}

#[test]
fn a_guest_that_was_about_to_run_is_not_started_again_while_its_source_waits() {
    let mut scene = Scene::held_in(&phase::taking());
    let (listen, destination) = (scene.pair.b.last_address().to_owned(), scene.destination());
    let file = scene.pair.folder().join("defined.toml");
    std::fs::write(&file, format!("name = \"{GUEST}\"\nmemory = \"64M\"")).expect("a file");
    scene.pair.b.run(&["define", &file.display().to_string()]).ok();
    scene.pair.b.run(&["autostart", GUEST]).ok();
    scene.pair.b.kill_node();
    destination.kill();
    scene.take_migration().finish().in_doubt();

    boots(&mut scene.pair.b, &listen);
    scene.pair.b.await_log(&["not started with the host yet: web-1 was on its way here"]);
    let words = ["was on its way here", "the host that it came from may have it", "--force"];
    scene.pair.b.run(&["start", GUEST]).complains(Exit::Failed, &words);

    // If the guest is started there by other means, the source notices.
    let again = GuestPlan { name: GUEST.to_owned(), ..GuestPlan::default() };
    let again = Guest::start(&scene.pair.b, &again);
    let words = ["127.0.0.1", "has web-1, as web-1 (running)", "end it there first"];
    scene.pair.a.run(&RESOLVE_RUN).complains(Exit::Failed, &words);
    assert!(again.ticks().is_some());
    scene.pair.b.run(&["destroy", GUEST]).ok();

    scene.pair.a.run(&RESOLVE_RUN).ok();
    scene.runs_only_on(&scene.pair.a);
    // Whether or not the node has seen the guest run in the meantime:
    scene.pair.b.kill_node();
    boots(&mut scene.pair.b, &listen);
    scene.pair.b.await_log(&["web-1 was last on its way here from another host"]);
    assert!(scene.pair.b.list().is_empty());
}

#[test]
fn a_guest_whose_disk_another_has_locked_at_the_hand_over_stays_paused_at_its_source() {
    let mut pair = Pair::without_nodes();
    let stall = Stall::new(&pair);
    let environment = stall.environment(&phase::taking(), Side::Destination);
    pair.a.start_node(&NodePlan::default());
    let arguments = vec!["--disk-dir".to_owned(), pair.folder().display().to_string()];
    pair.b.start_node(&NodePlan { environment, arguments, ..NodePlan::default() });
    let (kernel, disk) = (sleeper(pair.folder()), pair.folder().join("disk.raw"));
    std::fs::write(&disk, [0; 1 << 16]).expect("a disk");
    let (kernel, disk) = (kernel.display().to_string(), disk.display().to_string());
    let run = |host: &Host, name| {
        let start = ["run", "--detach", "--name", name, "--memory", "64M"];
        host.run(&[&start[..], &["--kernel", &kernel, "--disk", &disk]].concat())
    };
    run(&pair.a, GUEST).ok();
    let migration = Migration::start(&pair.a, GUEST, &pair.b, &HELD);
    stall.await_reached();
    // The source knows with which disk its guest leaves; another host does not.
    run(&pair.a, "thief").complains(Exit::Failed, &["disk.raw", "belongs to the guest web-1"]);
    run(&pair.b, "thief").ok();
    stall.release();
    let words = ["cannot migrate web-1", "web-1 stays paused here", "lighter resume web-1"];
    migration.finish().done.complains(Exit::Failed, &words);
    pair.a.guest(GUEST).await_state("paused");
    pair.a.run(&["resume", GUEST]).complains(Exit::Failed, &["disk.raw", "in use"]);

    pair.b.run(&["destroy", "thief"]).ok();
    let words = ["disk.raw was written since the guest last had it", "--unsafe"];
    pair.a.run(&["resume", GUEST]).complains(Exit::Failed, &words);
    pair.a.run(&["resume", GUEST, "--unsafe"]).ok();
    pair.a.guest(GUEST).await_state("running");
    guest_is_gone(&[&pair.b], GUEST);
}
