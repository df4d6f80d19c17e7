//! The commands other than migrate, and their messages when they cannot do what was asked.

use std::fs::File;
use std::io::pipe;
use std::process::{Output, Stdio};

use serde_json::Value;

use support::checks::{
    await_life, guest_is_gone, memory_is_intact, no_copy_runs, nothing_left_behind,
};
use support::{Exit, Guest, GuestPlan, Host, Pair, lighter};

#[test]
fn ls_and_show_report_running_guests() {
    let pair = Pair::without_nodes();
    assert_eq!(pair.a.list(), Vec::<Value>::new());
    let guest = Guest::start(&pair.a, &GuestPlan { cpus: 2, ..GuestPlan::default() });

    let listed = pair.a.list();
    assert_eq!(listed.len(), 1, "{listed:#?}");
    let shown = pair.a.run(&["show", "web-1", "--json"]).ok().json();
    for seen in [&listed[0], &shown] {
        assert_eq!(seen["name"], "web-1", "{seen:#}");
        assert_eq!(seen["state"], "running", "{seen:#}");
        assert_eq!(seen["memory_bytes"], 64 << 20, "{seen:#}");
        assert_eq!(seen["vcpus"], 2, "{seen:#}");
        assert_eq!(seen["pid"], guest.pid().0, "{seen:#}");
    }
    let table = pair.a.run(&["ls"]).ok().stdout;
    assert!(
        table.contains("NAME") && table.contains("web-1") && table.contains("running"),
        "{table}"
    );
    let text = pair.a.run(&["show", "web-1"]).ok().stdout;
    assert!(text.contains("web-1") && text.contains("running"), "{text}");
}

#[test]
fn ls_and_show_report_an_unresponsive_guest_and_fail() {
    let pair = Pair::without_nodes();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let pid = guest.pid();
    pid.freeze();
    let shown = [pair.a.run(&["show", "web-1"]), pair.a.run(&["show", "web-1", "--json"])];
    let table = pair.a.run(&["ls"]).ok().stdout;
    pid.thaw();
    let id = pid.0.to_string();
    for done in shown {
        assert_eq!(done.exit, Exit::Failed, "{done:#?}");
        assert!(done.stdout.contains("web-1") && done.stdout.contains(&id), "{done:#?}");
    }
    assert!(table.contains("no answer") && table.contains(&id), "{table}");
    pair.a.run(&["show", "web-1"]).ok();
}

#[test]
fn an_unresponsive_guest_can_be_destroyed() {
    let pair = Pair::without_nodes();
    let others = GuestPlan { name: "web-2".to_owned(), ..GuestPlan::default() };
    let (guest, other) =
        (Guest::start(&pair.a, &GuestPlan::default()), Guest::start(&pair.a, &others));
    let pid = guest.pid();
    pid.freeze();
    let done = pair.a.run(&["destroy", "web-1"]).ok();
    let words = format!("killed process {}", pid.0);
    assert!(done.stderr.contains("did not answer") && done.stderr.contains(&words), "{done:#?}");
    guest_is_gone(&[&pair.a], "web-1");
    let shown = pair.a.run(&["show", "web-1", "--json"]).ok().json();
    assert_eq!(shown["how"], "destroyed", "{shown:#}");
    await_life(&other);

    // A file's claim about the process id is not trusted.
    let pid = other.pid();
    let identity = pair.a.state_dir().join("guests/web-2/guest.json");
    let mut text: Value =
        serde_json::from_slice(&std::fs::read(&identity).expect("a file")).expect("JSON");
    text["pid"] = std::process::id().into();
    std::fs::write(&identity, text.to_string()).expect("a file");
    pid.freeze();
    let done = pair.a.run(&["destroy", "web-2"]);
    pid.thaw();
    done.complains(Exit::Failed, &["cannot end web-2", "is not the one that holds"]);
    await_life(&other);
}

