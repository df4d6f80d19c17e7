//! What users see of guests that run: their logs, what they use, and which versions run.

use std::fs::{self, Permissions};
use std::io::pipe;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use support::checks::{guest_is_gone, nothing_left_behind};
use support::kernel::kernel;
use support::{
    Exit, Guest, GuestPlan, Host, NodePlan, Pair, Running, as_stranger, built_program, lighter,
    run, wait,
};

use super::console::{PROGRAM, start_echo};

/// Version of the program under test.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Waits until a command has printed exactly `text`.
#[track_caller]
fn prints(command: &Running, text: &str) {
    wait::until(&format!("it prints {text:?}"), || {
        let (stdout, stderr) = command.said();
        wait::holds(stdout == text, (stdout, stderr))
    });
}

/// Waits until `lighter logs` prints exactly `text`.
#[track_caller]
fn has_logged(host: &Host, line: &[&str], text: &str) {
    wait::until(&format!("{line:?} prints {text:?}"), || {
        let stdout = host.run(line).ok().stdout;
        wait::holds(stdout == text, stdout)
    });
}

/// Starts `lighter` with this command line, to be observed while it runs.
fn start(host: &Host, line: &[&str]) -> Running {
    Running::start(lighter(host.state_dir(), line))
}

fn type_on(guest: &Guest, text: &str) {
    let typed = guest.request("PUT", "/v1/guest/console", Some(&json!({ "input": text })));
    typed.success().expect("there is room");
}

