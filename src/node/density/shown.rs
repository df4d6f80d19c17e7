//! What a look found, as Prometheus sees it.

use std::time::Duration;

use memopt::ledger::{GuestLedger, Ledger, Level};
use memopt::policy::{self, Policy};
use memopt::situation::{
    Balloon, Chunk, Guest, Hindrance, Host, Ksm, Pool, Situation, Statistics, Survey, Vmm,
};
use metrics::{
    BalloonSample, DensityGuest, DensityHost, Finding, KsmSample, LookSample, PageSize, PoolSample,
    PressureSample, StatisticsSample, SurveySample,
};

use super::tally::of_actuator;
use crate::units::PAGE_BYTES;

/// All of it, with what is remembered of guests.
pub(super) fn look(situation: &Situation, ledger: &Ledger, policy: &Policy) -> LookSample {
    let guests = situation.guests.iter().map(|it| guest(it, ledger, policy, situation.uptime));
    LookSample { host: host(&situation.host, ledger), guests: guests.collect() }
}

/// The actuators that are benched, for a guest or the host itself.
fn benched(ledger: &Ledger, guest: Option<&str>) -> Vec<metrics::Actuator> {
    let all = policy::Actuator::ALL.into_iter();
    all.filter(|it| ledger.bench(guest, *it).is_some()).map(of_actuator).collect()
}

fn host(host: &Host, ledger: &Ledger) -> DensityHost {
    DensityHost {
        level: match ledger.level {
            Level::Green => metrics::Level::Green,
            Level::Amber => metrics::Level::Amber,
            Level::Red => metrics::Level::Red,
        },
        total_bytes: host.total_bytes,
        swap_used_bytes: host.swap_used_bytes,
        pressure: host.pressure.map(|it| PressureSample { some: it.some_10s, full: it.full_10s }),
        ksm: host.ksm.as_ref().map(ksm),
        pools: host.pools.iter().filter_map(pool).collect(),
        benched: benched(ledger, None),
    }
}

fn ksm(ksm: &Ksm) -> KsmSample {
    KsmSample {
        is_running: ksm.run == 1,
        shared_pages: ksm.pages_shared,
        sharing_pages: ksm.pages_sharing,
        unshared_pages: ksm.pages_unshared,
        volatile_pages: ksm.pages_volatile,
        zero_pages: ksm.zero_pages,
        scanned_pages: ksm.pages_scanned,
        full_scans: ksm.full_scans,
        profit_bytes: ksm.profit_bytes,
        cpu: ksm.cpu,
    }
}

/// Pools of other page sizes are not x86's.
fn pool(pool: &Pool) -> Option<PoolSample> {
    let page_size = match pool.page_bytes {
        0x20_0000 => PageSize::Mib2,
        0x4000_0000 => PageSize::Gib1,
        _ => return None,
    };
    let bytes = |pages: u64| pages.saturating_mul(pool.page_bytes);
    Some(PoolSample {
        page_size,
        bytes: bytes(pool.pages),
        free_bytes: bytes(pool.free_pages),
        reserved_bytes: bytes(pool.reserved_pages),
    })
}

fn guest(guest: &Guest, ledger: &Ledger, policy: &Policy, now: Duration) -> DensityGuest {
    let known = ledger.guests.get(&guest.name);
    DensityGuest {
        name: guest.name.clone(),
        vmm: match guest.vmm {
            Vmm::Lighter => metrics::Vmm::Lighter,
            Vmm::Qemu => metrics::Vmm::Qemu,
            Vmm::CloudHypervisor => metrics::Vmm::CloudHypervisor,
        },
        memory_bytes: guest.memory_bytes,
        resident_bytes: guest.cost.resident_bytes,
        cost_bytes: guest.cost.proportional_bytes,
        huge_bytes: guest.cost.huge_bytes,
        merged_bytes: guest.cost.merged_bytes,
        merge_profit_bytes: guest.cost.merge_profit_bytes,
        swapped_bytes: guest.cost.swapped_bytes,
        demand_bytes: known.and_then(GuestLedger::needs_bytes),
        is_spared: known.is_some_and(|it| it.spared(now).is_some()),
        hindrance: guest.hindrance.map(|hindrance| match hindrance {
            Hindrance::Migrating => metrics::Hindrance::Migrating,
            Hindrance::Paused => metrics::Hindrance::Paused,
            Hindrance::Saving => metrics::Hindrance::Saving,
            Hindrance::Unreachable => metrics::Hindrance::Unreachable,
            Hindrance::Watched => metrics::Hindrance::Watched,
        }),
        benched: benched(ledger, Some(&guest.name)),
        survey: guest.survey.as_ref().map(survey),
        balloon: guest.balloon.as_ref().map(|it| balloon(it, known, policy, now)),
    }
}