#[test]
fn a_paused_guest_does_not_run_until_resumed() {
    let pair = Pair::without_nodes();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let witness =
        Guest::start(&pair.a, &GuestPlan { name: "witness".to_owned(), ..GuestPlan::default() });

    pair.a.run(&["pause", "web-1"]).ok();
    no_copy_runs(&[&pair.a], "web-1", &witness);
    assert_eq!(guest.state().as_deref(), Some("paused"));
    pair.a.run(&["pause", "web-1"]).ok();

    pair.a.run(&["resume", "web-1"]).ok();
    await_life(&guest);
    pair.a.run(&["resume", "web-1"]).ok();
    memory_is_intact(&guest);
}

#[test]
fn destroy_ends_a_guest_and_its_process_and_stop_is_another_name_for_it() {
    let pair = Pair::without_nodes();
    for verb in ["destroy", "stop"] {
        let guest = Guest::start(&pair.a, &GuestPlan::default());
        let pid = guest.pid();
        pair.a.run(&[verb, "web-1"]).ok();
        guest_is_gone(&[&pair.a], "web-1");
        assert!(!pid.is_alive());
        assert_eq!(pair.a.list(), Vec::<Value>::new());
    }
}

#[test]
fn destroy_reports_an_end_that_cannot_be_recorded() {
    let pair = Pair::without_nodes();
    for is_frozen in [false, true] {
        let guest = Guest::start(&pair.a, &GuestPlan::default());
        // Neither its process nor the command can write a file of this name.
        let place = pair.a.state_dir().join("ended/guests/web-1");
        std::fs::create_dir(place.join("ended.json")).expect("a folder");
        if is_frozen {
            guest.pid().freeze();
        }
        let done = pair.a.run(&["destroy", "web-1"]).ok();
        assert!(done.stderr.contains("web-1: its end is not recorded"), "{done:?}");
        std::fs::remove_dir_all(place).expect("the place for its end");
        guest_is_gone(&[&pair.a], "web-1");
    }
}

#[test]
fn an_ended_guest_is_listed_with_how_it_ended() {
    let pair = Pair::without_nodes();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let uuid = guest.get("/v1/guest").unwrap()["uuid"].clone();
    pair.a.run(&["destroy", "web-1"]).ok();

    let shown = pair.a.run(&["show", "web-1", "--json"]).ok().json();
    let listed = pair.a.run(&["ls", "--all", "--json"]).ok().json();
    for seen in [&shown, &listed[0]] {
        assert_eq!(seen["state"], "ended", "{seen:#}");
        assert_eq!(seen["how"], "destroyed", "{seen:#}");
        assert_eq!(seen["uuid"], uuid, "{seen:#}");
    }
    let table = pair.a.run(&["ls", "--all"]).ok().stdout;
    assert!(table.contains("was ended on request"), "{table}");
    let words = ["no guest web-1", "it was ended on request"];
    pair.a.run(&["pause", "web-1"]).complains(Exit::Failed, &words);

    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let listed = pair.a.run(&["ls", "--all", "--json"]).ok().json();
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "the living hides the dead: {listed:#}");

    // A killed guest cannot report its end: the next command finds what it has left.
    let log = pair.a.state_dir().join("guests/web-1/lighter.log");
    std::fs::write(log, "its last words\n").expect("its log");
    guest.pid().kill();
    guest_is_gone(&[&pair.a], "web-1");
    let shown = pair.a.run(&["show", "web-1", "--json"]).ok().json();
    assert_eq!((&shown["how"], &shown["reason"]), (&"died".into(), &DIED.into()), "{shown:#}");
    let shown = pair.a.run(&["show", "web-1"]).ok().stdout;
    let kept = pair.a.state_dir().join("ended/guests/web-1");
    assert!(shown.contains(DIED) && shown.contains(&kept.display().to_string()), "{shown}");
    let log = std::fs::read_to_string(kept.join("lighter.log")).expect("its log");
    assert_eq!(log, "its last words\n");
    assert!(pair.a.run(&["ls", "--all"]).ok().stdout.contains(DIED));

    // The next guest of this name ends in order.
    Guest::start(&pair.a, &GuestPlan::default());
    pair.a.run(&["destroy", "web-1"]).ok();
    assert!(!kept.join("lighter.log").exists());
}

