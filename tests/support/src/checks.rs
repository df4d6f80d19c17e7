//! Assertions that must hold after every failure: one copy of the guest runs, its memory is intact,
//! and nothing is left behind.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::process::{Pid, processes_of};
use super::state_folder::belongs;
use super::{Exit, Guest, Host, wait};

/// Loop iterations that prove that a guest runs. The workload makes far more than this in a
/// millisecond.
const TICKS_OF_LIFE: u64 = 1000;

/// The host memory that a guest costs, in bytes; shared pages count proportionally (PSS).
pub fn cost(host: &Host, name: &str) -> u64 {
    wait::until("its process tells what it costs", || {
        let shown = host.run(&["show", name, "--json"]);
        if shown.exit != Exit::Done {
            return Err(shown);
        }
        shown.json()["proportional_bytes"].as_u64().ok_or(shown)
    })
}

/// Asserts that exactly one copy of the guest runs on these hosts, the one on `here`, that its
/// memory is intact, and that no other copy is left, running or not. Returns the running copy.
#[track_caller]
pub fn one_intact_copy(hosts: &[&Host], name: &str, here: &Host) -> Guest {
    let guest = exactly_one_copy_runs(hosts, name, here);
    memory_is_intact(&guest);
    wait::until(&format!("one process has {name}"), || {
        let states: Vec<_> = hosts.iter().filter_map(|host| host.guest(name).state()).collect();
        wait::holds(states == ["running"], states)
    });
    nothing_left_behind(hosts);
    guest
}

/// Asserts that exactly one copy of the guest runs, the one on `here`. Relies on the guest's own
/// loop counter, not only on what the processes report.
#[track_caller]
pub fn exactly_one_copy_runs(hosts: &[&Host], name: &str, here: &Host) -> Guest {
    let guest = here.guest(name);
    guest.await_state("running");
    let others: Vec<Guest> = others(hosts, name, here);
    let before: Vec<Option<u64>> = others.iter().map(Guest::ticks).collect();
    await_life(&guest);
    let after: Vec<Option<u64>> = others.iter().map(Guest::ticks).collect();
    for ((other, before), after) in others.iter().zip(before).zip(after) {
        assert!(after.is_none() || before == after, "a second copy runs: {other:?}");
        assert_ne!(
            other.state().as_deref(),
            Some("running"),
            "a second copy claims to run: {other:?}"
        );
    }
    guest
}

/// Asserts that no copy of the guest runs. `witness` is a running guest: while its loop counter
/// advances, those of the copies must not.
#[track_caller]
pub fn no_copy_runs(hosts: &[&Host], name: &str, witness: &Guest) {
    let copies: Vec<Guest> = hosts.iter().map(|host| host.guest(name)).collect();
    let before: Vec<Option<u64>> = copies.iter().map(Guest::ticks).collect();
    await_life(witness);
    for (copy, before) in copies.iter().zip(before) {
        let after = copy.ticks();
        assert!(after.is_none() || before == after, "a copy runs: {copy:?}");
        assert_ne!(copy.state().as_deref(), Some("running"), "a copy claims to run: {copy:?}");
    }
}

/// Waits until the guest is gone from these hosts, as after any crash, and nothing is left behind.
#[track_caller]
pub fn guest_is_gone(hosts: &[&Host], name: &str) {
    wait::until(&format!("{name} is gone"), || {
        let states: Vec<Option<String>> =
            hosts.iter().map(|host| host.guest(name).state()).collect();
        wait::holds(states.iter().all(Option::is_none), states)
    });
    nothing_left_behind(hosts);
}

/// Has the guest check all its memory now, and asserts that every page is as the guest wrote it and
/// that its clock never went backwards.
#[track_caller]
pub fn memory_is_intact(guest: &Guest) {
    let workload = guest.verify();
    assert_eq!(workload["intact"], Value::Bool(true), "{workload:#}");
    assert_eq!(workload["bad_pages"], 0, "{workload:#}");
    assert_eq!(workload["clock_backwards"], 0, "{workload:#}");
}

/// Waits until the guest's loop counter has advanced.
#[track_caller]
pub fn await_life(guest: &Guest) {
    let start = guest.ticks().unwrap_or(0);
    wait::until(&format!("{} makes progress", guest.name()), || {
        let now = guest.ticks();
        wait::holds(now.is_some_and(|now| now > start + TICKS_OF_LIFE), now)
    });
}

fn others(hosts: &[&Host], name: &str, here: &Host) -> Vec<Guest> {
    let elsewhere = hosts.iter().filter(|host| host.state_dir() != here.state_dir());
    elsewhere.map(|host| host.guest(name)).collect()
}

/// Asserts that these hosts have only their nodes, the listed guests and settled records: no other
/// process, socket, guest folder or temporary file.
#[track_caller]
pub fn nothing_left_behind(hosts: &[&Host]) {
    for host in hosts {
        wait::until(&format!("nothing is left behind in {}", host.state_dir().display()), || {
            let left = leftovers(host);
            wait::holds(left.is_empty(), left)
        });
    }
}

/// The processes, files and records that should not be on the host.
fn leftovers(host: &Host) -> Vec<String> {
    let listed = host.list();
    let mut left = stray_processes(host, &listed);
    let names: BTreeSet<&str> = listed.iter().filter_map(|guest| guest["name"].as_str()).collect();
    let mut files = Vec::new();
    walk(host.state_dir(), host.state_dir(), &mut files);
    left.extend(files.into_iter().filter(|file| !belongs(file, &names)));
    left.extend(unsettled_records(host));
    left
}

fn stray_processes(host: &Host, listed: &[Value]) -> Vec<String> {
    let mut known: Vec<Pid> = listed
        .iter()
        .filter_map(|guest| guest["pid"].as_u64())
        .map(|pid| Pid(pid as u32))
        .collect();
    known.extend(host.node_pid());
    let strays = processes_of(host.state_dir()).into_iter().filter(|pid| !known.contains(pid));
    strays.map(|pid| format!("process {}: {}", pid.0, pid.command_line())).collect()
}

/// Every file below `folder`, and every empty folder of a live guest, relative to `root`.
fn walk(root: &Path, folder: &Path, into: &mut Vec<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder && fs::read_dir(&path).is_ok_and(|mut inside| inside.next().is_some()) {
            walk(root, &path, into);
        } else if !is_folder || folder == root.join("guests") {
            let relative = path.strip_prefix(root).expect("below the root");
            into.push(relative.display().to_string());
        }
    }
}

/// Migration records that are not in a final state.
fn unsettled_records(host: &Host) -> Vec<String> {
    let records = host.records();
    let open = records.iter().filter(|record| {
        !matches!(
            record["side"]["state"].as_str(),
            Some("done" | "aborted" | "running" | "discarded" | "lost")
        )
    });
    open.map(|record| format!("unsettled record: {record}")).collect()
}
