//! One window in which ksmd runs: how fast, and for how long.
//!
//! ksmd looks at `pages_to_scan` pages, sleeps `sleep_millisecs`, and begins again. The window sets
//! the sleep once and steers the pages by what ksmd was seen to use. With a batch of P pages that
//! cost c each and a sleep of S, ksmd's share of a CPU is s = Pc / (S + Pc); so s / (1 - s) is
//! proportional to P, and one measurement tells by which factor P has to change, whatever c is. c
//! varies a lot: a first look at a page is a checksum (1 µs measured), later ones search two trees
//! (4 to 6 µs).
//!
//! It ends when all memory was looked at twice and going on brings hardly anything, when the time
//! is over, when there is nothing to merge, or when somebody else changes a setting. Twice, since a
//! page must be found unchanged by a second look before it can be merged with another one. After
//! that the window goes on for as long as each eighth of the memory brings a tenth of what a page
//! brought before on the average: pages that came late are merged then. A third look at what has no
//! equal is the dearest of all, for both trees are searched, and the first eighth of it tells
//! whether the rest is worth it.
//!
//! ksmd begins where it stood, perhaps near the end of a scan of guests that are gone: their pages
//! count as profit until it comes by. So a first scan that is the rest of one is none, and what
//! merging brings is reckoned from the end of the first whole one.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::knob::{Foreign, Knob, Set};
use crate::observe::KsmKnobs;
use crate::situation::Ksm;

/// What a page is taken to cost ksmd before anything was measured: 171,000 pages a second of CPU
/// time were seen.
const PAGE_COST: f64 = 5.8e-6;
/// How long a batch and the sleep after it should take together, in seconds. Long against a tick of
/// the kernel (4 ms), short against the time between two samples; writing `run` waits for the
/// batch.
const PERIOD: f64 = 0.1;
/// The shortest sleep, in seconds: a tick.
const SLEEP_MIN: f64 = 0.004;
/// The largest batch. At 6 µs a page it takes 0.6 s.
const BATCH_MAX: f64 = 100_000.0;
/// A limit is aimed at from below by this factor, so that what is measured next stays below it.
const AIM: f64 = 0.92;
/// Below this part of the limit the batch is made larger.
const SLACK: f64 = 0.8;
/// The batch changes by this factor at most from one sample to the next.
const STEP: f64 = 4.0;
/// Two samples nearer to each other say nothing about how fast ksmd is.
const STEER_AFTER: Duration = Duration::from_millis(200);
/// Looks at all memory before flat profit counts.
const FULL_SCANS: u64 = 2;
/// A first scan with less than this part of the pages of the second was the rest of one.
const SCAN_PART: f64 = 0.75;
/// Then one part in this many of the memory is looked at before it is seen what that gained.
const STRETCH_PART: u64 = 8;
/// A gain below this, reckoned for all memory, is flat.
const FLAT_BYTES: i64 = 1 << 20;
/// So is one below one part in this many of what as many pages gained on the average.
const FLAT_PART: i64 = 10;
/// After this long without any progress there is nothing to merge.
const IDLE: Duration = Duration::from_secs(10);

/// What a window may use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// The share of one CPU that ksmd may use, above 0, up to 0.95.
    pub cpu_share: f64,
    /// CPU time that ksmd may use in all.
    pub cpu_time: Duration,
    /// Pages that it may look at in a second.
    pub pages_per_second: u64,
    /// How long the window may last.
    pub time: Duration,
}

/// What else a window sets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Whether pages that were found unique are left out for a while; as it is when absent.
    pub smart_scan: Option<bool>,
    /// Whether pages of zeros become the kernel's zero page; as it is when absent.
    pub use_zero_pages: Option<bool>,
}

impl Options {
    /// For windows over guests' memory: pages of zeros need no tree then. Without it most huge
    /// pages of zeros were seen to be as they were after two looks (Linux 6.18); ADR 17 has
    /// figures.
    pub const GUESTS: Self = Self { smart_scan: None, use_zero_pages: Some(true) };
}

