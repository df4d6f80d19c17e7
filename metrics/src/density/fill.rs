//! Puts a [`DensitySample`] into the families.

use super::catalogue::{DensityCounted, DensityScraped};
use super::labels::{
    Actuator, Hindrance, Level, MissedReason, RunOutcome, RunTrigger, ScheduleName, Stall, Verdict,
    WindowEnd,
};
use super::sample::{
    BalloonSample, DensityGuest, DensityHost, DensitySample, KsmSample, ScheduleSample,
    StatisticsSample,
};
use crate::fill::{number, unix_seconds};
use crate::labels::GuestName;

/// Makes every series exist from the start, as for the other counters.
pub(crate) fn show_zeros(counted: &DensityCounted) {
    for counter in [
        &counted.looks,
        &counted.looks_failed,
        &counted.plans,
        &counted.surveys,
        &counted.surveys_failed,
        &counted.reliefs,
        &counted.reliefs_failed,
    ] {
        counter.add(&(), 0.0);
    }
    for trigger in RunTrigger::ALL {
        counted.runs_started.add(&(*trigger,), 0.0);
        counted.runs_not_begun.add(&(*trigger,), 0.0);
        counted.run_duration.touch(&(*trigger,));
        for outcome in RunOutcome::ALL {
            counted.runs_ended.add(&(*trigger, *outcome), 0.0);
        }
    }
    for end in WindowEnd::ALL {
        counted.windows.add(&(*end,), 0.0);
    }
    for actuator in Actuator::ALL {
        for counter in [
            &counted.steps,
            &counted.steps_failed,
            &counted.expected,
            &counted.verified,
            &counted.given,
        ] {
            counter.add(&(*actuator,), 0.0);
        }
        for verdict in Verdict::ALL {
            counted.verifications.add(&(*actuator, *verdict), 0.0);
        }
    }
}

/// All that a scrape shows.
pub(crate) fn fill(families: &DensityScraped, sample: &DensitySample) {
    families.running.set(&(), flag(sample.is_running));
    families.settings_wrong.set(&(), flag(sample.are_settings_wrong));
    if let Some(at) = sample.looked {
        families.look.set(&(), unix_seconds(at));
    }
    if let Some(at) = sample.last_success {
        families.last_success.set(&(), unix_seconds(at));
    }
    sample.schedules.iter().for_each(|it| schedule(families, it));
    if let Some(look) = &sample.look {
        host(families, &look.host);
        look.guests.iter().for_each(|it| guest(families, it));
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
    for reason in MissedReason::ALL {
        families.schedule_missed.add(&(name(), *reason), 0.0);
    }
    for (reason, count) in &sample.missed {
        families.schedule_missed.add(&(name(), *reason), number(*count));
    }
}

fn host(families: &DensityScraped, sample: &DensityHost) {
    for level in Level::ALL {
        families.level.set(&(*level,), flag(*level == sample.level));
    }
    families.total.set(&(), number(sample.total_bytes));
    families.swapped.set(&(), number(sample.swap_used_bytes));
    if let Some(pressure) = sample.pressure {
        families.pressure.set(&(Stall::Some,), pressure.some);
        families.pressure.set(&(Stall::Full,), pressure.full);
    }
    for pool in &sample.pools {
        families.pool.set(&(pool.page_size,), number(pool.bytes));
        families.pool_free.set(&(pool.page_size,), number(pool.free_bytes));
        families.pool_reserved.set(&(pool.page_size,), number(pool.reserved_bytes));
    }
    for actuator in Actuator::ALL {
        families.host_benched.set(&(*actuator,), flag(sample.benched.contains(actuator)));
    }
    if let Some(ksm) = &sample.ksm {
        merging(families, ksm);
    }
}

fn merging(families: &DensityScraped, sample: &KsmSample) {
    families.ksm_running.set(&(), flag(sample.is_running));
    families.ksm_shared.set(&(), number(sample.shared_pages));
    families.ksm_sharing.set(&(), number(sample.sharing_pages));
    families.ksm_unshared.set(&(), number(sample.unshared_pages));
    families.ksm_volatile.set(&(), number(sample.volatile_pages));
    families.ksm_zero.set(&(), number(sample.zero_pages));
    families.ksm_scanned.add(&(), number(sample.scanned_pages));
    families.ksm_full_scans.add(&(), number(sample.full_scans));
    families.ksm_profit.set(&(), signed(sample.profit_bytes));
    if let Some(cpu) = sample.cpu {
        families.ksm_cpu.add(&(), cpu.as_secs_f64());
    }
}

fn guest(families: &DensityScraped, sample: &DensityGuest) {
    let name = || GuestName(sample.name.clone());
    families.guest_vmm.set(&(name(), sample.vmm), 1.0);
    for (gauge, value) in [
        (&families.guest_memory, sample.memory_bytes),
        (&families.guest_cost, sample.cost_bytes),
        (&families.guest_resident, sample.resident_bytes),
        (&families.guest_huge, sample.huge_bytes),
        (&families.guest_swapped, sample.swapped_bytes),
    ] {
        gauge.set(&(name(),), number(value));
    }
    if let Some(bytes) = sample.merged_bytes {
        families.guest_merged.set(&(name(),), number(bytes));
    }
    if let Some(bytes) = sample.merge_profit_bytes {
        families.guest_profit.set(&(name(),), signed(bytes));
    }
    if let Some(bytes) = sample.demand_bytes {
        families.guest_demand.set(&(name(),), number(bytes));
    }
    families.guest_pain.set(&(name(),), flag(sample.is_spared));
    for hindrance in Hindrance::ALL {
        let holds = sample.hindrance == Some(*hindrance);
        families.guest_hindered.set(&(name(), *hindrance), flag(holds));
    }
    for actuator in Actuator::ALL {
        let holds = sample.benched.contains(actuator);
        families.guest_benched.set(&(name(), *actuator), flag(holds));
    }
    if let Some(survey) = &sample.survey {
        families.guest_survey_age.set(&(name(),), survey.age.as_secs_f64());
        for (finding, bytes) in &survey.found {
            families.guest_surveyed.set(&(name(), *finding), number(*bytes));
        }
    }
    if let Some(sample) = &sample.balloon {
        balloon(families, &(name(),), sample);
    }
}

fn balloon(families: &DensityScraped, name: &(GuestName,), sample: &BalloonSample) {
    families.balloon_driver.set(name, flag(sample.has_driver));
    families.balloon_target.set(name, number(sample.target_bytes));
    families.balloon_actual.set(name, number(sample.actual_bytes));
    families.balloon_stuck.set(name, flag(sample.is_stuck));
    families.balloon_reported.add(name, number(sample.reported_bytes_total));
    if let Some(sample) = &sample.statistics {
        statistics(families, name, sample);
    }
}

fn statistics(families: &DensityScraped, name: &(GuestName,), sample: &StatisticsSample) {
    families.stats_age.set(name, sample.age.as_secs_f64());
    for (gauge, value) in [
        (&families.stats_total, sample.total_bytes),
        (&families.stats_free, sample.free_bytes),
        (&families.stats_available, sample.available_bytes),
        (&families.stats_caches, sample.cache_bytes),
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