#[test]
fn logs_are_printed_and_followed_until_the_guest_is_gone_or_ctrl_c() {
    let pair = Pair::without_nodes();
    let guest = start_echo(&pair);
    has_logged(&pair.a, &["logs", "echo"], "hi\n");
    has_logged(&pair.a, &["logs", "echo", "--tail", "0"], "");
    let following = start(&pair.a, &["logs", "echo", "--follow"]);
    prints(&following, "hi\n");
    type_on(&guest, "one ");
    prints(&following, "hi\none ");
    has_logged(&pair.a, &["logs", "-n", "1", "echo"], "one ");

    let interrupted = start(&pair.a, &["logs", "-f", "-n", "1", "echo"]);
    prints(&interrupted, "one ");
    interrupted.pid().signal(Signal::SIGINT);
    assert_eq!(interrupted.finish().ok().stdout, "one ");

    let (reader, writer) = pipe().expect("a pipe");
    drop(reader);
    let mut unread = lighter(pair.a.state_dir(), &["logs", "-f", "echo"]);
    let unread = unread.stdout(writer).output().expect("the program");
    assert!(unread.status.success() && unread.stderr.is_empty(), "{unread:#?}");

    pair.a.run(&["destroy", "echo"]).ok();
    let done = following.finish().ok();
    assert!(done.stderr.contains("echo was ended on request"), "{done:?}");
    has_logged(&pair.a, &["logs", "echo"], "hi\none ");
    let words = ["echo was ended on request", "logs of processes are kept only"];
    pair.a.run(&["logs", "--process", "echo"]).complains(Exit::Failed, &words);
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn logs_of_a_guest_whose_console_is_stdout_are_its_last_output() {
    let pair = Pair::without_nodes();
    let path = kernel(&pair.folder().join("echo"), &PROGRAM).display().to_string();
    let line = ["run", "--name", "echo", "--memory", "64M", "--kernel", &path];
    let terminal = start(&pair.a, &line);
    let guest = pair.a.guest("echo");
    guest.await_state("running");
    has_logged(&pair.a, &["logs", "echo"], "hi\n");
    let following = start(&pair.a, &["logs", "-f", "-n", "1", "echo"]);
    prints(&following, "hi\n");
    type_on(&guest, "one");
    prints(&following, "hi\none");
    let words = ["echo has no log of its own", "stderr"];
    pair.a.run(&["logs", "--process", "echo"]).complains(Exit::Failed, &words);

    pair.a.run(&["destroy", "echo"]).ok();
    let done = following.finish().ok();
    assert!(done.stderr.contains("echo was ended on request"), "{done:?}");
    terminal.finish();
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn logs_of_a_guest_whose_process_died_are_kept() {
    let pair = Pair::without_nodes();
    let guest = start_echo(&pair);
    has_logged(&pair.a, &["logs", "echo"], "hi\n");
    let log = pair.a.state_dir().join("guests/echo/lighter.log");
    fs::write(log, "its last words\n").expect("its log");
    has_logged(&pair.a, &["logs", "--process", "echo"], "its last words\n");
    let following = start(&pair.a, &["logs", "--follow", "--process", "echo"]);
    prints(&following, "its last words\n");

    guest.pid().kill();
    let done = following.finish().ok();
    assert!(done.stderr.contains("echo died"), "{done:?}");
    guest_is_gone(&[&pair.a], "echo");
    has_logged(&pair.a, &["logs", "echo"], "hi\n");
    has_logged(&pair.a, &["logs", "--process", "echo"], "its last words\n");
    let done = pair.a.run(&["logs", "--follow", "echo"]).ok();
    assert!(done.stdout == "hi\n" && done.stderr.contains("echo died"), "{done:?}");

    Guest::start(&pair.a, &GuestPlan::default());
    pair.a.run(&["logs", "wbe"]).complains(Exit::Failed, &["no guest wbe", "live here: web-1"]);
}

/// The guests in the last sample that `lighter stats --json` has printed, by name.
fn last_sample(stats: &Running) -> Vec<String> {
    let lines = stats.said().0;
    // The last line may not be complete yet.
    let mut complete = lines.lines().rev().filter_map(|line| serde_json::from_str(line).ok());
    let last: Value = complete.next().unwrap_or_default();
    let names = last["guests"].as_array().into_iter().flatten();
    names.filter_map(|guest| guest["name"].as_str().map(str::to_owned)).collect()
}

#[track_caller]
fn shows_guests(stats: &Running, names: &[&str]) {
    wait::until(&format!("a sample of {names:?}"), || {
        let seen = last_sample(stats);
        wait::holds(seen == names, seen)
    });
}

#[test]
fn stats_shows_what_a_guest_uses() {
    let pair = Pair::without_nodes();
    let guest = Guest::start(&pair.a, &GuestPlan { dirty_rate: 20_000, ..GuestPlan::default() });
    let sample =
        || pair.a.run(&["stats", "--no-stream", "--json"]).ok().json()["guests"][0].clone();
    let shown = wait::until("the guest uses a CPU", || {
        let shown = sample();
        let is_busy = shown["cpu_percent"].as_f64().is_some_and(|percent| percent > 0.0);
        wait::holds(is_busy, shown.clone()).map(|()| shown)
    });
    assert_eq!(shown["name"], "web-1", "{shown:#}");
    assert_eq!(shown["state"], "running", "{shown:#}");
    assert_eq!(shown["memory_bytes"], 64 << 20, "{shown:#}");
    assert!(shown["resident_bytes"].as_u64() > Some(1 << 20), "{shown:#}");
    assert!(shown["disk_read_bytes_per_s"].is_u64(), "{shown:#}");
    assert!(shown["network_receive_bytes_per_s"].is_null(), "it has no network: {shown:#}");

    let table = pair.a.run(&["stats", "web-1", "--no-stream"]).ok().stdout;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2, "{table}");
    assert!(lines[0].starts_with("NAME") && lines[0].contains("CPU %"), "{table}");
    assert!(lines[1].starts_with("web-1") && lines[1].contains("/ 64 MiB"), "{table}");
    pair.a.run(&["stats", "wbe"]).complains(Exit::Failed, &["no guest wbe", "live here: web-1"]);

    let pid = guest.pid();
    pid.freeze();
    let silent = sample();
    pid.thaw();
    assert_eq!(silent["state"], "no-answer", "{silent:#}");
    assert!(silent["resident_bytes"].is_u64(), "{silent:#}");
}

#[test]
fn stats_follows_guests_that_come_and_go() {
    let pair = Pair::without_nodes();
    let stats = start(&pair.a, &["stats", "--json", "--interval", "100ms"]);
    Guest::start(&pair.a, &GuestPlan::default());
    shows_guests(&stats, &["web-1"]);
    Guest::start(&pair.a, &GuestPlan { name: "web-2".to_owned(), ..GuestPlan::default() });
    shows_guests(&stats, &["web-1", "web-2"]);
    pair.a.run(&["destroy", "web-1"]).ok();
    shows_guests(&stats, &["web-2"]);

    let named = start(&pair.a, &["stats", "web-2", "--interval", "100ms"]);
    wait::until("two tables", || {
        let shown = named.said().0;
        wait::holds(shown.contains("\n\nNAME") && shown.contains("web-2"), shown)
    });
    pair.a.run(&["destroy", "web-2"]).ok();
    named.finish().ok();

    shows_guests(&stats, &[]);
    stats.pid().signal(Signal::SIGINT);
    stats.finish().ok();
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn version_names_what_runs_on_the_host() {
    let mut pair = Pair::without_nodes();
    let versions = |host: &Host| host.run(&["version", "--json"]).ok().json();
    let alone = versions(&pair.a);
    assert_eq!(alone["version"], VERSION, "{alone:#}");
    assert_eq!(alone["protocol_versions"][0], 1, "{alone:#}");
    assert_eq!(alone["kvm"], json!({ "api_version": 12, "error": null }), "{alone:#}");
    assert!(alone["node"].is_null() && alone["guests"] == json!([]), "{alone:#}");

    pair.a.start_node(&NodePlan::default());
    Guest::start(&pair.a, &GuestPlan::default());
    let all = versions(&pair.a);
    assert_eq!(all["node"]["version"], VERSION, "{all:#}");
    assert_eq!(all["guests"], json!([{ "name": "web-1", "version": VERSION }]), "{all:#}");
    let text = pair.a.run(&["version"]).ok().stdout;
    for line in [format!("Guests        {VERSION}: 1\n"), "KVM           API 12\n".to_owned()] {
        assert!(text.contains(&line), "{line} in\n{text}");
    }
    assert_eq!(pair.a.run(&["--version"]).ok().stdout, format!("lighter {VERSION}\n"));
}

#[test]
fn other_users_see_stats_and_versions_and_no_logs() {
    let pair = Pair::without_nodes();
    Guest::start(&pair.a, &GuestPlan::default());
    fs::set_permissions(pair.folder(), Permissions::from_mode(0o711)).expect("a folder");
    let stranger = |verb: &[&str]| run(as_stranger(&lighter(pair.a.state_dir(), verb)));

    let table = stranger(&["--readonly", "stats", "--no-stream"]).ok().stdout;
    assert!(table.contains("web-1") && table.contains("/ 64 MiB"), "{table}");
    let words = ["this user may not ask web-1 (`--readonly` may look)", "Permission denied"];
    stranger(&["stats", "--no-stream"]).complains(Exit::Failed, &words);

    let versions = stranger(&["--readonly", "version", "--json"]).ok().json();
    assert_eq!(versions["guests"][0]["version"], VERSION, "{versions:#}");
    let done = stranger(&["version"]).ok();
    assert!(done.stderr.contains("the version of guests is left out"), "{done:#?}");
    assert!(done.stdout.contains(VERSION), "{done:#?}");

    let words = ["cannot print the logs of web-1", "Permission denied"];
    stranger(&["logs", "web-1"]).complains(Exit::Failed, &words);
    stranger(&["--readonly", "logs", "web-1"]).complains(Exit::Failed, &["changes nothing"]);
}

#[test]
fn who_has_no_folder_and_only_reads_looks_into_that_of_root() {
    let stranger = |verb: &[&str]| {
        let mut command = as_stranger(Command::new(built_program()).args(verb));
        command.env("HOME", "/nonexistent").env_remove("XDG_STATE_HOME");
        run(command)
    };
    let own = "/nonexistent/.local/state/lighter does not exist";
    let done = stranger(&["ls"]).ok();
    assert!(done.stderr.contains(own), "{done:#?}");
    let done = stranger(&["--readonly", "ls"]);
    assert!(!done.stderr.contains("/nonexistent"), "{done:#?}");
}
