//! Power buttons and resets: of the workload, which does not handle them, and of a Linux guest,
//! which does.

use serde_json::json;

use support::checks::{await_life, guest_is_gone, memory_is_intact, nothing_left_behind};
use support::linux::image::{BOOT_PATIENCE, Image};
use support::linux::witness::CheckConsole;
use support::{Exit, Guest, GuestPlan, Migration, Pair, wait};

#[test]
fn a_guest_that_is_reset_starts_over_in_the_same_process() {
    let pair = Pair::without_nodes();
    let guest = Guest::start(&pair.a, &GuestPlan { cpus: 2, ..GuestPlan::default() });
    let pid = guest.pid();
    for turn in 1..=3 {
        pair.a.run(&["reset", "web-1"]).ok();
        let info = guest.get("/v1/guest").unwrap();
        assert_eq!(info["restarts"], turn, "{info:#}");
        assert_eq!(info["last_restart"], "reset on request", "{info:#}");
        assert_eq!(guest.pid(), pid);
        guest.await_workload("it works again", |workload| workload["phase"] == "working");
        memory_is_intact(&guest);
    }
    pair.a.run(&["pause", "web-1"]).ok();
    pair.a.run(&["reset", "web-1"]).complains(Exit::Failed, &["cannot reset web-1", "paused"]);
    pair.a.run(&["resume", "web-1"]).ok();
    await_life(&guest);
}

#[test]
fn a_guest_that_ignores_its_power_button_is_reported_at_once() {
    let pair = Pair::without_nodes();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let words = ["web-1 does not listen to its power button", "`lighter destroy web-1` ends it"];
    for whom in ["web-1", "--all"] {
        pair.a.run(&["shutdown", whom]).complains(Exit::Failed, &words);
    }
    pair.a.run(&["reboot", "web-1", "--timeout", "1h"]).complains(Exit::Failed, &words);
    await_life(&guest);
}

#[test]
fn linux_shuts_down_at_its_power_button_on_the_host_that_it_has_moved_to() {
    let pair = Pair::new();
    let image = Image::halting();
    pair.a.run(&["restore", image.file(), "--name", "linux", "--detach"]).ok();
    CheckConsole::of(&pair.a, "linux", image.pages()).line();
    Migration::run(&pair.a, "linux", &pair.b).ok();
    CheckConsole::of(&pair.b, "linux", image.pages()).line();

    let done = pair.b.run(&["shutdown", "--all", "--timeout", "5m"]).ok();
    assert_eq!(done.stdout, "linux powered off\n", "{done:?}");
    guest_is_gone(&pair.hosts(), "linux");
    let shown = pair.b.run(&["show", "linux", "--json"]).ok().json();
    assert_eq!(shown["how"], "powered-off", "{shown:#}");
    let shown = pair.a.run(&["show", "linux", "--json"]).ok().json();
    assert_eq!(shown["how"], "moved", "{shown:#}");
    assert_eq!(pair.a.run(&["shutdown", "--all"]).ok().stdout, "", "no guest runs here");
}

#[test]
fn linux_reboots_at_its_power_button_when_asked_to() {
    let pair = Pair::without_nodes();
    let image = Image::halting();
    pair.a.run(&["restore", image.file(), "--name", "linux", "--detach"]).ok();
    let witness = CheckConsole::of(&pair.a, "linux", image.pages());
    let before = witness.line();
    let guest = pair.a.guest("linux");
    let pid = guest.pid();

    pair.a.run(&["reboot", "linux", "--timeout", "5m"]).ok();
    let info = guest.get("/v1/guest").unwrap();
    assert_eq!(info["restarts"], 1, "{info:#}");
    assert_eq!(info["last_restart"], "the guest shut down for a requested reboot", "{info:#}");
    let after = wait::within(BOOT_PATIENCE, "linux boots again", || {
        let line = witness.last_line().ok_or_else(|| witness.console())?;
        if line.is_of_a_later_boot_than(&before) { Ok(line) } else { Err(witness.console()) }
    });
    assert_eq!(guest.pid(), pid);
    witness.line().follows(&after);
}

#[test]
fn linux_without_acpi_ends_when_it_resets_under_the_stop_policy() {
    let pair = Pair::without_nodes();
    let image = Image::busy();
    pair.a.run(&["restore", image.file(), "--name", "linux", "--detach"]).ok();
    CheckConsole::of(&pair.a, "linux", image.pages()).line();
    let words = ["linux does not listen to its power button", "runs without ACPI"];
    pair.a.run(&["shutdown", "linux"]).complains(Exit::Failed, &words);

    let guest = pair.a.guest("linux");
    guest.request("PUT", "/v1/guest/console", Some(&json!({ "input": "q" }))).success().unwrap();
    guest_is_gone(&[&pair.a], "linux");
    let shown = pair.a.run(&["show", "linux", "--json"]).ok().json();
    assert_eq!(shown["how"], "reset", "{shown:#}");
    nothing_left_behind(&[&pair.a]);
}
