//! What a look found, as Prometheus sees it.

use std::time::Duration;

use memopt::ledger::{GuestLedger, Ledger, Level};
use memopt::policy::{self, Policy};
use memopt::situation::{Balloon, Guest, Hindrance, Host, Ksm, Pool, Situation, Statistics, Vmm};
use metrics::{
    BalloonSample, DensityGuest, DensityHost, KsmSample, LookSample, PageSize, PoolSample,
    PressureSample, StatisticsSample,
};

use super::tally::of_actuator;

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
        demand_bytes: known.and_then(|it| it.demand).map(|demand| demand.bytes()),
        is_spared: known.is_some_and(|it| it.spared(now).is_some()),
        hindrance: guest.hindrance.map(|hindrance| match hindrance {
            Hindrance::Migrating => metrics::Hindrance::Migrating,
            Hindrance::Paused => metrics::Hindrance::Paused,
            Hindrance::Saving => metrics::Hindrance::Saving,
            Hindrance::Unreachable => metrics::Hindrance::Unreachable,
        }),
        benched: benched(ledger, Some(&guest.name)),
        balloon: guest.balloon.as_ref().map(|it| balloon(it, known, policy, now)),
    }
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
