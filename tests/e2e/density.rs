//! Memory optimization as users see it: plans are carried out, the regained memory is measured, and
//! guests and ksmd are left in a sane state whichever process dies.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use support::checks::{await_life, guest_is_gone, nothing_left_behind};
use support::ksm::{KsmTurn, merged_pages};
use support::linux::image::Image;
use support::linux::witness::CheckConsole;
use support::{Exit, Guest, GuestPlan, Host, Migration, NodePlan, Pair, Pool, ask, wait};

/// Takes what a guest of 128 MiB does not need, which is too little for the default policy; it is
/// patient with the guest's emulated kernel.
pub(crate) const POLICY: &str = r#"
goal = "max density"
[balloon]
dead-band-min = "2MiB"
reserve-min = "8MiB"
floor = "10%"
step = "20%"
timeout = "5m"
"#;

/// Limit of a scheduled run: it begins within a minute and takes another, in which balloons move
/// and the regained memory is measured. The machine may be busy.
pub(crate) const RUN_PATIENCE: Duration = Duration::from_secs(900);

/// Memory size of the Linux guest.
const ALL_BYTES: u64 = 128 << 20;

pub(crate) fn write_settings(host: &Host, text: &str) {
    fs::write(host.state_dir().join("lighter.toml"), text).expect("a file");
}

pub(crate) fn node_uses(host: &Host, what: &str) {
    wait::until("the node has read lighter.toml", || {
        let status = host.run(&["density", "status", "--json"]).ok().stdout;
        wait::holds(status.contains(what), status)
    });
}

/// Two hosts; the node of the first follows [`POLICY`].
pub(crate) fn dense() -> Pair {
    following(POLICY)
}

/// Two hosts; the node of the first follows `policy`, whose goal must be `max density`.
pub(crate) fn following(policy: &str) -> Pair {
    let pair = Pair::new();
    write_settings(&pair.a, policy);
    node_uses(&pair.a, "\"goal\": \"max density\"");
    pair
}

fn balloon_target(host: &Host, name: &str) -> u64 {
    host.run(&["balloon", name, "--json"]).ok().json()["target_bytes"].as_u64().expect("a size")
}

pub(crate) fn restore_linux(host: &Host, image: &Image) -> CheckConsole {
    host.run(&["restore", image.file(), "--name", "linux", "--detach"]).ok();
    CheckConsole::of(host, "linux", image.pages())
}

/// Waits until the plan has steps, and returns it.
pub(crate) fn await_plan(host: &Host) -> Value {
    wait::until("the guest has said what it needs", || {
        let plan = host.run(&["density", "plan", "--json"]).ok().json();
        if plan["steps"] == Value::Array(Vec::new()) { Err(plan) } else { Ok(plan) }
    })
}

#[test]
fn a_plan_for_linux_is_applied_and_its_results_are_recorded() {
    let pair = dense();
    let image = Image::halting();
    let witness = restore_linux(&pair.a, &image);
    let before = witness.line();

    let plan = await_plan(&pair.a);
    assert_eq!(plan["steps"][0]["action"]["kind"], "set-balloon", "{plan:#}");
    assert_eq!(plan["steps"][0]["action"]["guest"], "linux", "{plan:#}");
    assert_eq!(balloon_target(&pair.a, "linux"), ALL_BYTES, "a plan changes nothing");
    let file = pair.folder().join("plan.json");
    fs::write(&file, plan.to_string()).expect("a file");

    // A failed `jq` leaves `null`, which must not be taken for an absent plan.
    let nothing = pair.folder().join("nothing.json");
    fs::write(&nothing, "null").expect("a file");
    let words = ["nothing.json is not a plan", "lighter density plan --json"];
    pair.a
        .run(&["density", "apply", "--plan", &nothing.display().to_string()])
        .complains(Exit::Failed, &words);

    let run = pair.a.run(&["density", "apply", "--plan", &file.display().to_string(), "--json"]);
    let run = run.ok().json();
    assert_eq!(run["state"], "done", "{run:#}");
    assert_eq!(run["actions"], 1, "{run:#}");
    assert!(run["steps"][0]["verified_bytes"].is_i64(), "{run:#}");
    let target = balloon_target(&pair.a, "linux");
    assert_eq!(run["steps"][0]["action"]["action"]["to_bytes"], target, "{run:#}");
    assert!((ALL_BYTES / 10..ALL_BYTES).contains(&target), "{target}");
    witness.line().follows(&before);

    let listed = pair.a.run(&["density", "history", "--json"]).ok().json();
    // The guest may already have regained some memory, which the history lists as another run.
    let mut runs = listed["runs"].as_array().expect("a list").iter();
    assert!(runs.any(|it| it["id"] == run["id"]), "{listed:#}");
    let text = pair.a.run(&["density", "history", &run["id"].to_string()]).ok().stdout;
    assert!(text.contains("linux: balloon from 128 MiB to"), "{text}");
    let text = pair.a.run(&["density", "status"]).ok().stdout;
    assert!(text.contains("max density") && text.contains("linux"), "{text}");
    read_only_clients_see_the_same(&pair.a, &text);
    nothing_left_behind(&pair.hosts());
}

