//! Defined guests: defined, started, listed while they are off, autostarted when the host boots.

use std::thread::sleep;
use std::time::Duration;

use serde_json::Value;

use support::checks::{await_life, guest_is_gone, memory_is_intact, nothing_left_behind};
use support::{Exit, Guest, Host, Migration, NodePlan, Pair, wait};

use crate::metrics::scrape;

/// A definition of a small workload.
const WEB: &str = "\
# A guest of the tests.
name = \"web-1\"
memory = \"64M\"
cpus = 2
dirty-rate = 500
working-set = \"8M\"
labels = { team = \"shop\" }
";

/// Writes a definition file, and returns its path.
fn file(pair: &Pair, text: &str) -> String {
    let path = pair.folder().join("guest.toml");
    std::fs::write(&path, text).expect("a guest's file");
    path.display().to_string()
}

/// The list of `lighter ls --all --json`.
fn list_all(host: &Host) -> Vec<Value> {
    let listed = host.run(&["ls", "--all", "--json"]).ok().json();
    listed.as_array().expect("a list").clone()
}

/// Waits until the guest's workload runs, and asserts that its memory is intact.
#[track_caller]
fn works(host: &Host) -> Guest {
    let guest = host.guest("web-1");
    guest.await_workload("it works", |workload| workload["phase"] == "working");
    memory_is_intact(&guest);
    guest
}

#[test]
fn a_guest_that_is_defined_while_it_runs_stays_the_same_guest() {
    let pair = Pair::without_nodes();
    let path = file(&pair, WEB);
    pair.a.run(&["run", "--detach", &path]).ok();
    let uuid = || pair.a.run(&["show", "web-1", "--json"]).ok().json()["uuid"].clone();
    let of_running = uuid();
    pair.a.run(&["define", &path]).ok();
    pair.a.run(&["destroy", "web-1"]).ok();
    pair.a.run(&["start", "web-1"]).ok();
    assert_eq!(uuid(), of_running);
    assert!(of_running.is_string());
}

#[test]
fn a_defined_guest_is_shown_while_it_is_off_and_started_by_its_name() {
    let pair = Pair::without_nodes();
    let path = file(&pair, WEB);
    assert_eq!(pair.a.run(&["define", &path]).ok().stdout, "web-1\n");
    std::fs::remove_file(&path).expect("the file is the user's");

    assert_eq!(pair.a.list(), Vec::<Value>::new(), "without --all, only what runs");
    let shown = pair.a.run(&["show", "web-1", "--json"]).ok().json();
    for seen in [&list_all(&pair.a)[0], &shown] {
        assert_eq!(seen["name"], "web-1", "{seen:#}");
        assert_eq!(seen["state"], "shut-off", "{seen:#}");
        assert_eq!(seen["memory_bytes"], 64 << 20, "{seen:#}");
        assert_eq!(seen["labels"]["team"], "shop", "{seen:#}");
        assert_eq!(seen["autostart"], false, "{seen:#}");
    }
    for verb in [&["ls", "--all"][..], &["show", "web-1"]] {
        let text = pair.a.run(verb).ok().stdout;
        assert!(text.contains("web-1") && text.contains("shut off"), "{text}");
    }
    pair.a.run(&["pause", "web-1"]).complains(Exit::Failed, &["`lighter start web-1` starts it"]);

    assert_eq!(pair.a.run(&["start", "web-1"]).ok().stdout, "web-1\n");
    works(&pair.a);
    let shown = pair.a.run(&["show", "web-1", "--json"]).ok().json();
    assert_eq!(shown["state"], "running", "{shown:#}");
    assert_eq!(shown["vcpus"], 2, "{shown:#}");
    assert_eq!(shown["labels"]["team"], "shop", "{shown:#}");
    assert!(shown["definition"].as_str().is_some_and(|it| it.ends_with("web-1.toml")), "{shown:#}");
    assert_eq!(list_all(&pair.a).len(), 1, "one that runs is not off as well");
    pair.a.run(&["start", "web-1"]).complains(Exit::Failed, &["web-1", "already running"]);

    pair.a.run(&["destroy", "web-1"]).ok();
    guest_is_gone(&[&pair.a], "web-1");
    let listed = list_all(&pair.a);
    assert_eq!(listed.len(), 1, "{listed:#?}");
    assert_eq!(listed[0]["state"], "shut-off", "{listed:#?}");
    assert_eq!(listed[0]["ended"]["how"], "destroyed", "{listed:#?}");
    let table = pair.a.run(&["ls", "--all"]).ok().stdout;
    assert!(table.contains("shut off") && table.contains("was ended on request"), "{table}");
}

#[test]
fn an_undefined_guest_keeps_running_until_it_ends() {
    let pair = Pair::without_nodes();
    pair.a.run(&["define", &file(&pair, WEB)]).ok();
    pair.a.run(&["start", "web-1"]).ok();
    pair.a.run(&["autostart", "web-1"]).ok();
    pair.a.run(&["undefine", "web-1"]).ok();
    await_life(&works(&pair.a));
    pair.a.run(&["destroy", "web-1"]).ok();
    for verb in ["start", "undefine", "autostart"] {
        pair.a.run(&[verb, "web-1"]).complains(Exit::Failed, &["web-1 is not defined"]);
    }
    assert_eq!(list_all(&pair.a)[0]["state"], "ended");
    pair.a.run(&["define", &file(&pair, WEB)]).ok();
    pair.a.run(&["start", "web-2"]).complains(Exit::Failed, &["web-2", "defined: web-1"]);
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn a_file_is_run_without_being_kept() {
    let pair = Pair::without_nodes();
    let path = file(&pair, WEB);
    assert_eq!(pair.a.run(&["run", &path, "--detach"]).ok().stdout, "web-1\n");
    works(&pair.a);
    pair.a.run(&["run", &path, "--detach", "--name", "web-2"]).ok();
    let labels = pair.a.guest("web-2").get("/v1/guest").expect("a guest")["labels"].clone();
    assert_eq!(labels["team"], "shop");
    for name in ["web-1", "web-2"] {
        pair.a.run(&["destroy", name]).ok();
    }
    pair.a.run(&["start", "web-1"]).complains(Exit::Failed, &["no guest is"]);
    pair.a.run(&["run", &path, "--memory", "1G"]).complains(Exit::Usage, &["--memory", "FILE"]);
}

#[test]
fn errors_in_a_file_are_reported_with_their_position_and_nothing_is_saved() {
    let pair = Pair::without_nodes();
    for (text, words) in [
        ("name = \"web-1\"\nmemry = \"1G\"", ["guest.toml:2: memry: ", "unknown key"]),
        ("name = \"web-1\"\ncpus = 9", ["guest.toml:2: cpus: ", "1 to 8"]),
        ("name = \"web-1\"\nrng = true", ["guest.toml:2: rng: ", "`kernel`"]),
        ("name = \"web-1\"\ncpus", ["guest.toml:2: ", ""]),
    ] {
        let path = file(&pair, text);
        pair.a.run(&["define", &path]).complains(Exit::Failed, &words);
        pair.a.run(&["run", &path, "--detach"]).complains(Exit::Failed, &words);
    }
    pair.a.run(&["define", &file(&pair, "")]).complains(Exit::Failed, &["guest.toml", "`name`"]);
    let words = ["/nowhere.toml", "No such file"];
    pair.a.run(&["define", "/nowhere.toml"]).complains(Exit::Failed, &words);
    assert_eq!(list_all(&pair.a), Vec::<Value>::new());
    nothing_left_behind(&[&pair.a]);

    // A definition that is damaged later is still listed, with the reason why it cannot start.
    pair.a.run(&["define", &file(&pair, WEB)]).ok();
    let kept = pair.a.state_dir().join("definitions/web-1.toml");
    std::fs::write(kept, "name = \"web-1\"\ncpus = 0").expect("a guest's file");
    pair.a.run(&["start", "web-1"]).complains(Exit::Failed, &["web-1.toml:2: cpus: "]);
    let table = pair.a.run(&["ls", "--all"]).ok().stdout;
    assert!(table.contains("damaged file"), "{table}");
    let shown = pair.a.run(&["show", "web-1"]).ok().stdout;
    assert!(shown.contains("web-1.toml:2: cpus: "), "{shown}");
    assert!(shown.contains("damaged file: ") && !shown.contains("shut off"), "{shown}");
}

#[test]
fn the_node_starts_guests_once_per_host_boot() {
    let mut pair = Pair::without_nodes();
    pair.a.run(&["define", &file(&pair, WEB)]).ok();
    let broken = "name = \"broken\"\nkernel = \"/nowhere/vmlinuz\"";
    pair.a.run(&["define", &file(&pair, broken)]).ok();
    pair.a.run(&["define", &file(&pair, "name = \"idle\"")]).ok();
    for name in ["broken", "web-1"] {
        pair.a.run(&["autostart", name]).ok();
    }

    pair.a.start_node(&NodePlan::default());
    let failure = ["not started with the host", "/nowhere/vmlinuz", "guest=broken"];
    pair.a.await_log(&failure);
    wait::until("web-1 is started", || {
        let state = pair.a.guest("web-1").state();
        wait::holds(state.as_deref() == Some("running"), state)
    });
    works(&pair.a);
    pair.a.await_log(&["started with the host guest=web-1"]);
    assert_eq!(pair.a.list().len(), 1, "no guest that was not to start");

    pair.a.run(&["destroy", "web-1"]).ok();
    pair.a.kill_node();
    // Another node during the same boot of the host.
    pair.a.start_node(&NodePlan::default());
    pair.a.await_log(&["guests have been started with the host before"]);
    pair.a.kill_node();
    assert_eq!(pair.a.list(), Vec::<Value>::new());

    pair.a.boots_again();
    pair.a.run(&["autostart", "broken", "--disable"]).ok();
    pair.a.start_node(&NodePlan::default());
    pair.a.guest("web-1").await_state("running");
    works(&pair.a);
    let failures = pair.a.logs().matches("/nowhere/vmlinuz").count();
    assert_eq!(failures, 1, "{}", pair.a.logs());
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn a_guest_that_has_moved_away_is_not_started_with_the_host() {
    let mut pair = Pair::new();
    pair.a.run(&["define", &file(&pair, WEB)]).ok();
    pair.a.run(&["autostart", "web-1"]).ok();
    pair.a.run(&["start", "web-1"]).ok();
    works(&pair.a);
    Migration::run(&pair.a, "web-1", &pair.b).ok();
    pair.a.kill_node();
    pair.a.boots_again();
    pair.a.start_node(&NodePlan::default());
    let words = ["web-1 moved to 127.0.0.1", "`lighter start web-1 --force` starts it here"];
    pair.a.await_log(&words);
    let uuid = |host: &Host| works(host).get("/v1/guest").expect("an answer")["uuid"].clone();
    let moved = uuid(&pair.b);
    let is_there = ["has it as web-1 (running)"];
    pair.a
        .run(&["start", "web-1"])
        .complains(Exit::Failed, &words)
        .complains(Exit::Failed, &is_there);
    let words = ["has web-1, as web-1 (running)", "end it there first"];
    pair.a.run(&["start", "web-1", "--force"]).complains(Exit::Failed, &words);
    assert_eq!(pair.a.list(), Vec::<Value>::new());

    pair.b.run(&["destroy", "web-1"]).ok();
    pair.a.run(&["start", "web-1"]).complains(Exit::Failed, &["had it, and it has ended there"]);
    pair.a.run(&["start", "web-1", "--force"]).ok();
    assert_eq!(uuid(&pair.a), moved, "a guest that is defined keeps its identity");
    pair.a.run(&["destroy", "web-1"]).ok();
    pair.a.run(&["start", "web-1"]).ok();
}

#[test]
fn a_guest_that_fails_is_started_again_if_its_definition_says_so() {
    let pair = Pair::new();
    let path = file(&pair, &format!("restart = \"on-failure\"\n{WEB}"));
    pair.a.run(&["define", &path]).ok();
    pair.a.run(&["start", "web-1"]).ok();
    let stays_off = WEB.replace("web-1", "web-2");
    pair.a.run(&["define", &file(&pair, &stays_off)]).ok();
    pair.a.run(&["start", "web-2"]).ok();

    let (first, other) = (works(&pair.a), pair.a.guest("web-2"));
    let uuid = first.get("/v1/guest").unwrap()["uuid"].clone();
    let dead = first.pid();
    other.pid().kill();
    dead.kill();
    pair.a.await_log(&["started again after it had failed guest=web-1"]);
    let again = works(&pair.a);
    assert_eq!(again.get("/v1/guest").unwrap()["uuid"], uuid);
    assert!(!pair.a.logs().contains("after it had failed guest=web-2"));
    let shown = pair.a.run(&["show", "web-1", "--json"]).ok().json();
    assert_eq!(shown["last_failure"]["how"], "died", "{shown:#}");
    assert_eq!(shown["restart"], "on-failure", "{shown:#}");
    let shown = pair.a.run(&["show", "web-1"]).ok().stdout;
    assert!(shown.contains("Last failure") && shown.contains("was killed"), "{shown}");
    assert!(shown.contains("the node starts it again"), "{shown}");

    // One that a user ends stays off.
    pair.a.run(&["destroy", "web-1"]).ok();
    pair.a.await_log(&["guest=web-1", "stopped: it was ended on request"]);
    assert_eq!(pair.a.list(), Vec::<Value>::new());
}

#[test]
fn a_guest_that_was_destroyed_by_force_or_is_not_the_defined_one_is_not_started_again() {
    let pair = Pair::new();
    let path = file(&pair, &format!("restart = \"on-failure\"\n{WEB}"));
    pair.a.run(&["define", &path]).ok();
    pair.a.run(&["start", "web-1"]).ok();
    works(&pair.a).pid().freeze();
    let done = pair.a.run(&["destroy", "web-1"]).ok();
    assert!(done.stderr.contains("killed process"), "{done:?}");
    pair.a.await_log(&["guest=web-1", "its process did not end, and was killed"]);

    // It has the name, and another identity.
    pair.a.run(&["run", "--name", "web-1", "--memory", "64M", "--detach"]).ok();
    works(&pair.a).pid().kill();
    pair.a.await_log(&["guest=web-1", "stopped: it died (its process was killed"]);
    sleep(Duration::from_secs(3));
    assert_eq!(pair.a.list(), Vec::<Value>::new());
    assert!(!pair.a.logs().contains("started again"), "{}", pair.a.logs());
}

#[test]
fn a_node_counts_the_guests_that_were_lost_while_none_ran() {
    let mut pair = Pair::new();
    pair.a.run(&["run", "--name", "web-1", "--memory", "64M", "--detach"]).ok();
    let guest = pair.a.guest("web-1").pid();
    pair.a.kill_node();
    guest.kill();
    // With all of its threads, so that the guest's name is free.
    let process = std::path::PathBuf::from(format!("/proc/{}", guest.0));
    wait::until("the process is gone", || wait::holds(!process.exists(), &process));
    pair.a.start_node(&NodePlan::default());
    pair.a.await_log(&["web-1 died (its process was killed", "while no node ran"]);
    let metrics = scrape(&pair.a);
    assert!(metrics.contains("\nlighter_guests_failed_total 1\n"), "{metrics}");
}
