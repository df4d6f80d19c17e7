//! Outcomes of steps on hosts where other memory changes too.

use std::time::Duration;

use super::*;
use crate::plan::fixture::*;
use crate::policy::Policy;
use crate::situation::{Guest, Hindrance, Pool, Situation};
use crate::step::{Action, ChunkRange, Step};
use crate::units::{GIB, MIB};

const STEP: i64 = 256 << 20;

fn step(action: Action, expected_bytes: i64) -> Step {
    let (cpu, reason) = (Duration::ZERO, "a test".to_owned());
    Step { action, expected_bytes, cpu, reason, pid: None }
}

fn shrink() -> Step {
    let (from_bytes, to_bytes) = (8 * GIB, 8 * GIB - 256 * MIB);
    step(Action::SetBalloon { guest: "a".to_owned(), from_bytes, to_bytes }, STEP)
}

fn host() -> Situation {
    situation(50, vec![idle_guest("a", 8 * GIB, GIB)])
}

/// Returns the outcome of `step` when `change` happened to the guest in the minute after it.
fn after(step: &Step, change: impl Fn(&mut Guest)) -> Outcome {
    let before = host();
    let expectation = Expectation::of(step, &before, &Policy::default());
    let mut now = later(&before, 60);
    change(&mut now.guests[0]);
    expectation.check(&now)
}

/// The balloon reached its target, and `returned` bytes came back.
fn inflated(returned: u64) -> impl Fn(&mut Guest) {
    move |guest| {
        balloon(guest).target_bytes = 8 * GIB - 256 * MIB;
        balloon(guest).actual_bytes = 8 * GIB - 256 * MIB;
        said(guest).available_bytes = Some(7 * GIB - 256 * MIB);
        guest.cost.proportional_bytes -= returned;
        guest.cost.resident_bytes -= returned;
    }
}

#[test]
fn returned_memory_decides_not_the_balloons_report() {
    let verdict = |returned| after(&shrink(), inflated(returned)).verdict;
    assert_eq!(verdict(256 * MIB), Verdict::Delivered);
    assert_eq!(verdict(210 * MIB), Verdict::Delivered);
    assert_eq!(verdict(150 * MIB), Verdict::Partly);
    assert_eq!(verdict(10 * MIB), Verdict::Nothing);
    let outcome = after(&shrink(), inflated(128 * MIB));
    assert_eq!((outcome.returned_bytes, outcome.share), (128 << 20, Some(0.5)));
    assert!(outcome.is_enough());
    assert!(!after(&shrink(), inflated(120 * MIB)).is_enough());
    let said = outcome.to_string();
    assert_eq!(
        said,
        "a: balloon from 8 GiB to 7.75 GiB: 128 MiB of 256 MiB, partly (50%): only 50% of what was expected"
    );
}

#[test]
fn memory_returned_by_other_means_does_not_count() {
    let reported = |guest: &mut Guest| {
        inflated(256 * MIB)(guest);
        balloon(guest).reported_bytes_total += 256 * MIB;
    };
    assert_eq!(after(&shrink(), reported).verdict, Verdict::Unclear, "either may have been it");
    assert_eq!(after(&shrink(), reported).returned_bytes, 0);
    let swapped = |guest: &mut Guest| {
        inflated(256 * MIB)(guest);
        guest.cost.swapped_bytes += 250 * MIB;
    };
    assert_eq!(after(&shrink(), swapped).verdict, Verdict::Unclear);
    let a_little = |guest: &mut Guest| {
        inflated(256 * MIB)(guest);
        balloon(guest).reported_bytes_total += 20 * MIB;
    };
    assert_eq!(after(&shrink(), a_little).verdict, Verdict::Delivered, "whichever it was");
    let both = |guest: &mut Guest| {
        inflated(512 * MIB)(guest);
        balloon(guest).reported_bytes_total += 256 * MIB;
    };
    assert_eq!(after(&shrink(), both).verdict, Verdict::Delivered);
}

