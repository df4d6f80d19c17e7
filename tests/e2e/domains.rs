//! Guests of two merge domains on one host: whichever domain is merged, and however much the other
//! would gain, the two share no page.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::density::{RUN_PATIENCE, following};
use support::checks::{await_life, guest_is_gone, memory_is_intact, nothing_left_behind};
use support::ksm::{KsmTurn, merged_frames};
use support::{Guest, GuestPlan, Host, ask, wait};

/// A domain stays merged for as long as no other has more to gain.
const POLICY: &str = r#"
goal = "max density"
actuators = ["merge"]
[merge]
gain-min = "4MiB"
cpu = "60%"
window = "10m"
pause = "0s"
"#;

fn start(host: &Host, name: &str, domain: &str, memory: &str) -> Guest {
    let options = ["--merge-domain", domain].map(str::to_owned).into();
    let memory = memory.to_owned();
    let plan = GuestPlan { name: name.to_owned(), options, memory, ..GuestPlan::default() };
    Guest::start(host, &plan)
}

/// Frames that both guests have merged at the same time. The frames of `one` are read twice,
/// because a frame that one guest gives up may belong to another a moment later.
fn in_common(one: &Guest, other: &Guest) -> BTreeSet<u64> {
    let before = merged_frames(one.pid());
    let others = merged_frames(other.pid());
    let after = merged_frames(one.pid());
    let there = before.intersection(&after).copied().collect::<BTreeSet<_>>();
    there.intersection(&others).copied().collect()
}

fn nothing_in_common(one: &[Guest], other: &[Guest]) {
    for (guest, stranger) in one.iter().flat_map(|it| other.iter().map(move |other| (it, other))) {
        let frames = in_common(guest, stranger);
        let (guest, stranger) = (guest.name(), stranger.name());
        assert!(frames.is_empty(), "{guest} and {stranger} share {} pages", frames.len());
    }
}

/// Starts a run, and calls `meanwhile` repeatedly until the run is over.
fn run(host: &Host, meanwhile: impl Fn()) -> Value {
    let socket = host.state_dir().join("node.sock");
    let begun = ask(&socket, "POST", "/v1/density/runs", Some(&json!({})));
    let begun = begun.expect("an answer").success().expect("a run")["run"].to_string();
    wait::within(RUN_PATIENCE, "the run is over", || {
        meanwhile();
        let run = host.run(&["density", "history", &begun, "--json"]).ok().json();
        if run["state"] == "done" { Ok(run) } else { Err(run) }
    })
}

/// The domains for which the run drove ksmd, in order.
fn driven_for(run: &Value) -> Vec<&str> {
    let steps = run["steps"].as_array().expect("a list").iter();
    let windows = steps.filter(|step| {
        step["action"]["action"]["kind"] == "drive-ksm" && step["verified_bytes"].is_i64()
    });
    windows.filter_map(|step| step["action"]["action"]["domain"].as_str()).collect()
}

#[test]
fn a_domain_and_its_successor_share_no_page() {
    let turn = KsmTurn::take();
    let pair = following(POLICY);
    // All guests have the same content, except for what each writes.
    let shop = ["one", "two"].map(|name| start(&pair.a, name, "shop", "64M"));
    let first = run(&pair.a, || {});
    assert!(driven_for(&first).contains(&"shop"), "{first:#}");
    assert!(in_common(&shop[0], &shop[1]).len() > 4 << 10, "the shop is merged: {first:#}");

    // The bank would gain more than the shop, but its guests' processes allow no merging while the
    // shop's do.
    let start_bank = || ["three", "four"].map(|name| start(&pair.a, name, "bank", "128M"));
    let bank = start_bank();
    let second = run(&pair.a, || nothing_in_common(&shop, &bank));
    assert!(!driven_for(&second).contains(&"bank"), "{second:#}");
    assert!(bank.iter().all(|guest| merged_frames(guest.pid()).is_empty()), "{second:#}");
    assert!(in_common(&shop[0], &shop[1]).len() > 4 << 10, "nor is the shop taken apart");

    // With all guests gone, the bank can begin first and the shop has to wait.
    for guest in shop.iter().chain(&bank) {
        pair.a.run(&["destroy", guest.name()]).ok();
        guest_is_gone(&[&pair.a], guest.name());
    }
    let bank = start_bank();
    let shop = ["one", "two"].map(|name| start(&pair.a, name, "shop", "64M"));
    let third = run(&pair.a, || nothing_in_common(&shop, &bank));
    assert!(driven_for(&third).contains(&"bank"), "{third:#}");
    assert!(in_common(&bank[0], &bank[1]).len() > 8 << 10, "the bank is merged: {third:#}");
    nothing_in_common(&shop, &bank);
    assert!(shop.iter().all(|guest| merged_frames(guest.pid()).is_empty()), "{third:#}");

    for guest in shop.iter().chain(&bank) {
        await_life(guest);
        memory_is_intact(guest);
    }
    assert!(turn.is_as_before(), "ksmd is as it was");
    nothing_left_behind(&pair.hosts());
}