fn survey(survey: &Survey) -> SurveySample {
    let bytes = |pages: fn(&Chunk) -> u16| -> u64 {
        survey.chunks.iter().map(|chunk| u64::from(pages(chunk)) * PAGE_BYTES).sum()
    };
    let found = vec![
        (Finding::Present, bytes(|chunk| chunk.present_pages)),
        (Finding::Zero, bytes(|chunk| chunk.zero_pages)),
        (Finding::Duplicate, bytes(|chunk| chunk.duplicate_pages)),
        (Finding::Template, bytes(|chunk| chunk.template_pages)),
        (Finding::Written, bytes(|chunk| chunk.written_pages)),
    ];
    SurveySample { age: survey.age, found }
}

fn balloon(
    balloon: &Balloon,
    known: Option<&GuestLedger>,
    policy: &Policy,
    now: Duration,
) -> BalloonSample {
    BalloonSample {
        has_driver: balloon.has_driver,
        target_bytes: balloon.target_bytes,
        actual_bytes: balloon.actual_bytes,
        is_stuck: known.is_some_and(|it| it.is_stuck(balloon, now, &policy.balloon)),
        reported_bytes_total: balloon.reported_bytes_total,
        statistics: balloon.statistics.as_ref().map(statistics),
    }
}

fn statistics(given: &Statistics) -> StatisticsSample {
    StatisticsSample {
        age: given.age,
        total_bytes: given.total_bytes,
        free_bytes: given.free_bytes,
        available_bytes: given.available_bytes,
        cache_bytes: given.caches_bytes,
        swap_in_bytes: given.swap_in_bytes,
        swap_out_bytes: given.swap_out_bytes,
        major_faults: given.major_faults,
        oom_kills: given.oom_kills,
        allocation_stalls: given.allocation_stalls,
        direct_reclaim_bytes: given.direct_reclaim_bytes,
    }
}

#[cfg(test)]
mod tests {
    use memopt::plan::{Action, Step};
    use memopt::situation::{Cost, Pressure};
    use memopt::verify::Outcome;

    use super::*;

    /// A host with one guest, whose driver has counted so many kills.
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
            strangers: Vec::new(),
        };
        let uptime = Duration::from_secs(seconds);
        Situation { unix_seconds: seconds, uptime, host, guests: vec![guest] }
    }

    #[test]
    fn pain_stuck_balloons_and_benches_are_shown() {
        let (mut ledger, policy) = (Ledger::default(), Policy::default());
        ledger.observe(&situation(1, 0), &policy);
        let calm = look(&situation(1, 0), &ledger, &policy);
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
        (0..policy.verify.tries).for_each(|_| ledger.verified(&failed, &policy));

        let seen = look(&situation(100, 2), &ledger, &policy);

        let guest = &seen.guests[0];
        assert!(guest.is_spared && guest.demand_bytes > Some(0), "{guest:?}");
        assert!(guest.balloon.as_ref().unwrap().is_stuck, "{guest:?}");
        assert_eq!(guest.benched, [metrics::Actuator::Balloon]);
        assert_eq!(guest.merge_profit_bytes, Some(-64));
        assert_eq!(seen.host.benched, [metrics::Actuator::Pool]);
        assert_eq!(seen.host.level, metrics::Level::Amber);
        assert_eq!(seen.host.pools.len(), 1, "no others are named");
        assert_eq!(seen.host.pools[0].bytes, 6 << 20);
    }

    /// A host that swaps, waits for memory and has merged zeros, with a guest that swaps, reports free memory and tells everything.
    fn strained() -> Situation {
        let mut strained = situation(200, 2);
        let host = &mut strained.host;
        host.swap_used_bytes = 1;
        host.pressure =
            Some(Pressure { some_10s: 0.25, full_10s: 0.125, some_60s: 0.0, full_60s: 0.0 });
        host.ksm = Some(Ksm { zero_pages: 2, ..Ksm::default() });
        let guest = &mut strained.guests[0];
        guest.cost.swapped_bytes = 3;
        let balloon = guest.balloon.as_mut().unwrap();
        balloon.reported_bytes_total = 4;
        let told = balloon.statistics.as_mut().unwrap();
        told.age = Duration::from_secs(5);
        told.swap_in_bytes = Some(6);
        told.swap_out_bytes = Some(7);
        told.major_faults = Some(8);
        told.allocation_stalls = Some(9);
        told.direct_reclaim_bytes = Some(10);
        strained
    }

    #[test]
    fn what_hosts_and_guests_rarely_show_is_on_the_page() {
        let (mut ledger, policy) = (Ledger::default(), Policy::default());
        ledger.observe(&situation(1, 0), &policy);
        ledger.observe(&strained(), &policy);
        let action = Action::ResizePool { page_bytes: 2 << 20, from_pages: 3, to_pages: 1 };
        let (cpu, reason) = (Duration::ZERO, String::new());
        let step = Step { action, expected_bytes: 1, cpu, reason, pid: None };
        let failed = Outcome::failed(&step, String::new());
        (0..policy.verify.tries).for_each(|_| ledger.verified(&failed, &policy));
        let density = metrics::DensitySample {
            look: Some(look(&strained(), &ledger, &policy)),
            ..Default::default()
        };
        let exporter = metrics::Exporter::new("1", "x", std::time::UNIX_EPOCH).unwrap();
        let page = exporter.render(&metrics::Snapshot { density, ..Default::default() }).unwrap();
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
}
