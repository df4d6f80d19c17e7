//! What Prometheus sees of memory optimization: each metric of its catalogue moves on a live node.

use std::collections::BTreeSet;
use std::fs;

use ::metrics::{density_definitions, never_moved};
use serde_json::Value;

use crate::density::{POLICY, RUN_PATIENCE, await_plan, dense, restore_linux, write_settings};
use crate::metrics::{scrape, value};
use crate::moved_elsewhere::{self, MovedElsewhere};
use support::ksm::KsmTurn;
use support::linux::image::Image;
use support::{Exit, Guest, GuestPlan, Host, Pair, wait};

/// Metrics that may stay at zero here, grouped by the file and the test that moves them. This
/// machine has no swap, may have no memory stalls and no huge page pools. The guest's kernel is
/// older than Linux 6.12; the guest has no disk, frees nothing and holds hardly more than it needs,
/// so that little is expected and the regained memory may have either sign. And nothing fails here.
const MOVED_ELSEWHERE: [MovedElsewhere; 4] = [
    (
        "metrics/tests/inspection.rs",
        "rare_host_and_guest_metrics_are_on_the_page",
        &[
            "lighter_balloon_reported_bytes_total",
            "lighter_balloon_stuck",
            "lighter_density_guest_benched",
            "lighter_density_guest_spared",
            "lighter_density_guest_swapped_bytes",
            "lighter_density_host_benched",
            "lighter_guest_stats_age_seconds",
            "lighter_guest_stats_allocation_stalls_total",
            "lighter_guest_stats_direct_reclaim_bytes_total",
            "lighter_guest_stats_major_faults_total",
            "lighter_guest_stats_oom_kills_total",
            "lighter_guest_stats_swap_in_bytes_total",
            "lighter_guest_stats_swap_out_bytes_total",
            "lighter_host_hugetlb_bytes",
            "lighter_host_hugetlb_free_bytes",
            "lighter_host_hugetlb_reserved_bytes",
            "lighter_host_memory_pressure_ratio",
            "lighter_host_memory_swapped_bytes",
            "lighter_ksm_zero_pages",
        ],
    ),
    (
        "src/density/tally.rs",
        "steps_are_counted_by_what_came_back_and_by_what_was_given",
        &[
            "lighter_density_expected_bytes_total",
            "lighter_density_given_bytes_total",
            "lighter_density_steps_failed_total",
            "lighter_density_verified_bytes_total",
        ],
    ),
    (
        "src/density/tally.rs",
        "failed_surveys_and_restarts_are_counted",
        &[
            "lighter_density_reliefs_failed_total",
            "lighter_density_restarts_total",
            "lighter_density_surveys_failed_total",
        ],
    ),
    (
        "tests/e2e/surveys.rs",
        "equal_idle_pages_are_merged_and_written_ones_stay_huge",
        &["lighter_ksm_windows_total"],
    ),
];

#[test]
fn metrics_that_stay_at_zero_in_one_test_are_moved_by_the_one_that_is_named() {
    MOVED_ELSEWHERE.iter().for_each(moved_elsewhere::check);
    let names: Vec<_> = density_definitions().map(|one| one.name).collect();
    let elsewhere = moved_elsewhere::names(&MOVED_ELSEWHERE);
    assert!(elsewhere.into_iter().all(|name| names.contains(&name)), "one of another catalogue");
}

/// Two schedules that are due at the same time; one of them does not wait for the other.
const SCHEDULES: &str = r#"
[[schedule]]
name = "first"
cron = "* * * * *"
goal = "max density"

[[schedule]]
name = "second"
cron = "* * * * *"
goal = "max density"
overlap = "skip"
"#;

/// Scrapes, collecting the pages, until `holds` is true of one.
#[track_caller]
fn await_page(host: &Host, what: &str, pages: &mut Vec<String>, holds: impl Fn(&str) -> bool) {
    wait::within(RUN_PATIENCE, what, || {
        let page = scrape(host);
        pages.push(page.clone());
        if holds(&page) { Ok(()) } else { Err(page) }
    });
}

#[test]
fn every_metric_of_memory_optimization_moves_on_a_node_with_linux() {
    // The image is built, if need be, before this test takes a turn that other tests wait for.
    let image = Image::halting();
    let turn = KsmTurn::take();
    let pair = dense();
    let _witness = restore_linux(&pair.a, &image);
    let mut pages = Vec::new();
    await_plan(&pair.a);
    a_run_is_seen(&pair.a, &mut pages);
    merging_is_seen(&pair.a, &turn, &mut pages);
    what_is_scheduled_is_seen(&pair, &mut pages);
    what_goes_wrong_is_seen(&pair.a, &mut pages);

    let names: BTreeSet<&str> = density_definitions().map(|one| one.name).collect();
    let mut still = never_moved(pages.iter().map(String::as_str)).expect("metrics pages");
    still.retain(|name| names.contains(name));
    let elsewhere = moved_elsewhere::names(&MOVED_ELSEWHERE);
    still.retain(|name| !elsewhere.contains(name));
    assert!(still.is_empty(), "nothing moves {}", still.join(", "));
}