#[test]
fn a_guest_whose_record_is_damaged_is_listed_with_what_is_wrong() {
    let pair = Pair::without_nodes();
    Guest::start(&pair.a, &GuestPlan::default());
    pair.a.run(&["destroy", "web-1"]).ok();
    let record = pair.a.state_dir().join("ended/guests/web-1/ended.json");
    std::fs::write(&record, "{").expect("a damaged record");
    let fault = format!("{} is damaged", record.display());
    for verb in [&["show", "web-1"][..], &["ls", "--all"]] {
        let text = pair.a.run(verb).ok().stdout;
        assert!(text.contains("web-1") && text.contains(&fault), "{text}");
        let json = pair.a.run(&[verb, &["--json"]].concat()).ok().json();
        let seen = json.get(0).unwrap_or(&json);
        assert_eq!((&seen["name"], &seen["state"]), (&"web-1".into(), &"ended".into()), "{json:#}");
        assert!(seen["fault"].as_str().is_some_and(|text| text.contains(&fault)), "{json:#}");
    }

    let file = pair.folder().join("web-1.toml");
    std::fs::write(&file, "name = \"web-1\"\nmemory = \"64M\"\n").expect("a definition");
    pair.a.run(&["define", &file.display().to_string()]).ok();
    for verb in [&["show", "web-1"][..], &["ls", "--all"], &["start", "web-1"]] {
        let done = pair.a.run(verb);
        assert!(done.stdout.contains(&fault) || done.stderr.contains(&fault), "{done:?}");
    }
    let shown = pair.a.run(&["show", "web-1", "--json"]).ok().json();
    assert_eq!((&shown["ended"], &shown["fault"]), (&Value::Null, &Value::Null), "{shown:#}");
    assert!(shown["ended_fault"].is_string(), "{shown:#}");
}

/// What is told of a guest whose process was killed.
const DIED: &str = "died (its process was killed, or crashed)";