fn read_only_clients_see_the_same(host: &Host, status: &str) {
    let text = host.run(&["--readonly", "density", "status"]).ok().stdout;
    assert_eq!(text.lines().next(), status.lines().next());
    host.run(&["--readonly", "density", "history"]).ok();
    host.run(&["--readonly", "density", "next"]).ok();
    host.run(&["--readonly", "density", "apply"]).complains(Exit::Failed, &["changes nothing"]);
    let unknown = &["there is no run 99"];
    host.run(&["--readonly", "density", "history", "99"]).complains(Exit::Failed, unknown);
}

#[test]
fn a_run_waits_for_the_balloon_of_a_linux_guest_and_continues() {
    let pair = dense();
    let image = Image::halting();
    let _witness = restore_linux(&pair.a, &image);
    await_plan(&pair.a);
    pair.a.run(&["balloon", "linux", "116M"]).ok();
    let run = pair.a.run(&["density", "apply", "--json"]).ok().json();
    let steps = run["steps"].as_array().expect("a list");
    assert!(!steps.is_empty(), "{run:#}");
    assert!(balloon_target(&pair.a, "linux") < 116 << 20, "{run:#}");
}

/// The default policy keeps a headroom that the host has anyway: memory that a run has taken for
/// another goal is not given back for that one.
#[test]
fn what_a_run_takes_from_linux_for_its_own_goal_stays_taken() {
    let pair = dense();
    let kept = POLICY.replace("max density", "keep 1% headroom");
    write_settings(&pair.a, &kept);
    node_uses(&pair.a, "keep 1% headroom");
    let image = Image::halting();
    let _witness = restore_linux(&pair.a, &image);
    wait::until("the guest has said what it needs", || {
        let plan = pair.a.run(&["density", "plan", "--goal", "max density", "--json"]).ok().json();
        if plan["steps"] == Value::Array(Vec::new()) { Err(plan) } else { Ok(()) }
    });
    pair.a.run(&["density", "apply", "--goal", "max density"]).ok();
    let target = balloon_target(&pair.a, "linux");
    assert!(target < ALL_BYTES, "{target}");
    await_inspections(&pair.a);
    assert_eq!(balloon_target(&pair.a, "linux"), target);
}

/// Waits for two more of the node's automatic inspections.
fn await_inspections(host: &Host) {
    let inspections = || {
        let page = crate::metrics::scrape(host);
        crate::metrics::value(&page, "lighter_density_inspections_total", &[]).expect("a counter")
    };
    let before = inspections();
    wait::until("the node has looked again", || {
        let now = inspections();
        wait::holds(now >= before + 2.0, now)
    });
}