#[test]
fn a_guest_that_grew_meanwhile_is_not_blamed() {
    let grew = |guest: &mut Guest| {
        inflated(20 * MIB)(guest);
        said(guest).available_bytes = Some(7 * GIB - 500 * MIB);
    };
    assert_eq!(after(&shrink(), grew).verdict, Verdict::Unclear);
    let swapped_in = |guest: &mut Guest| {
        guest.cost.swapped_bytes = 0;
        inflated(20 * MIB)(guest);
    };
    let mut before = host();
    before.guests[0].cost.swapped_bytes = 230 * MIB;
    let expectation = Expectation::of(&shrink(), &before, &Policy::default());
    let mut now = later(&before, 60);
    swapped_in(&mut now.guests[0]);
    assert_eq!(expectation.check(&now).verdict, Verdict::Unclear);
}

#[test]
fn a_balloon_with_another_target_is_not_judged() {
    let released = |guest: &mut Guest| balloon(guest).target_bytes = 8 * GIB;
    assert_eq!(after(&shrink(), released).verdict, Verdict::Unclear);
    let paused = |guest: &mut Guest| guest.hindrance = Some(Hindrance::Paused);
    assert_eq!(after(&shrink(), paused).verdict, Verdict::Unclear);
    assert_eq!(after(&shrink(), |guest| guest.pid += 1).verdict, Verdict::Unclear);
    assert_eq!(after(&shrink(), |guest| guest.name = "b".to_owned()).reason, "the guest is gone");
    let small = step(shrink().action, 1 << 20);
    assert_eq!(after(&small, inflated(0)).verdict, Verdict::Unclear, "too little to be seen");
}

#[test]
fn a_balloon_short_of_its_target_reports_the_difference() {
    let half = |guest: &mut Guest| {
        inflated(100 * MIB)(guest);
        balloon(guest).actual_bytes = 8 * GIB - 100 * MIB;
        said(guest).available_bytes = Some(7 * GIB - 100 * MIB);
    };
    let reason = after(&shrink(), half).reason;
    assert_eq!(reason, "only 39.1% of what was expected, and the balloon lacks 156 MiB");
}

#[test]
fn a_release_counts_when_the_balloon_lets_go() {
    let mut before = host();
    balloon(&mut before.guests[0]).target_bytes = 4 * GIB;
    balloon(&mut before.guests[0]).actual_bytes = 4 * GIB;
    let (from_bytes, to_bytes) = (4 * GIB, 8 * GIB);
    let action = Action::SetBalloon { guest: "a".to_owned(), from_bytes, to_bytes };
    let expectation = Expectation::of(&step(action, -(4 << 30)), &before, &Policy::default());
    let verdict = |actual_bytes| {
        let mut now = later(&before, 5);
        balloon(&mut now.guests[0]).target_bytes = 8 * GIB;
        balloon(&mut now.guests[0]).actual_bytes = actual_bytes;
        (expectation.check(&now).verdict, expectation.is_settled(&now))
    };
    assert_eq!(verdict(8 * GIB), (Verdict::Delivered, true));
    assert_eq!(verdict(6 * GIB), (Verdict::Partly, false));
    assert_eq!(verdict(4 * GIB), (Verdict::Nothing, false));
}

#[test]
fn steps_are_verified_when_done_or_timed_out() {
    let before = host();
    let expectation = Expectation::of(&shrink(), &before, &Policy::default());
    assert!(!expectation.is_settled(&before) && !expectation.is_settled(&later(&before, 1)));
    assert!(expectation.is_settled(&later(&before, 30)));
    let mut arrived = later(&before, 1);
    inflated(0)(&mut arrived.guests[0]);
    assert!(expectation.is_settled(&arrived));
    let chunks = vec![ChunkRange { first: 0, count: 3000 }];
    let huge = step(Action::MakeHuge { guest: "a".to_owned(), chunks }, 0);
    assert_eq!(settles_after(&huge, &Policy::default()), Duration::from_secs(8));
}