/// A run begins and ends; then a policy by which the guest needs more makes the node give its
/// memory back.
fn a_run_is_seen(host: &Host, pages: &mut Vec<String>) {
    let socket = host.state_dir().join("node.sock");
    let body = serde_json::json!({});
    let begun = support::ask(&socket, "POST", "/v1/density/runs", Some(&body));
    begun.expect("an answer").success().expect("a run");
    await_page(host, "the run is seen to end", pages, |page| {
        let ended = "lighter_density_run_duration_seconds_count";
        value(page, ended, &[("trigger", "manual")]) > Some(0.0)
    });

    write_settings(host, &POLICY.replace("8MiB", "1GiB"));
    await_page(host, "the guest has the memory back that it needs by now", pages, |page| {
        let all = value(page, "lighter_balloon_target_bytes", &[("guest", "linux")]);
        value(page, "lighter_density_reliefs_total", &[]) > Some(0.0)
            && all == Some(f64::from(128 << 20))
    });
}

/// Two guests with equal memory, which ksmd merges; then one is paused.
fn merging_is_seen(host: &Host, turn: &KsmTurn, pages: &mut Vec<String>) {
    let start = |name: &str| {
        let options = ["--merge-domain", "shop"].map(str::to_owned).into();
        Guest::start(host, &GuestPlan { name: name.to_owned(), options, ..GuestPlan::default() })
    };
    let guests = ["one", "two"].map(start);
    let _scan = turn.scanning();
    await_page(host, "merging is seen", pages, |page| {
        let one = [("guest", "one")];
        value(page, "lighter_density_guest_merged_bytes", &one) > Some(f64::from(1 << 20))
            && value(page, "lighter_ksm_profit_bytes", &[]) > Some(f64::from(1 << 20))
            && value(page, "lighter_ksm_running", &[]) == Some(1.0)
    });
    host.run(&["pause", "two"]).ok();
    let paused = [("guest", "two"), ("hindrance", "paused")];
    await_page(host, "the guest is seen to be paused", pages, |page| {
        value(page, "lighter_density_guest_hindered", &paused) == Some(1.0)
    });
    for guest in guests {
        host.run(&["destroy", guest.name()]).ok();
    }
}

/// One schedule runs; the other is missed, because it does not wait for the first.
fn what_is_scheduled_is_seen(pair: &Pair, pages: &mut Vec<String>) {
    write_settings(&pair.a, &format!("{POLICY}{SCHEDULES}"));
    await_page(&pair.a, "one schedule has run and the other has not", pages, |page| {
        let missed = [("schedule", "second"), ("reason", "overlapped")];
        let ended = "lighter_density_run_duration_seconds_count";
        value(page, "lighter_density_schedule_missed_total", &missed) > Some(0.0)
            && value(page, ended, &[("trigger", "schedule")]) > Some(0.0)
            && value(page, "lighter_density_schedule_lag_seconds", &[("schedule", "first")])
                > Some(0.0)
    });
}

/// A guests folder that cannot be read, and invalid settings.
fn what_goes_wrong_is_seen(host: &Host, pages: &mut Vec<String>) {
    // Invalid settings would not stop the schedules, and only one run can be in progress: end both
    // first.
    write_settings(host, POLICY);
    wait::within(RUN_PATIENCE, "nothing is scheduled, and no run is under way", || {
        let next = host.run(&["density", "next", "--json"]).ok().json();
        let status = host.run(&["density", "status", "--json"]).ok().json();
        let is_idle = next == Value::Array(Vec::new()) && status["running"].is_null();
        wait::holds(is_idle, (next, status))
    });
    write_settings(host, "goal = \"all of it\"\n");
    await_page(host, "the settings are seen to be wrong", pages, |page| {
        value(page, "lighter_density_settings_invalid", &[]) == Some(1.0)
    });
    let (guests, aside) = (host.state_dir().join("guests"), host.state_dir().join("aside"));
    fs::rename(&guests, &aside).expect("it can be moved");
    fs::write(&guests, "in the way").expect("a file");
    host.run(&["density", "apply"]).complains(Exit::Failed, &["the node refuses"]);
    fs::remove_file(&guests).expect("it can be removed");
    fs::rename(&aside, &guests).expect("it can be moved");
    await_page(host, "looks and runs that came to nothing are seen", pages, |page| {
        let manual = [("trigger", "manual")];
        value(page, "lighter_density_inspections_failed_total", &[]) > Some(0.0)
            && value(page, "lighter_density_runs_not_begun_total", &manual) > Some(0.0)
    });
}
