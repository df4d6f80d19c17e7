//! Copies a [`DensitySample`] into the families.

use memopt::ledger::Level;
use memopt::policy::Actuator;
use memopt::situation::{Balloon, Hindrance, Host, Ksm, Pool, Statistics};
use memopt::verify::Verdict;

use super::catalogue::{DensityCounted, DensityScraped};
use super::labels::{
    MissedReason, PageSize, RunOutcome, RunTrigger, ScheduleName, Stall, WindowEnd,
};
use super::sample::{DensityGuest, DensitySample, InspectionSample, ScheduleSample};
use crate::labels::{FixedLabel, GuestName};
use crate::number::{number, unix_seconds};

/// Creates every series at the start, as for the other counters.
pub(crate) fn show_zeros(counted: &DensityCounted) {
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
        counter.add(&(), 0.0);
    }
    for trigger in RunTrigger::EVERY {
        counted.runs_started.add(&(*trigger,), 0.0);
        counted.runs_not_begun.add(&(*trigger,), 0.0);
        counted.run_duration.touch(&(*trigger,));
        for outcome in RunOutcome::EVERY {
            counted.runs_ended.add(&(*trigger, *outcome), 0.0);
        }
    }
    for end in WindowEnd::EVERY {
        counted.windows.add(&(*end,), 0.0);
    }
    for actuator in Actuator::EVERY {
        for counter in [
            &counted.steps,
            &counted.steps_failed,
            &counted.expected,
            &counted.verified,
            &counted.given,
        ] {
            counter.add(&(*actuator,), 0.0);
        }
        for verdict in Verdict::EVERY {
            counted.verifications.add(&(*actuator, *verdict), 0.0);
        }
    }
}

/// Fills all families of one scrape.
pub(crate) fn fill(families: &DensityScraped, sample: &DensitySample) {
    families.running.set(&(), flag(sample.is_running));
    families.settings_invalid.set(&(), flag(sample.are_settings_invalid));
    if let Some(at) = sample.inspected_at {
        families.inspection.set(&(), unix_seconds(at));
    }
    if let Some(at) = sample.last_success {
        families.last_success.set(&(), unix_seconds(at));
    }
    sample.schedules.iter().for_each(|it| schedule(families, it));
    if let Some(inspection) = &sample.inspection {
        remembered(families, inspection);
        host(families, &inspection.host);
        inspection.guests.iter().for_each(|it| guest(families, it));
    }
}

fn schedule(families: &DensityScraped, sample: &ScheduleSample) {
    let name = || ScheduleName(sample.name.clone());
    if let Some(next) = sample.next {
        families.next_run.set(&(name(),), unix_seconds(next));
    }
    if let Some(lag) = sample.lag {
        families.schedule_lag.set(&(name(),), lag.as_secs_f64());
    }
    families.schedule_runs.add(&(name(),), number(sample.runs));
    for reason in MissedReason::EVERY {
        families.schedule_missed.add(&(name(), *reason), 0.0);
    }
    for (reason, count) in &sample.missed {
        families.schedule_missed.add(&(name(), *reason), number(*count));
    }
}

/// Fills what the ledger remembers of the host.
fn remembered(families: &DensityScraped, sample: &InspectionSample) {
    for level in Level::EVERY {
        families.level.set(&(*level,), flag(*level == sample.level));
    }
    for actuator in Actuator::EVERY {
        families.host_benched.set(&(*actuator,), flag(sample.benched.contains(actuator)));
    }
}

fn host(families: &DensityScraped, sample: &Host) {
    families.total.set(&(), number(sample.total_bytes));
    families.swapped.set(&(), number(sample.swap_used_bytes));
    if let Some(pressure) = sample.pressure {
        families.pressure.set(&(Stall::Some,), pressure.some_10s);
        families.pressure.set(&(Stall::Full,), pressure.full_10s);
    }
    sample.pools.iter().for_each(|it| pool(families, it));
    if let Some(ksm) = &sample.ksm {
        merging(families, ksm);
    }
}

/// Fills the families of one pool, if its page size exists on x86.
fn pool(families: &DensityScraped, pool: &Pool) {
    let size = match pool.page_bytes {
        0x20_0000 => PageSize::Mib2,
        0x4000_0000 => PageSize::Gib1,
        _ => return,
    };
    let bytes = |pages: u64| number(pages.saturating_mul(pool.page_bytes));
    families.pool.set(&(size,), bytes(pool.pages));
    families.pool_free.set(&(size,), bytes(pool.free_pages));
    families.pool_reserved.set(&(size,), bytes(pool.reserved_pages));
}