/// What is seen of ksmd at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Its counters, with its CPU time.
    pub ksm: Ksm,
    /// Its settings.
    pub knobs: KsmKnobs,
}

/// Why a window ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// All memory was looked at twice or more, and merging gains hardly anything more.
    Flat,
    /// Its time was over.
    TimeUsed,
    /// ksmd has used the CPU time that it might.
    CpuTimeUsed,
    /// No process lets its memory be merged.
    NothingToMerge,
    /// Somebody else drives ksmd.
    Foreign(Foreign),
    /// It was called off.
    CalledOff,
}

/// What a window did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why it ended.
    pub end: End,
    /// How long it lasted.
    pub elapsed: Duration,
    /// CPU time that ksmd used; absent when it cannot be told.
    pub cpu: Option<Duration>,
    /// Pages that were looked at.
    pub pages_scanned: u64,
    /// Times that all mergeable memory was looked at.
    pub full_scans: u64,
    /// By how much the profit of merging grew. Signed.
    pub gain_bytes: i64,
}

/// A window: feed it samples, make the settings that it asks for, until it has an [`Outcome`].
#[derive(Debug, Clone)]
pub struct Window {
    budget: Budget,
    options: Options,
    progress: Option<Progress>,
    outcome: Option<Outcome>,
}

/// A window that has begun.
#[derive(Debug, Clone)]
struct Progress {
    begun: Duration,
    first: Ksm,
    last: Ksm,
    at: Duration,
    /// What was seen at the end of each of the first two full scans.
    scans: Vec<Ksm>,
    /// When something was last seen to move.
    moved_at: Duration,
    /// Where the stretch began whose gain is seen at its end.
    stretch: Ksm,
    batch: f64,
    /// What the knobs were set to.
    wanted: Vec<Set>,
}

impl Window {
    /// A window that begins with its first sample. Budgets out of range are brought into it.
    #[must_use]
    pub fn new(budget: Budget, options: Options) -> Self {
        let share = if budget.cpu_share.is_finite() { budget.cpu_share } else { 0.0 };
        let budget = Budget {
            cpu_share: share.clamp(0.001, 0.95),
            cpu_time: budget.cpu_time,
            pages_per_second: budget.pages_per_second.clamp(1, 100_000_000),
            time: budget.time,
        };
        Self { budget, options, progress: None, outcome: None }
    }

    /// What the window did; absent while it lasts.
    #[must_use]
    pub const fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Takes in what is seen at `now` (any clock that never goes back), and says what to set. When
    /// there is an [`Self::outcome`] then, all settings are to be put back.
    pub fn handle(&mut self, sample: &Sample, now: Duration) -> Vec<Set> {
        if self.outcome.is_some() {
            return Vec::new();
        }
        let Some(progress) = &mut self.progress else { return self.begin(sample, now) };
        if let Some(foreign) = foreign(&progress.wanted, &sample.knobs) {
            self.end(End::Foreign(foreign), &sample.ksm, now);
            return Vec::new();
        }
        let (before, at) = (progress.last, progress.at);
        progress.note(&sample.ksm, now);
        if let Some(end) = progress.is_over(&self.budget, &before, now) {
            self.end(end, &sample.ksm, now);
            return Vec::new();
        }
        let factor = factor(&self.budget, &before, &sample.ksm, now.saturating_sub(at));
        progress.steer(factor)
    }

    /// Ends it early: somebody called it off, or a setting was found to be another's.
    pub fn stop(&mut self, end: End, sample: &Sample, now: Duration) {
        if self.outcome.is_none() {
            self.end(end, &sample.ksm, now);
        }
    }

