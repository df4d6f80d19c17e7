//! Hosts and guests for the tests of this crate.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Plan;
use crate::foreign::{DiscoveredGuest, Monitor};
use crate::ledger::Level;
use crate::policy::Goal;
use crate::situation::{
    Backing, Balloon, Chunk, Cost, Guest, Host, Ksm, Situation, Statistics, Survey, Vmm,
};
use crate::step::{Action, Step};
use crate::units::{GIB, MIB};

/// A plan with these steps and nothing else.
pub(crate) fn plan_of(steps: Vec<Step>) -> Plan {
    Plan {
        unix_seconds: 0,
        uptime: Duration::ZERO,
        goal: Goal::MaxDensity,
        level: Level::Green,
        wanted_bytes: None,
        expected_bytes: 0,
        later_bytes: 0,
        missed: None,
        survey_bytes: 0,
        domain: None,
        steps,
        skipped: Vec::new(),
        advice: Vec::new(),
    }
}

/// A step without CPU cost.
pub(crate) fn step(action: Action, expected_bytes: i64) -> Step {
    Step { action, expected_bytes, cpu: Duration::ZERO, reason: String::new(), pid: None }
}

/// A guest of `memory_bytes` with a balloon and no survey, which uses as much as a guest of its
/// size does after boot.
pub(crate) fn guest(name: &str, memory_bytes: u64) -> Guest {
    let resident = memory_bytes / 2;
    Guest {
        name: name.to_owned(),
        vmm: Vmm::Lighter,
        pid: 1000 + name.bytes().map(u32::from).sum::<u32>(),
        memory_bytes,
        cost: Cost { resident_bytes: resident, proportional_bytes: resident, ..Cost::default() },
        backing: Backing::Anonymous,
        balloon: Some(Balloon {
            has_driver: true,
            target_bytes: memory_bytes,
            actual_bytes: memory_bytes,
            is_set_by_steps: None,
            reports_free_pages: true,
            reported_bytes_total: 0,
            statistics: Some(statistics(memory_bytes, memory_bytes / 4)),
        }),
        merge_domain: None,
        merged_instead: None,
        is_mergeable: false,
        is_preallocated: false,
        survey: None,
        hindrance: None,
        since_boot: None,
        labels: BTreeMap::new(),
        user: None,
    }
}

/// A fully resident guest that uses `used_bytes` of its memory.
pub(crate) fn idle_guest(name: &str, memory_bytes: u64, used_bytes: u64) -> Guest {
    let mut guest = guest(name, memory_bytes);
    guest.cost.resident_bytes = memory_bytes;
    guest.cost.proportional_bytes = memory_bytes;
    balloon(&mut guest).statistics = Some(statistics(memory_bytes, used_bytes));
    guest
}

/// The statistics of a guest without pressure that uses `used_bytes`; the rest is page cache.
pub(crate) fn statistics(has_bytes: u64, used_bytes: u64) -> Statistics {
    Statistics {
        age: Duration::from_secs(1),
        total_bytes: Some(has_bytes),
        free_bytes: Some(0),
        available_bytes: Some(has_bytes.saturating_sub(used_bytes)),
        caches_bytes: Some(has_bytes.saturating_sub(used_bytes)),
        swap_in_bytes: Some(0),
        swap_out_bytes: Some(0),
        major_faults: Some(0),
        oom_kills: Some(0),
        allocation_stalls: Some(0),
        direct_reclaim_bytes: Some(0),
    }
}

pub(crate) fn balloon(guest: &mut Guest) -> &mut Balloon {
    guest.balloon.as_mut().expect("guests of the fixture have one")
}

pub(crate) fn said(guest: &mut Guest) -> &mut Statistics {
    balloon(guest).statistics.as_mut().expect("guests of the fixture speak")
}

/// A host of 64 GiB with `available` percent of it available, an idle ksmd, and these guests.
pub(crate) fn situation(available: u64, guests: Vec<Guest>) -> Situation {
    Situation {
        unix_seconds: 1_800_000_000,
        uptime: Duration::from_secs(10_000),
        host: Host {
            total_bytes: 64 * GIB,
            available_bytes: 64 * GIB / 100 * available,
            swap_used_bytes: 0,
            pressure: None,
            ksm: Some(ksm()),
            pools: Vec::new(),
            merged_domain: None,
            other_processes: Vec::new(),
        },
        guests,
    }
}

pub(crate) fn ksm() -> Ksm {
    Ksm { cpu: Some(Duration::ZERO), ..Ksm::default() }
}

/// A survey of `count` chunks, each with this many duplicate and written pages.
pub(crate) fn survey(count: u32, duplicate_pages: u16, written_pages: u16) -> Survey {
    let chunk = |index| Chunk {
        index,
        present_pages: 512,
        duplicate_pages,
        written_pages,
        is_huge: true,
        ..Chunk::default()
    };
    Survey {
        age: Duration::from_secs(60),
        sampled: 1.0,
        copies: 8.0,
        chunks: (0..count).map(chunk).collect(),
    }
}

/// A guest of a merge domain; half of its pages are duplicates.
pub(crate) fn clone_of(name: &str, domain: &str) -> Guest {
    let mut guest = idle_guest(name, GIB, 900 * MIB);
    guest.merge_domain = Some(domain.to_owned());
    guest.survey = Some(survey(512, 256, 0));
    guest
}

/// A guest that process `pid` claims to run.
pub(crate) fn found(pid: u32, name: &str) -> DiscoveredGuest {
    DiscoveredGuest {
        pid,
        started: 0,
        name: name.to_owned(),
        vmm: Vmm::Qemu,
        uid: None,
        memory_bytes: 0,
        backing: Backing::Anonymous,
        is_mergeable: false,
        has_passthrough: false,
        is_incoming: false,
        monitor: Monitor::None("a test"),
    }
}

/// The sample `seconds` after `situation`.
pub(crate) fn later(situation: &Situation, seconds: u64) -> Situation {
    let mut later = situation.clone();
    later.uptime += Duration::from_secs(seconds);
    later.unix_seconds += seconds;
    later
}
