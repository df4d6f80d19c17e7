//! The page of a busy node passes `promtool check metrics` and contains every metric.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime};

use memopt::ledger::Level;
use memopt::policy::Actuator;
use memopt::situation::{
    Balloon, Cost, Guest, Hindrance, Host, Ksm, Pool, Pressure, Statistics, Vmm,
};
use memopt::verify::Verdict;
use metrics::{
    DensityCounted, DensityGuest, DensitySample, DepartedSample, EstimateFigure, Exporter,
    FailureReason, Finding, GuestSample, GuestState, HostMemory, InspectionSample, MigrationSample,
    MissedReason, NetworkFlow, NetworkSample, RefusalReason, RunOutcome, RunTrigger,
    ScheduleSample, Snapshot, SurveySample, Traffic, WindowEnd,
};
use migrate::Phase;
use migrate::decisions::DecisionKind;
use migrate::progress::Role;
use migrate::waits::PageWaits;

fn migration() -> MigrationSample {
    MigrationSample {
        direction: Role::Source,
        phase: Some(Phase::Precopy),
        phase_durations: vec![(Phase::Connect, Duration::from_millis(3))],
        duration: Duration::from_secs(1),
        rounds: Some(3),
        raw: Traffic { pages: 10, bytes: 40_960 },
        lz4: Traffic { pages: 10, bytes: 9_000 },
        zero_pages: 100,
        hinted_pages: Some(50),
        links: Some((1, 1)),
        remaining_bytes: Some(4096),
        disk_remaining_bytes: Some(4096),
        disk_transferred_bytes: 8192,
        transfer_rate: Some(1e9),
        dirty_rate: Some(1e8),
        expected_downtime: Some(Duration::from_millis(30)),
        throttle: Some(0.75),
        decisions: Some([(DecisionKind::Throttled, 2)].into()),
        downtime: Some(Duration::from_millis(12)),
        guest_downtime: Some(Duration::from_millis(13)),
        page_waits: Some(PageWaits {
            counts: vec![3, 0, 2],
            total_seconds: 0.003,
            longest_seconds: 0.002,
            oldest_seconds: 0.001,
        }),
    }
}

fn network() -> NetworkSample {
    let flow = NetworkFlow { bytes: 3, packets: 2, drops: 1 };
    NetworkSample { device: "tap0".into(), received: flow, transmitted: flow }
}

fn busy_snapshot() -> Snapshot {
    let guest = GuestSample {
        name: "web-1".into(),
        uuid: "1b4e28ba-2fa1-11d2-883f-0016d3cca427".into(),
        state: GuestState::Running,
        started: SystemTime::now(),
        memory_bytes: 512 << 20,
        vcpus: 2,
        resident_bytes: Some(530 << 20),
        proportional_bytes: Some(520 << 20),
        networks: vec![network()],
        longest_stall: Some(Duration::from_millis(12)),
        migration: Some(migration()),
    };
    let host = HostMemory { available_bytes: 3, reserved_bytes: 2, promised_bytes: 1 };
    Snapshot {
        scrape_duration: Duration::from_millis(2),
        guests: vec![guest],
        departed: vec![DepartedSample { guest: "web-2".into(), migration: migration() }],
        guests_unreachable: 1,
        migrations_in_doubt: 1,
        certificate_expiry: Some(SystemTime::now()),
        host: Some(host),
        density: density(),
    }
}

/// A guest with every value that memory optimization can have for one.
fn guest_in_need() -> DensityGuest {
    let statistics = Statistics {
        age: Duration::from_secs(1),
        total_bytes: Some(500),
        free_bytes: Some(100),
        available_bytes: Some(200),
        caches_bytes: Some(50),
        swap_in_bytes: Some(1),
        swap_out_bytes: Some(2),
        major_faults: Some(3),
        oom_kills: Some(4),
        allocation_stalls: Some(5),
        direct_reclaim_bytes: Some(6),
    };
    let balloon = Balloon {
        has_driver: true,
        target_bytes: 400,
        is_set_by_steps: None,
        actual_bytes: 450,
        reports_free_pages: true,
        reported_bytes_total: 7,
        statistics: Some(statistics),
    };
    let cost = Cost {
        resident_bytes: 500 << 20,
        proportional_bytes: 400 << 20,
        huge_bytes: 100 << 20,
        merged_bytes: Some(4096),
        merge_profit_bytes: Some(-64),
        swapped_bytes: 4096,
    };
    DensityGuest {
        guest: Guest {
            memory_bytes: 512 << 20,
            cost,
            hindrance: Some(Hindrance::Paused),
            balloon: Some(balloon),
            ..Guest::unknown("web-1".into(), Vmm::Qemu, 1)
        },
        demand_bytes: Some(300 << 20),
        is_spared: true,
        is_balloon_stuck: true,
        benched: vec![Actuator::Balloon],
        survey: Some(SurveySample {
            age: Duration::from_secs(60),
            found: vec![(Finding::Present, 300 << 20), (Finding::Zero, 80 << 20)],
        }),
    }
}