fn merging(families: &DensityScraped, sample: &Ksm) {
    families.ksm_running.set(&(), flag(sample.run == 1));
    families.ksm_shared.set(&(), number(sample.pages_shared));
    families.ksm_sharing.set(&(), number(sample.pages_sharing));
    families.ksm_unshared.set(&(), number(sample.pages_unshared));
    families.ksm_volatile.set(&(), number(sample.pages_volatile));
    families.ksm_zero.set(&(), number(sample.zero_pages));
    families.ksm_scanned.add(&(), number(sample.pages_scanned));
    families.ksm_full_scans.add(&(), number(sample.full_scans));
    families.ksm_profit.set(&(), signed(sample.profit_bytes));
    if let Some(cpu) = sample.cpu {
        families.ksm_cpu.add(&(), cpu.as_secs_f64());
    }
}

fn guest(families: &DensityScraped, sample: &DensityGuest) {
    let seen = &sample.guest;
    let name = || GuestName(seen.name.clone());
    families.guest_vmm.set(&(name(), seen.vmm), 1.0);
    for (gauge, value) in [
        (&families.guest_memory, seen.memory_bytes),
        (&families.guest_cost, seen.cost.proportional_bytes),
        (&families.guest_resident, seen.cost.resident_bytes),
        (&families.guest_huge, seen.cost.huge_bytes),
        (&families.guest_swapped, seen.cost.swapped_bytes),
    ] {
        gauge.set(&(name(),), number(value));
    }
    if let Some(bytes) = seen.cost.merged_bytes {
        families.guest_merged.set(&(name(),), number(bytes));
    }
    if let Some(bytes) = seen.cost.merge_profit_bytes {
        families.guest_profit.set(&(name(),), signed(bytes));
    }
    if let Some(bytes) = sample.demand_bytes {
        families.guest_demand.set(&(name(),), number(bytes));
    }
    families.guest_spared.set(&(name(),), flag(sample.is_spared));
    for hindrance in Hindrance::EVERY {
        let holds = seen.hindrance == Some(*hindrance);
        families.guest_hindered.set(&(name(), *hindrance), flag(holds));
    }
    for actuator in Actuator::EVERY {
        let holds = sample.benched.contains(actuator);
        families.guest_benched.set(&(name(), *actuator), flag(holds));
    }
    if let Some(survey) = &sample.survey {
        families.guest_survey_age.set(&(name(),), survey.age.as_secs_f64());
        for (finding, bytes) in &survey.found {
            families.guest_surveyed.set(&(name(), *finding), number(*bytes));
        }
    }
    if let Some(seen) = &seen.balloon {
        families.balloon_stuck.set(&(name(),), flag(sample.is_balloon_stuck));
        balloon(families, &(name(),), seen);
    }
}

fn balloon(families: &DensityScraped, name: &(GuestName,), sample: &Balloon) {
    families.balloon_driver.set(name, flag(sample.has_driver));
    families.balloon_target.set(name, number(sample.target_bytes));
    families.balloon_actual.set(name, number(sample.actual_bytes));
    families.balloon_reported.add(name, number(sample.reported_bytes_total));
    if let Some(sample) = &sample.statistics {
        statistics(families, name, sample);
    }
}

fn statistics(families: &DensityScraped, name: &(GuestName,), sample: &Statistics) {
    families.stats_age.set(name, sample.age.as_secs_f64());
    for (gauge, value) in [
        (&families.stats_total, sample.total_bytes),
        (&families.stats_free, sample.free_bytes),
        (&families.stats_available, sample.available_bytes),
        (&families.stats_caches, sample.caches_bytes),
    ] {
        if let Some(value) = value {
            gauge.set(name, number(value));
        }
    }
    for (counter, value) in [
        (&families.stats_swap_in, sample.swap_in_bytes),
        (&families.stats_swap_out, sample.swap_out_bytes),
        (&families.stats_major_faults, sample.major_faults),
        (&families.stats_oom_kills, sample.oom_kills),
        (&families.stats_stalls, sample.allocation_stalls),
        (&families.stats_direct_reclaim, sample.direct_reclaim_bytes),
    ] {
        if let Some(value) = value {
            counter.add(name, number(value));
        }
    }
}

fn flag(holds: bool) -> f64 {
    f64::from(u8::from(holds))
}

#[expect(clippy::cast_precision_loss, reason = "the exposition format has no other number")]
fn signed(value: i64) -> f64 {
    value as f64
}