#[test]
fn a_name_is_taken_once() {
    let pair = Pair::without_nodes();
    Guest::start(&pair.a, &GuestPlan::default());
    let second = pair.a.run(&["run", "--detach", "--name", "web-1", "--memory", "64M"]);
    second.complains(Exit::Failed, &["lighter: ", "web-1", "already running"]);
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn an_unknown_guest_is_refused_with_the_known_names() {
    let pair = Pair::without_nodes();
    Guest::start(&pair.a, &GuestPlan::default());
    for verb in [
        &["show", "wbe"][..],
        &["pause", "wbe"],
        &["stop", "wbe"],
        &["cancel", "wbe"],
        &["migrate", "wbe", "b"],
    ] {
        let done = pair.a.run(verb);
        done.complains(Exit::Failed, &["lighter: ", "no guest wbe", "live here: web-1"]);
    }
}

#[test]
fn a_wrong_command_line_is_explained() {
    let pair = Pair::without_nodes();
    for (line, word) in [
        (&["run", "--cpus", "256"][..], "--cpus"),
        (&["run", "--memory", "much"], "--memory"),
        (&["run", "--name", "../x"], "--name"),
        (&["migrate", "web-1"], "HOST[:PORT]"),
        (&["migrate", "web-1", "host-b:99999"], "`host-b:99999` names no port"),
        (&["migrate", "web-1", ":4950"], "names no host"),
        (&["migrate", "web-1", "b", "--resolve", "run"], "--resolve"),
        (&["migrate", "web-1", "--resolve", "run", "--json"], "--json"),
        (&["migrate", "web-1", "--resolve", "run", "--timeout", "5s"], "--timeout"),
        (&["migrate", "web-1", "b", "--downtime", "500us"], "1ms or more"),
        (&["fly"], "fly"),
    ] {
        pair.a.run(line).complains(Exit::Usage, &[word, "--help"]);
    }
}

#[test]
fn a_file_that_is_not_a_kernel_is_refused() {
    let pair = Pair::without_nodes();
    let text = pair.folder().join("kernel");
    std::fs::write(&text, "not a kernel").expect("a file");
    for kernel in [text.display().to_string(), "/nowhere/vmlinux".to_owned()] {
        let refused =
            pair.a.run(&["run", "--detach", "--name", "k", "--memory", "64M", "--kernel", &kernel]);
        refused.complains(Exit::Failed, &["lighter: ", &kernel]);
        nothing_left_behind(&[&pair.a]);
    }
}

#[test]
fn cancel_and_resolve_without_a_migration_report_it() {
    let pair = Pair::without_nodes();
    Guest::start(&pair.a, &GuestPlan::default());
    pair.a.run(&["cancel", "web-1"]).complains(Exit::Failed, &["web-1", "migrat"]);
    pair.a
        .run(&["migrate", "web-1", "--resolve", "run"])
        .complains(Exit::Failed, &["web-1", "not in doubt"]);
    pair.a
        .run(&["migrate", "web-1", "--resolve", "discard"])
        .complains(Exit::Failed, &["web-1", "not in doubt"]);
    await_life(&pair.a.guest("web-1"));
}

/// Runs a command whose output goes to `stdout`.
fn print_to(host: &Host, verb: &[&str], stdout: impl Into<Stdio>) -> Output {
    lighter(host.state_dir(), verb).stdout(stdout).output().expect("the program")
}

#[test]
fn output_that_cannot_be_written_is_an_error_unless_the_reader_has_gone() {
    let pair = Pair::without_nodes();
    for verb in [&["ls"][..], &["ls", "--json"], &["certs", "show"], &["--help"]] {
        let (reader, writer) = pipe().expect("a pipe");
        drop(reader);
        let unread = print_to(&pair.a, verb, writer);
        assert_eq!(unread.status.code(), Some(0), "{verb:?}: {unread:#?}");
        assert!(unread.stderr.is_empty(), "{verb:?}: {unread:#?}");
    }
    for verb in [&["ls"][..], &["ls", "--json"], &["certs", "show"]] {
        let full = File::options().write(true).open("/dev/full").expect("a full device");
        let unwritten = print_to(&pair.a, verb, full);
        assert_eq!(unwritten.status.code(), Some(1), "{verb:?}: {unwritten:#?}");
        let said = String::from_utf8_lossy(&unwritten.stderr);
        assert_eq!(
            said, "lighter: cannot print the result: No space left on device (os error 28)\n",
            "{verb:?}"
        );
    }
}

/// Asserts that a command fails with `words` in its message, and that no part of the message occurs
/// twice.
#[track_caller]
fn complaint(host: &Host, verb: &[&str], words: &[&str]) {
    let done = host.run(verb).complains(Exit::Failed, words);
    let parts: Vec<&str> = done.stderr.trim_end().split(": ").collect();
    for (index, part) in parts.iter().enumerate() {
        assert!(!parts[..index].contains(part), "`{part}` is said twice: {}", done.stderr);
    }
}

#[test]
fn a_cause_is_printed_once() {
    let pair = Pair::without_nodes();
    Guest::start(&pair.a, &GuestPlan::default());
    let (missing, cause) = ("/nowhere/x", "No such file or directory");
    complaint(&pair.a, &["save", "web-1", missing], &["web-1", missing, cause]);
    complaint(&pair.a, &["restore", missing], &[missing, cause]);
    complaint(&pair.a, &["run", "--kernel", missing], &[missing, cause]);
    complaint(&pair.b, &["certs", "host", "c", "--out", missing], &["ca.", cause]);
    complaint(&pair.a, &["certs", "host", "c", "--out", "/proc/x"], &["/proc/x", cause]);
    std::fs::remove_dir_all(pair.b.certs()).expect("certificates");
    complaint(&pair.b, &["node"], &["ca.pem", cause, "lighter certs"]);
}