fn host() -> Host {
    let ksm = Ksm {
        run: 1,
        pages_shared: 1,
        pages_sharing: 2,
        pages_unshared: 3,
        pages_volatile: 4,
        zero_pages: 5,
        pages_scanned: 6,
        full_scans: 7,
        profit_bytes: -4096,
        cpu: Some(Duration::from_secs(1)),
    };
    Host {
        total_bytes: 1 << 34,
        available_bytes: 1 << 33,
        swap_used_bytes: 1,
        pressure: Some(Pressure { some_10s: 0.25, full_10s: 0.125, some_60s: 0.0, full_60s: 0.0 }),
        ksm: Some(ksm),
        pools: vec![Pool { page_bytes: 2 << 20, pages: 3, free_pages: 2, reserved_pages: 1 }],
        merged_domain: None,
        other_processes: Vec::new(),
    }
}

fn density() -> DensitySample {
    let schedule = ScheduleSample {
        name: "nightly".into(),
        next: Some(SystemTime::now()),
        lag: Some(Duration::from_secs(3)),
        runs: 1,
        missed: vec![(MissedReason::Absent, 2)],
    };
    DensitySample {
        inspection: Some(InspectionSample {
            host: host(),
            level: Level::Amber,
            benched: vec![Actuator::Merge],
            guests: vec![guest_in_need()],
        }),
        inspected_at: Some(SystemTime::now()),
        is_running: true,
        last_success: Some(SystemTime::now()),
        are_settings_invalid: true,
        schedules: vec![schedule],
    }
}

fn count_density(counted: &DensityCounted) {
    let (trigger, actuator) = (RunTrigger::Schedule, Actuator::Balloon);
    for counter in [
        &counted.inspections,
        &counted.inspections_failed,
        &counted.plans,
        &counted.surveys,
        &counted.surveys_failed,
        &counted.reliefs,
        &counted.reliefs_failed,
        &counted.restarts,
    ] {
        counter.inc(&());
    }
    counted.runs_started.inc(&(trigger,));
    counted.runs_not_begun.inc(&(trigger,));
    counted.runs_ended.inc(&(trigger, RunOutcome::Reached));
    counted.windows.inc(&(WindowEnd::Flat,));
    counted.run_duration.observe(&(trigger,), 3.0);
    counted.steps.inc(&(actuator,));
    counted.steps_failed.inc(&(actuator,));
    counted.verifications.inc(&(actuator, Verdict::Delivered));
    counted.expected.add(&(actuator,), 4096.0);
    counted.verified.add(&(actuator,), 4096.0);
    counted.given.add(&(actuator,), 4096.0);
}

fn busy_page() -> String {
    let exporter = Exporter::new("1.0.0", "abc", SystemTime::now()).expect("a sound catalogue");
    let counted = exporter.counted();
    counted.migrations_started.inc(&(Role::Source,));
    counted.migrations_completed.inc(&(Role::Source,));
    counted.migrations_cancelled.inc(&(Phase::Precopy,));
    counted.migrations_failed.inc(&(Phase::Connect, FailureReason::ConnectionLost));
    counted.admissions.inc(&());
    counted.guests_failed.inc(&());
    counted.admissions_refused.inc(&(RefusalReason::Memory,));
    counted.completed_downtime.observe(&(Role::Source,), 0.012);
    counted.completed_duration.observe(&(Role::Source,), 1.4);
    counted.estimate_error.observe(&(EstimateFigure::Downtime,), 0.1);
    count_density(exporter.density());
    exporter.render(&busy_snapshot()).expect("a page")
}

#[test]
fn a_busy_node_moves_every_metric_of_the_catalogue() {
    let page = busy_page();
    let still = metrics::never_moved([page.as_str()]).expect("a page");
    assert!(still.is_empty(), "no value other than zero for: {}", still.join(", "));
}

#[test]
fn merging_losses_are_negative() {
    assert!(busy_page().contains("\nlighter_ksm_profit_bytes -4096\n"));
}

#[test]
fn every_series_on_the_page_is_in_the_catalogue() {
    let names: Vec<_> = metrics::definitions().map(|definition| definition.name).collect();
    for sample in metrics::parse_samples(&busy_page()).expect("a page") {
        let histogram = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|suffix| sample.name.strip_suffix(suffix))
            .filter(|stem| names.contains(stem));
        assert!(histogram.is_some() || names.contains(&sample.name.as_str()), "{}", sample.name);
    }
}

#[test]
fn promtool_reports_no_problems() {
    if std::env::var_os("LIGHTER_SKIP_PROMTOOL").is_some() {
        eprintln!("skipped: LIGHTER_SKIP_PROMTOOL is set");
        return;
    }
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect(
            "promtool is needed (Debian's package `prometheus`); \
             set LIGHTER_SKIP_PROMTOOL=1 to go without this check",
        );
    let mut input = promtool.stdin.take().expect("promtool's input");
    input.write_all(busy_page().as_bytes()).expect("promtool reads the page");
    drop(input);
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
}