#[test]
fn what_a_run_takes_from_linux_is_given_back_where_it_moves_to() {
    let pair = dense();
    let image = Image::halting();
    let _witness = restore_linux(&pair.a, &image);
    await_plan(&pair.a);
    pair.a.run(&["density", "apply"]).ok();
    let target = balloon_target(&pair.a, "linux");
    assert!(target < ALL_BYTES, "{target}");
    Migration::run(&pair.a, "linux", &pair.b).ok();
    let balloon = pair.b.run(&["balloon", "linux", "--json"]).ok().json();
    assert_eq!(
        (&balloon["target_bytes"], &balloon["set_by"]),
        (&target.into(), &"optimizer".into())
    );

    // With this reserve the guest needs more memory.
    write_settings(&pair.b, &POLICY.replace("8MiB", "1GiB"));
    wait::within(RUN_PATIENCE, "the node there gives it back", || {
        let target = balloon_target(&pair.b, "linux");
        wait::holds(target == ALL_BYTES, target)
    });
    // The node leaves a target alone that an operator has set.
    let balloon = pair.b.run(&["balloon", "linux", "116M", "--json"]).ok().json();
    assert_eq!(balloon["set_by"], "operator");
    await_inspections(&pair.b);
    assert_eq!(balloon_target(&pair.b, "linux"), 116 << 20);
}

/// The node takes nothing that it cannot record, because the next node could not give it back; but
/// it still gives a guest the memory that it needs.
#[test]
fn no_memory_is_taken_from_linux_that_cannot_be_recorded() {
    let pair = dense();
    let image = Image::halting();
    let _witness = restore_linux(&pair.a, &image);
    await_plan(&pair.a);
    let file = pair.a.state_dir().join("density.json");
    // A folder in the place of the file: permissions would not stop root from writing.
    let keep_from_writing = || {
        let _ = fs::remove_file(&file);
        fs::create_dir_all(file.join("taken")).expect("a folder");
    };
    keep_from_writing();
    let run = pair.a.run(&["density", "apply", "--json"]);
    let id = run.json()["id"].to_string();
    let run = pair.a.run(&["density", "history", &id, "--json"]).ok().json();
    assert_eq!((&run["state"], &run["outcome"]), (&json!("done"), &json!("failed")), "{run:#}");
    assert_eq!(run["steps"].as_array().map(Vec::len), Some(1), "it ends at once: {run:#}");
    let error = run["steps"][0]["error"].as_str().unwrap_or_default().to_owned();
    assert!(error.contains("no balloon is inflated") && error.contains("density.json"), "{run:#}");
    assert_eq!(balloon_target(&pair.a, "linux"), ALL_BYTES);

    fs::remove_dir_all(&file).expect("a folder");
    pair.a.run(&["density", "apply"]).ok();
    let target = balloon_target(&pair.a, "linux");
    assert!(target < ALL_BYTES, "no balloon is benched: {target}");
    keep_from_writing();
    // With this reserve the guest needs more memory.
    write_settings(&pair.a, &POLICY.replace("8MiB", "1GiB"));
    wait::within(RUN_PATIENCE, "the node gives it back", || {
        let target = balloon_target(&pair.a, "linux");
        wait::holds(target == ALL_BYTES, target)
    });
}

/// A process that claims to be a QEMU with a guest called `name`, as any user of a host can start
/// one.
struct Impostor(Child);

