//! The state of memory optimization for a scrape: plain values that the program provides.

use std::time::{Duration, SystemTime};

use memopt::ledger::{GuestLedger, Ledger, Level};
use memopt::policy::{Actuator, Policy};
use memopt::situation::{Chunk, Guest, Host, Situation, Survey};

use super::labels::{Finding, MissedReason};

/// Bytes per page in a survey.
const PAGE_BYTES: u64 = 4096;

/// The last inspection, and the next runs.
#[derive(Debug, Clone, Default)]
pub struct DensitySample {
    /// The last inspection of the host and all guests; absent before the first.
    pub inspection: Option<InspectionSample>,
    /// The time of the last inspection, set even if it is too old to be shown.
    pub inspected_at: Option<SystemTime>,
    /// Whether a run is under way.
    pub is_running: bool,
    /// When the last successful run ended.
    pub last_success: Option<SystemTime>,
    /// Whether lighter.toml has errors.
    pub are_settings_invalid: bool,
    /// State of each schedule in lighter.toml.
    pub schedules: Vec<ScheduleSample>,
}

/// When one schedule runs next, and how its runs went so far.
#[derive(Debug, Clone, Default)]
pub struct ScheduleSample {
    /// The schedule's name.
    pub name: String,
    /// When the schedule is due next; absent for one that never is.
    pub next: Option<SystemTime>,
    /// How late the last run began; absent before the first run.
    pub lag: Option<Duration>,
    /// Runs that were due and began.
    pub runs: u64,
    /// Times at which the schedule did not run, by reason.
    pub missed: Vec<(MissedReason, u64)>,
}

/// One inspection of the host and its guests.
#[derive(Debug, Clone)]
pub struct InspectionSample {
    /// The host's state.
    pub host: Host,
    /// How short of memory the host is.
    pub level: Level,
    /// The actuators of the host itself that are benched.
    pub benched: Vec<Actuator>,
    /// The guests' states.
    pub guests: Vec<DensityGuest>,
}

/// One guest of any VMM.
#[derive(Debug, Clone)]
pub struct DensityGuest {
    /// The inspected guest, without its survey.
    pub guest: Guest,
    /// The guest's estimated demand, in bytes; absent before its first statistics.
    pub demand_bytes: Option<u64>,
    /// Whether no memory is taken from the guest because it was short of memory.
    pub is_spared: bool,
    /// Whether the guest's balloon should inflate and does not move.
    pub is_balloon_stuck: bool,
    /// The actuators that are benched for the guest.
    pub benched: Vec<Actuator>,
    /// The result of a survey of its pages; absent without one.
    pub survey: Option<SurveySample>,
}

/// The result of a survey of a guest's pages.
#[derive(Debug, Clone)]
pub struct SurveySample {
    /// The age of the survey.
    pub age: Duration,
    /// Bytes of each finding.
    pub found: Vec<(Finding, u64)>,
}

impl InspectionSample {
    /// Combines `situation` with what `ledger` remembers of it.
    pub fn new(situation: &Situation, ledger: &Ledger, policy: &Policy) -> Self {
        let guest = |it: &Guest| DensityGuest::new(it, ledger, policy, situation.uptime);
        Self {
            host: situation.host.clone(),
            level: ledger.level,
            benched: benched(ledger, None),
            guests: situation.guests.iter().map(guest).collect(),
        }
    }
}

impl DensityGuest {
    fn new(guest: &Guest, ledger: &Ledger, policy: &Policy, now: Duration) -> Self {
        let known = ledger.guests.get(&guest.name);
        let is_stuck = |known: &GuestLedger| {
            let balloon = guest.balloon.as_ref();
            balloon.is_some_and(|it| known.is_stuck(it, now, &policy.balloon))
        };
        Self {
            demand_bytes: known.and_then(GuestLedger::needs_bytes),
            is_spared: known.is_some_and(|it| it.spared(now).is_some()),
            is_balloon_stuck: known.is_some_and(is_stuck),
            benched: benched(ledger, Some(&guest.name)),
            survey: guest.survey.as_ref().map(SurveySample::new),
            // The survey has thousands of chunks.
            guest: Guest { survey: None, ..guest.clone() },
        }
    }
}

impl SurveySample {
    fn new(survey: &Survey) -> Self {
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
        Self { age: survey.age, found }
    }
}

/// Returns the actuators that are benched for a guest or for the host itself.
fn benched(ledger: &Ledger, guest: Option<&str>) -> Vec<Actuator> {
    Actuator::ALL.into_iter().filter(|it| ledger.bench(guest, *it).is_some()).collect()
}