#[test]
fn merging_counts_when_kernel_and_process_agree() {
    let chunks = vec![ChunkRange { first: 0, count: 256 }];
    let merge = step(Action::Merge { guest: "a".to_owned(), chunks }, STEP);
    let merged = |process: u64, profit: i64| {
        let mut before = host();
        before.guests[0].cost.merge_profit_bytes = Some(-1000);
        let expectation = Expectation::of(&merge, &before, &Policy::default());
        let mut now = later(&before, 1800);
        now.guests[0].cost.proportional_bytes -= process;
        now.guests[0].cost.merge_profit_bytes = Some(profit - 1000);
        expectation.check(&now)
    };
    assert_eq!(merged(256 * MIB, 300 << 20).verdict, Verdict::Delivered);
    assert_eq!(merged(256 * MIB, 300 << 20).returned_bytes, STEP);
    assert_eq!(merged(0, -(14 << 20)).verdict, Verdict::Nothing);
    assert_eq!(merged(256 * MIB, 0).verdict, Verdict::Unclear);
}

#[test]
fn huge_pages_pools_and_windows_have_their_own_counters() {
    let chunks = vec![ChunkRange { first: 0, count: 100 }];
    let huge = step(Action::MakeHuge { guest: "a".to_owned(), chunks }, -1);
    assert_eq!(after(&huge, |guest| guest.cost.huge_bytes = 190 * MIB).verdict, Verdict::Delivered);
    assert_eq!(after(&huge, |_| {}).verdict, Verdict::Nothing);

    let mut before = host();
    before.host.pools.push(Pool {
        page_bytes: 2 * MIB,
        pages: 100,
        free_pages: 50,
        reserved_pages: 0,
    });
    let resize = |to_pages, expected| {
        step(Action::ResizePool { page_bytes: 2 * MIB, from_pages: 100, to_pages }, expected)
    };
    let verdict = |step: &Step, pages| {
        let mut now = later(&before, 5);
        now.host.pools[0].pages = pages;
        let outcome = Expectation::of(step, &before, &Policy::default()).check(&now);
        (outcome.verdict, outcome.returned_bytes)
    };
    assert_eq!(verdict(&resize(50, 100 << 20), 50), (Verdict::Delivered, 100 << 20));
    assert_eq!(verdict(&resize(50, 100 << 20), 75), (Verdict::Partly, 50 << 20));
    assert_eq!(verdict(&resize(150, -(100 << 20)), 150), (Verdict::Delivered, -(100 << 20)));
    assert_eq!(verdict(&resize(150, -(100 << 20)), 100), (Verdict::Nothing, 0));
}

#[test]
fn a_window_counts_by_the_memory_of_its_domains_guests() {
    let window = Action::DriveKsm {
        domain: "red".to_owned(),
        pages_per_s: 1000,
        cpu: 0.2,
        cpu_time: Duration::from_secs(120),
        window: Duration::from_secs(600),
        window_bytes: 400 << 20,
    };
    let drive = step(window, 100 << 20);
    let mut before =
        situation(50, ["a", "b", "other"].map(|name| idle_guest(name, 8 * GIB, GIB)).into());
    for guest in &mut before.guests[..2] {
        guest.merge_domain = Some("red".to_owned());
    }
    let policy = Policy::default();
    let expectation = Expectation::of(&drive, &before, &policy);
    let check = |change: &dyn Fn(&mut Situation)| {
        let mut now = later(&before, 600);
        change(&mut now);
        let outcome = expectation.check(&now);
        (outcome.verdict, outcome.returned_bytes)
    };
    let merged = |now: &mut Situation, bytes: [u64; 3]| {
        for (guest, bytes) in now.guests.iter_mut().zip(bytes) {
            guest.cost.proportional_bytes -= bytes;
        }
    };
    let found = check(&|now| merged(now, [200 * MIB, 180 * MIB, 0]));
    assert_eq!(found, (Verdict::Delivered, 95 << 20), "its own quarter of 380 MiB");
    let found = check(&|now| {
        merged(now, [200 * MIB, 180 * MIB, 0]);
        // Pages of a process that exited meanwhile.
        now.host.ksm.as_mut().unwrap().profit_bytes = -(900 << 20);
    });
    assert_eq!(found.0, Verdict::Delivered, "whatever ksmd says");
    assert_eq!(check(&|now| merged(now, [0, 0, 400 * MIB])).0, Verdict::Nothing, "not theirs");
    let found = check(&|now| {
        merged(now, [0, 380 * MIB, 0]);
        now.guests.remove(0);
    });
    assert_eq!(found.0, Verdict::Delivered, "who is gone does not count");
    assert_eq!(check(&|now| now.guests.clear()).0, Verdict::Unclear);
}
