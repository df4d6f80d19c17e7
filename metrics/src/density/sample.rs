//! What a scrape shows of memory optimization: plain values that the program hands over.

use std::time::{Duration, SystemTime};

use memopt::ledger::{GuestLedger, Ledger, Level};
use memopt::policy::{Actuator, Policy};
use memopt::situation::{Chunk, Guest, Host, Situation, Survey};

use super::labels::{Finding, MissedReason};

/// Bytes of the pages that a survey counts.
const PAGE_BYTES: u64 = 4096;

/// What memory optimization has seen and is about to do.
#[derive(Debug, Clone, Default)]
pub struct DensitySample {
    /// The last inspection of the host and all guests; absent before the first.
    pub inspection: Option<InspectionSample>,
    /// When that was, also when it is too old to be shown.
    pub inspected_at: Option<SystemTime>,
    /// Whether a run is under way.
    pub is_running: bool,
    /// When the last run ended well.
    pub last_success: Option<SystemTime>,
    /// Whether lighter.toml is wrong.
    pub are_settings_invalid: bool,
    /// What is scheduled.
    pub schedules: Vec<ScheduleSample>,
}

/// One schedule.
#[derive(Debug, Clone, Default)]
pub struct ScheduleSample {
    /// Its name.
    pub name: String,
    /// When it is due next; absent for one that never is.
    pub next: Option<SystemTime>,
    /// How late its last run began; absent before it.
    pub lag: Option<Duration>,
    /// Runs that were due and begun.
    pub runs: u64,
    /// Times at which it did not run.
    pub missed: Vec<(MissedReason, u64)>,
}

/// One inspection of the host and its guests.
#[derive(Debug, Clone)]
pub struct InspectionSample {
    /// The host.
    pub host: Host,
    /// How short of memory it is.
    pub level: Level,
    /// The actuators of the host itself that are benched.
    pub benched: Vec<Actuator>,
    /// The guests.
    pub guests: Vec<DensityGuest>,
}

/// One guest, of whichever program.
#[derive(Debug, Clone)]
pub struct DensityGuest {
    /// What was seen of it, its survey left out.
    pub guest: Guest,
    /// What it is taken to need, in bytes; absent while it has not said.
    pub demand_bytes: Option<u64>,
    /// Whether it keeps everything for having shown a want of memory.
    pub is_spared: bool,
    /// Whether its balloon should inflate and does not move.
    pub is_balloon_stuck: bool,
    /// The actuators that are not used for it.
    pub benched: Vec<Actuator>,
    /// What a survey of its pages found; absent without one.
    pub survey: Option<SurveySample>,
}

/// What a survey of a guest's pages found.
#[derive(Debug, Clone)]
pub struct SurveySample {
    /// How old that is.
    pub age: Duration,
    /// Bytes of each kind.
    pub found: Vec<(Finding, u64)>,
}

impl InspectionSample {
    /// What `situation` shows, with what `ledger` remembers of it.
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
            // Its chunks are thousands.
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

/// The actuators that are benched, for a guest or the host itself.
fn benched(ledger: &Ledger, guest: Option<&str>) -> Vec<Actuator> {
    Actuator::ALL.into_iter().filter(|it| ledger.bench(guest, *it).is_some()).collect()
}