    fn begin(&mut self, sample: &Sample, now: Duration) -> Vec<Set> {
        let share = self.budget.cpu_share;
        let sleep = ((1.0 - share) * PERIOD).max(SLEEP_MIN);
        let by_share = share / (1.0 - share) * sleep / PAGE_COST;
        let by_rate = self.budget.pages_per_second as f64 * sleep;
        let batch = (by_share.min(by_rate) * AIM).clamp(1.0, BATCH_MAX);
        let knobs = &sample.knobs;
        let mut sets = Vec::new();
        // The advisor first: pages_to_scan cannot be written while it decides. ksmd last: it begins
        // with everything set.
        if knobs.advisor.is_some() {
            sets.push(Set::new(Knob::AdvisorMode, 0));
        }
        sets.push(Set::new(Knob::SleepMillisecs, (sleep * 1000.0).round() as u64));
        sets.push(Set::new(Knob::PagesToScan, batch as u64));
        for (knob, wanted, is_there) in [
            (Knob::SmartScan, self.options.smart_scan, knobs.smart_scan.is_some()),
            (Knob::UseZeroPages, self.options.use_zero_pages, knobs.use_zero_pages.is_some()),
        ] {
            if let Some(wanted) = wanted.filter(|_| is_there) {
                sets.push(Set::new(knob, u64::from(wanted)));
            }
        }
        sets.push(Set::new(Knob::Run, 1));
        self.progress = Some(Progress {
            begun: now,
            first: sample.ksm,
            last: sample.ksm,
            at: now,
            scans: Vec::new(),
            moved_at: now,
            stretch: sample.ksm,
            batch,
            wanted: sets.clone(),
        });
        sets
    }

    fn end(&mut self, end: End, last: &Ksm, now: Duration) {
        let (first, begun) = self.progress.as_ref().map_or((*last, now), |it| (it.first, it.begun));
        self.outcome = Some(Outcome {
            end,
            elapsed: now.saturating_sub(begun),
            cpu: last.cpu.zip(first.cpu).map(|(last, first)| last.saturating_sub(first)),
            pages_scanned: last.pages_scanned.saturating_sub(first.pages_scanned),
            full_scans: last.full_scans.saturating_sub(first.full_scans),
            gain_bytes: last.profit_bytes.saturating_sub(first.profit_bytes),
        });
    }
}

impl Progress {
    fn note(&mut self, ksm: &Ksm, now: Duration) {
        let has_moved = ksm.full_scans != self.last.full_scans
            || ksm.pages_scanned != self.last.pages_scanned
            || ksm.pages_sharing != self.last.pages_sharing;
        if has_moved {
            self.moved_at = now;
        }
        if ksm.full_scans != self.last.full_scans && self.scans.len() < 2 {
            self.scans.push(*ksm);
        }
        (self.last, self.at) = (*ksm, now);
    }

    /// Whether it is over, and why. `before` is what was seen before the last.
    fn is_over(&mut self, budget: &Budget, before: &Ksm, now: Duration) -> Option<End> {
        if self.is_flat() {
            return Some(End::Flat);
        }
        if now.saturating_sub(self.begun) >= budget.time {
            return Some(End::TimeUsed);
        }
        // At the sample that is nearest to the limit: half of what the last interval took may be
        // too much, or too little.
        let used = cpu_between(&self.first, &self.last) + cpu_between(before, &self.last) / 2;
        if used >= budget.cpu_time {
            return Some(End::CpuTimeUsed);
        }
        (now.saturating_sub(self.moved_at) >= IDLE).then_some(End::NothingToMerge)
    }

    /// Whether a stretch has just come to its end that gained too little.
    fn is_flat(&mut self) -> bool {
        if self.full_scans(&self.stretch) < FULL_SCANS {
            self.stretch = self.last;
            return false;
        }
        let looks = |since: &Ksm| match self.last.pages_scanned.saturating_sub(since.pages_scanned)
        {
            // Before Linux 6.6 nobody counts pages.
            0 => self.last.full_scans.saturating_sub(since.full_scans) as f64,
            pages => pages as f64,
        };
        let gain = |since: &Ksm| self.last.profit_bytes.saturating_sub(since.profit_bytes) as f64;
        let (all, stretch) = (looks(&self.first), looks(&self.stretch));
        // What was looked at since the window began was all memory, so many times or a little more.
        let part = stretch * self.full_scans(&self.last) as f64 / all.max(1.0);
        if part < 1.0 / STRETCH_PART as f64 {
            return false;
        }
        let base = self.scans.get(usize::from(self.began_amid_a_scan())).unwrap_or(&self.first);
        let usual = gain(base) * stretch / all.max(1.0) / FLAT_PART as f64;
        let is_flat = gain(&self.stretch) <= usual.max(FLAT_BYTES as f64 * part);
        self.stretch = self.last;
        is_flat
    }