impl Impostor {
    fn start(folder: &Path, name: &str) -> Self {
        let program = folder.join("qemu-system-x86_64");
        fs::copy("/bin/sh", &program).expect("a program");
        let mut command = Command::new(program);
        command.args(["-c", "read line", "-name", name]).stdin(Stdio::piped());
        Self(command.spawn().expect("a process"))
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn what_a_run_takes_from_linux_is_given_back_even_if_another_guest_claims_its_name() {
    // Only one node per host handles foreign guests: the tests whose node does take turns.
    let _turn = KsmTurn::take();
    let mut pair = Pair::without_nodes();
    let arguments = ["--foreign-guests", "watch"].map(str::to_owned).into();
    write_settings(&pair.a, POLICY);
    pair.a.start_node(&NodePlan { arguments, ..NodePlan::default() });
    let image = Image::halting();
    let _witness = restore_linux(&pair.a, &image);
    await_plan(&pair.a);
    pair.a.run(&["density", "apply"]).ok();
    let target = balloon_target(&pair.a, "linux");
    assert!(target < ALL_BYTES, "{target}");

    let impostor = Impostor::start(pair.folder(), "linux");
    let called = format!("linux@{}", impostor.0.id());
    wait::until("the other process is seen", || {
        let status = pair.a.run(&["density", "status", "--json"]).ok().json();
        let guests = status["situation"]["guests"].as_array().expect("a list");
        let seen: Vec<_> = guests.iter().map(|it| (&it["name"], &it["hindrance"])).collect();
        let is_there = seen.contains(&(&json!(called), &json!("watched")))
            && seen.contains(&(&json!("linux"), &Value::Null));
        wait::holds(is_there, status)
    });
    // With this reserve the guest needs more memory.
    write_settings(&pair.a, &POLICY.replace("8MiB", "1GiB"));
    wait::within(RUN_PATIENCE, "the node gives it back", || {
        let target = balloon_target(&pair.a, "linux");
        wait::holds(target == ALL_BYTES, target)
    });
}

#[test]
fn a_schedule_applies_only_to_its_linux_guests() {
    let pair = dense();
    let image = Image::halting();
    let schedule = |guests: &str| {
        format!(
            "{POLICY}\n[[schedule]]\nname = \"s\"\ncron = \"* * * * *\"\ngoal = \"max density\"\nguests = [\"{guests}\"]\n"
        )
    };
    write_settings(&pair.a, &schedule("tier=batch"));
    let _witness = restore_linux(&pair.a, &image);
    await_plan(&pair.a);
    let run_that = |what: &str, condition: &dyn Fn(&Value) -> bool| {
        wait::within(RUN_PATIENCE, what, || {
            let listed = pair.a.run(&["density", "history", "--json"]).ok().json();
            let runs = listed["runs"].as_array().expect("a list");
            runs.iter().find(|run| condition(run)).cloned().ok_or(listed)
        })
    };
    wait::until("the schedule is known", || {
        let next = pair.a.run(&["density", "next", "-n", "3", "--json"]).ok().json();
        wait::holds(next[2]["schedule"] == "s", next)
    });
    let run = run_that("the schedule's run is over", &|run| run["state"] == "done");
    assert_eq!(run["trigger"]["schedule"]["name"], "s", "{run:#}");
    assert_eq!(run["actions"], 0, "it has no guest of that label: {run:#}");
    assert_eq!(balloon_target(&pair.a, "linux"), ALL_BYTES);
    write_settings(&pair.a, &schedule("!tier=batch"));
    run_that("a run that did something is over", &|run| {
        run["state"] == "done" && run["actions"].as_u64() >= Some(1)
    });
    assert!(balloon_target(&pair.a, "linux") < ALL_BYTES);
}

#[test]
fn a_node_that_is_killed_in_the_middle_leaves_linux_sane() {
    let mut pair = dense();
    let image = Image::halting();
    let witness = restore_linux(&pair.a, &image);
    let before = witness.line();
    await_plan(&pair.a);
    let socket = pair.a.state_dir().join("node.sock");
    let begun = ask(&socket, "POST", "/v1/density/runs", Some(&serde_json::json!({})));
    let begun = begun.expect("an answer").success().expect("a run");
    wait::until("the balloon is asked", || {
        wait::holds(balloon_target(&pair.a, "linux") < ALL_BYTES, ())
    });
    pair.a.kill_node();
    witness.line().follows(&before);
    pair.a.start_node(&NodePlan::default());
    let run = pair.a.run(&["density", "history", &begun["run"].to_string(), "--json"]).ok().json();
    assert_eq!(run["state"], "interrupted", "{run:#}");
    let status = pair.a.run(&["density", "status", "--json"]).ok().json();
    assert_eq!(status["running"], Value::Null, "{status:#}");
    // The new node knows the balloon's target again.
    let target = balloon_target(&pair.a, "linux");
    let seen = &status["situation"]["guests"][0]["balloon"]["target_bytes"];
    assert_eq!(*seen, target, "{status:#}");
}

#[test]
fn a_run_for_a_linux_is_cancelled_by_any_client() {
    let pair = dense();
    let _witness = restore_linux(&pair.a, &Image::halting());
    await_plan(&pair.a);
    pair.a.run(&["density", "cancel"]).complains(Exit::Failed, &["no run is under way"]);
    let socket = pair.a.state_dir().join("node.sock");
    let begun = ask(&socket, "POST", "/v1/density/runs", Some(&json!({})));
    let begun = begun.expect("an answer").success().expect("a run")["run"].to_string();
    pair.a.run(&["density", "cancel"]).ok();
    wait::until("it is over", || {
        let run = pair.a.run(&["density", "history", &begun, "--json"]).ok().json();
        wait::holds(run["outcome"] == "cancelled", run)
    });
    pair.a.run(&["density", "cancel", &begun]).complains(Exit::Failed, &["not under way"]);
}

#[test]
fn the_pool_of_huge_pages_is_as_large_as_the_policy_says() {
    let _pool = Pool::of_2m(8);
    let pair = Pair::new();
    let taken = Pool::all() - Pool::free();
    let apply = |limits: &str, free: u64| {
        let head = "goal = \"max density\"\nactuators = [\"pool\"]\n[pools]";
        write_settings(&pair.a, &format!("{head}\n{limits}\n"));
        wait::until("the node plans by the new policy", || {
            let plan = pair.a.run(&["density", "plan", "--json"]).ok().json();
            let action = &plan["steps"][0]["action"];
            let is_so = action["kind"] == "resize-pool" && action["to_pages"] == taken + free;
            wait::holds(is_so, plan)
        });
        let run = pair.a.run(&["density", "apply", "--json"]).ok().json();
        assert_eq!(Pool::free(), free, "{run:#}");
        assert_eq!(run["steps"].as_array().map(Vec::len), Some(1), "{run:#}");
        assert_eq!(run["errors"], Value::Array(Vec::new()), "{run:#}");
        run["steps"][0]["verified_bytes"].as_i64()
    };
    // The pool begins with 8 free pages.
    assert_eq!(apply("free-min = \"24MiB\"\nfree-max = \"24MiB\"", 12), Some(-(8 << 20)));
    assert_eq!(apply("free-max = \"6MiB\"", 3), Some(18 << 20));
    nothing_left_behind(&pair.hosts());
}

#[test]
fn invalid_settings_are_reported_with_their_position_and_change_nothing() {
    let mut pair = dense();
    write_settings(&pair.a, "goal = \"max density\"\n[ballon]\n");
    wait::until("the node has looked", || {
        let status = pair.a.run(&["density", "status", "--json"]).ok().json();
        let error = status["file_error"].as_str().unwrap_or_default().to_owned();
        let is_reported = error.contains("lighter.toml:2:") && error.contains("balloon");
        wait::holds(is_reported && status["goal"] == "max density", status)
    });
    let trial = pair.folder().join("trial.toml");
    let schedule =
        "[[schedule]]\nname = \"night\"\ncron = \"61 3 * * *\"\ngoal = \"max density\"\n";
    fs::write(&trial, schedule).expect("a file");
    let plan = ["density", "plan", "--policy", &trial.display().to_string()];
    pair.a.run(&plan).complains(Exit::Failed, &["trial.toml:3:", "schedule[0].cron"]);
    // The largest file that the node reads, of characters that take two bytes each in the request.
    fs::write(&trial, format!("# {}\n", "\"".repeat((256 << 10) - 3))).expect("a file");
    pair.a.run(&plan).ok();
    pair.a.kill_node();
    let words = ["no node serves this host", "lighter node"];
    pair.a.run(&["density", "status"]).complains(Exit::Failed, &words);
}

#[test]
fn a_node_started_with_invalid_settings_serves_and_takes_nothing_until_they_are_fixed() {
    let mut pair = Pair::without_nodes();
    fs::write(pair.a.state_dir().join("lighter.toml"), "[ballon]\n").expect("a file");
    pair.a.start_node(&NodePlan::default());
    pair.b.start_node(&NodePlan::default());
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let words = ["lighter.toml:1:", "balloon", "until it is right"];
    for verb in ["plan", "apply"] {
        pair.a.run(&["density", verb]).complains(Exit::Failed, &words);
    }
    pair.a.await_log(&words);
    let status = pair.a.run(&["density", "status", "--json"]).ok().json();
    assert!(status["file_error"].as_str().is_some_and(|it| it.contains(words[0])), "{status:#}");
    Migration::run(&pair.a, guest.name(), &pair.b).ok();
    write_settings(&pair.a, "preset = \"safe\"\n");
    wait::until("the settings are right", || {
        let done = pair.a.run(&["density", "apply"]);
        wait::holds(done.exit == Exit::Done, done)
    });
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn an_unwritable_history_does_not_stop_runs() {
    let mut pair = Pair::without_nodes();
    fs::write(pair.a.state_dir().join("density-history"), "no folder").expect("a file");
    pair.a.start_node(&NodePlan::default());
    let done = pair.a.run(&["density", "apply"]).ok();
    assert!(done.stderr.contains("no history is kept"), "{}", done.stderr);
    assert!(done.stderr.contains("the run is over"), "{}", done.stderr);
    let words = ["no history is kept of runs", "the node's log says why"];
    pair.a.run(&["density", "history"]).complains(Exit::Failed, &words);
    assert!(pair.a.logs().contains("a run is over"), "{}", pair.a.logs());
    pair.a.run(&["density", "status"]).ok();
}

#[test]
fn a_plan_of_megabytes_is_taken() {
    let mut pair = Pair::without_nodes();
    pair.a.start_node(&NodePlan::default());
    let mut plan = pair.a.run(&["density", "plan", "--json"]).ok().json();
    let file = pair.folder().join("plan.json");
    let mut apply = |bytes: usize| {
        plan["advice"] = json!([{ "kind": "name-domain", "guest": "x".repeat(bytes) }]);
        fs::write(&file, plan.to_string()).expect("a file");
        pair.a.run(&["density", "apply", "--plan", &file.display().to_string()])
    };
    apply(3 << 20).ok();
    apply(4 << 20).complains(Exit::Failed, &["plan.json", "too large", "4194304 bytes"]);
}

#[test]
fn read_only_clients_cannot_start_runs() {
    let pair = dense();
    let socket = pair.a.state_dir().join("node-ro.sock");
    let status = ask(&socket, "GET", "/v1/density", None).expect("an answer").success().unwrap();
    assert_eq!(status["goal"], "max density");
    let body = serde_json::json!({});
    for path in ["/v1/density/runs", "/v1/density/plan"] {
        let answer = ask(&socket, "POST", path, Some(&body)).expect("an answer");
        assert!(answer.success().is_err(), "{path}");
    }
}

#[test]
fn memory_is_merged_unmerged_and_made_huge_on_demand() {
    let turn = KsmTurn::take();
    let pair = Pair::without_nodes();
    let start = |name: &str| {
        let options = ["--merge-domain", "shop"].map(str::to_owned).into();
        Guest::start(&pair.a, &GuestPlan { name: name.to_owned(), options, ..GuestPlan::default() })
    };
    let guests = [start("one"), start("two")];
    let treat = |guest: &Guest, treatment: &str| {
        let body = serde_json::json!({ "treatment": treatment });
        let treated = guest.request("PUT", "/v1/guest/memory", Some(&body)).success().unwrap();
        assert_eq!(treated["chunks"], 32, "{treated:#}");
        assert_eq!(treated["error"], Value::Null, "{treated:#}");
    };
    let _scan = turn.scanning();
    wait::until("pages are merged", || {
        let merged = [0, 1].map(|index| merged_pages(guests[index].pid()));
        wait::holds(merged.iter().all(|pages| *pages > 4 << 10), merged)
    });
    treat(&guests[0], "collapse");
    // The kernel counts unmerged pages as merged until ksmd scans them again.
    wait::until("nothing is merged", || {
        let merged = merged_pages(guests[0].pid());
        wait::holds(merged == 0, merged)
    });
    let shown = pair.a.run(&["show", "one", "--json"]).ok().json();
    assert!(shown["proportional_bytes"].as_u64() > Some(60 << 20), "{shown:#}");
    for guest in &guests {
        await_life(guest);
        support::checks::memory_is_intact(guest);
    }
    treat(&guests[0], "merge");
    wait::until("pages are merged again", || {
        let merged = merged_pages(guests[0].pid());
        wait::holds(merged > 4 << 10, merged)
    });
    let nowhere = serde_json::json!({ "treatment": "merge", "chunks": [[31, 2]] });
    let refusal = guests[0].request("PUT", "/v1/guest/memory", Some(&nowhere)).success();
    assert!(refusal.unwrap_err().contains("no memory in 2 chunks"), "beyond its end");
    for name in ["one", "two"] {
        pair.a.run(&["destroy", name]).ok();
        guest_is_gone(&[&pair.a], name);
    }
}
