//! How an inspection of a host and its guests appears on the page.

use std::time::{Duration, UNIX_EPOCH};

use memopt::ledger::{Ledger, Level};
use memopt::policy::{Actuator, Policy};
use memopt::situation::{
    Balloon, Cost, Guest, Host, Ksm, Pool, Pressure, Situation, Statistics, Vmm,
};
use memopt::step::{Action, Step};
use memopt::verify::Outcome;
use metrics::{DensitySample, Exporter, InspectionSample, Snapshot};

/// A host with one guest, whose driver has counted `oom_kills` kills.
fn situation(seconds: u64, oom_kills: u64) -> Situation {
    let statistics = Statistics {
        available_bytes: Some(100 << 20),
        oom_kills: Some(oom_kills),
        ..Statistics::default()
    };
    let balloon = Balloon {
        has_driver: true,
        target_bytes: 256 << 20,
        actual_bytes: 512 << 20,
        is_set_by_steps: None,
        reports_free_pages: false,
        reported_bytes_total: 0,
        statistics: Some(statistics),
    };
    let guest = Guest {
        memory_bytes: 512 << 20,
        cost: Cost { merge_profit_bytes: Some(-64), ..Cost::default() },
        balloon: Some(balloon),
        ..Guest::unknown("web".to_owned(), Vmm::Qemu, 1)
    };
    let pool = |page_bytes| Pool { page_bytes, pages: 3, free_pages: 2, reserved_pages: 1 };
    let host = Host {
        total_bytes: 100,
        available_bytes: 10,
        swap_used_bytes: 0,
        pressure: None,
        ksm: None,
        pools: vec![pool(64 << 10), pool(2 << 20)],
        merged_domain: None,
        other_processes: Vec::new(),
    };
    let uptime = Duration::from_secs(seconds);
    Situation { unix_seconds: seconds, uptime, host, guests: vec![guest] }
}

#[test]
fn pressure_stuck_balloons_and_benches_are_shown() {
    let (mut ledger, policy) = (Ledger::default(), Policy::default());
    ledger.observe(&situation(1, 0), &policy);
    let calm = InspectionSample::new(&situation(1, 0), &ledger, &policy);
    assert!(!calm.guests[0].is_spared && calm.guests[0].benched.is_empty(), "{calm:?}");
    ledger.observe(&situation(100, 2), &policy);
    let resize = Step {
        action: Action::ResizePool { page_bytes: 2 << 20, from_pages: 3, to_pages: 1 },
        expected_bytes: 4 << 20,
        cpu: Duration::ZERO,
        reason: String::new(),
        pid: None,
    };
    let failed = Outcome::failed(&resize, String::new());
    (0..2).for_each(|_| ledger.verified(&failed));

    let seen = InspectionSample::new(&situation(100, 2), &ledger, &policy);

    let guest = &seen.guests[0];
    assert!(guest.is_spared && guest.demand_bytes > Some(0), "{guest:?}");
    assert!(guest.is_balloon_stuck, "{guest:?}");
    assert_eq!(guest.benched, [Actuator::Balloon]);
    assert_eq!(guest.guest.cost.merge_profit_bytes, Some(-64));
    assert_eq!(seen.benched, [Actuator::Pool]);
    assert_eq!(seen.level, Level::Amber);
}

/// A host that swaps, waits for memory and has merged zeros, with a guest that swaps, reports free
/// memory and sends all statistics.
fn strained() -> Situation {
    let mut strained = situation(200, 2);
    let host = &mut strained.host;
    host.swap_used_bytes = 1;
    host.pressure =
        Some(Pressure { some_10s: 0.25, full_10s: 0.125, some_60s: 0.0, full_60s: 0.0 });
    host.ksm = Some(Ksm { zero_pages: 2, ..Ksm::default() });
    let guest = &mut strained.guests[0];
    guest.cost.swapped_bytes = 3;
    let balloon = guest.balloon.as_mut().expect("a balloon");
    balloon.reported_bytes_total = 4;
    let reported = balloon.statistics.as_mut().expect("statistics");
    reported.age = Duration::from_secs(5);
    reported.swap_in_bytes = Some(6);
    reported.swap_out_bytes = Some(7);
    reported.major_faults = Some(8);
    reported.allocation_stalls = Some(9);
    reported.direct_reclaim_bytes = Some(10);
    strained
}

#[test]
fn rare_host_and_guest_metrics_are_on_the_page() {
    let (mut ledger, policy) = (Ledger::default(), Policy::default());
    ledger.observe(&situation(1, 0), &policy);
    ledger.observe(&strained(), &policy);
    let action = Action::ResizePool { page_bytes: 2 << 20, from_pages: 3, to_pages: 1 };
    let (cpu, reason) = (Duration::ZERO, String::new());
    let step = Step { action, expected_bytes: 1, cpu, reason, pid: None };
    let failed = Outcome::failed(&step, String::new());
    (0..2).for_each(|_| ledger.verified(&failed));
    let density = DensitySample {
        inspection: Some(InspectionSample::new(&strained(), &ledger, &policy)),
        ..Default::default()
    };
    let exporter = Exporter::new("1", "x", UNIX_EPOCH).expect("a sound catalogue");
    let page = exporter.render(&Snapshot { density, ..Default::default() }).expect("a page");
    let pools = page.matches("lighter_host_hugetlb_bytes{").count();
    assert_eq!(pools, 1, "sizes that x86 has not are left out");
    for line in [
        "lighter_balloon_reported_bytes_total{guest=\"web\"} 4",
        "lighter_balloon_stuck{guest=\"web\"} 1",
        "lighter_density_guest_benched{actuator=\"balloon\",guest=\"web\"} 1",
        "lighter_density_guest_spared{guest=\"web\"} 1",
        "lighter_density_guest_swapped_bytes{guest=\"web\"} 3",
        "lighter_density_host_benched{actuator=\"pool\"} 1",
        "lighter_guest_stats_age_seconds{guest=\"web\"} 5",
        "lighter_guest_stats_allocation_stalls_total{guest=\"web\"} 9",
        "lighter_guest_stats_direct_reclaim_bytes_total{guest=\"web\"} 10",
        "lighter_guest_stats_major_faults_total{guest=\"web\"} 8",
        "lighter_guest_stats_oom_kills_total{guest=\"web\"} 2",
        "lighter_guest_stats_swap_in_bytes_total{guest=\"web\"} 6",
        "lighter_guest_stats_swap_out_bytes_total{guest=\"web\"} 7",
        "lighter_host_hugetlb_bytes{page_size=\"2M\"} 6291456",
        "lighter_host_hugetlb_free_bytes{page_size=\"2M\"} 4194304",
        "lighter_host_hugetlb_reserved_bytes{page_size=\"2M\"} 2097152",
        "lighter_host_memory_pressure_ratio{stall=\"some\"} 0.25",
        "lighter_host_memory_pressure_ratio{stall=\"full\"} 0.125",
        "lighter_host_memory_swapped_bytes 1",
        "lighter_ksm_zero_pages 2",
    ] {
        assert!(page.lines().any(|other| other == line), "no {line} in {page}");
    }
}