    /// Scans of all memory until `then`.
    fn full_scans(&self, then: &Ksm) -> u64 {
        let scans = then.full_scans.saturating_sub(self.first.full_scans);
        scans.saturating_sub(self.began_amid_a_scan().into())
    }

    /// Whether the first scan was clearly less than the one after it.
    fn began_amid_a_scan(&self) -> bool {
        let pages =
            |from: &Ksm, to: &Ksm| to.pages_scanned.saturating_sub(from.pages_scanned) as f64;
        match &self.scans[..] {
            [one, two] => pages(&self.first, one) < SCAN_PART * pages(one, two),
            _ => false,
        }
    }

    /// Changes the batch by `factor`, if that is worth a setting.
    fn steer(&mut self, factor: Option<f64>) -> Vec<Set> {
        let Some(factor) = factor else { return Vec::new() };
        let batch = (self.batch * factor.clamp(1.0 / STEP, STEP)).clamp(1.0, BATCH_MAX);
        let set = Set::new(Knob::PagesToScan, batch as u64);
        let Some(wanted) = self.wanted.iter_mut().find(|set| set.knob == Knob::PagesToScan) else {
            return Vec::new();
        };
        self.batch = batch;
        if *wanted == set {
            return Vec::new();
        }
        *wanted = set;
        vec![set]
    }
}

/// By which factor the batch has to change, from what ksmd used between two samples; `None` when it
/// is within its limits and near one of them, or did nothing.
fn factor(budget: &Budget, before: &Ksm, now: &Ksm, elapsed: Duration) -> Option<f64> {
    if elapsed < STEER_AFTER {
        return None;
    }
    let seconds = elapsed.as_secs_f64();
    let scanned = now.pages_scanned.saturating_sub(before.pages_scanned) as f64 / seconds;
    let share = cpu_between(before, now).as_secs_f64() / seconds;
    let odds = |share: f64| share / (1.0 - share.min(0.99));
    // How much of each limit is used, and the factor that brings it to the aim; what was not seen
    // limits nothing.
    let limits = [
        (share / budget.cpu_share, odds(budget.cpu_share * AIM) / odds(share)),
        (scanned / budget.pages_per_second as f64, budget.pages_per_second as f64 * AIM / scanned),
    ];
    let seen = || limits.iter().filter(|(used, _)| *used > 0.0);
    let is_over = seen().any(|(used, _)| *used > 1.0);
    let is_slack = seen().all(|(used, _)| *used < SLACK);
    let smallest = seen().map(|(_, factor)| *factor).reduce(f64::min)?;
    (is_over || is_slack).then_some(smallest)
}

/// CPU time that ksmd has used: where nobody counts it, what its pages were taken to cost at the
/// beginning.
fn cpu_between(before: &Ksm, now: &Ksm) -> Duration {
    let counted = now.cpu.zip(before.cpu).map(|(now, before)| now.saturating_sub(before));
    let pages = now.pages_scanned.saturating_sub(before.pages_scanned);
    counted.unwrap_or_else(|| Duration::from_secs_f64(pages as f64 * PAGE_COST))
}

/// The first setting that is not as it was made.
fn foreign(wanted: &[Set], knobs: &KsmKnobs) -> Option<Foreign> {
    wanted.iter().find_map(|set| {
        let found = set.knob.of(knobs)?;
        (found != set.value).then_some(Foreign { knob: set.knob, ours: set.value, found })
    })
}

#[cfg(test)]
mod tests;
