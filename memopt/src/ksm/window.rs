//! One window in which ksmd runs: how fast, and for how long.
//!
//! ksmd scans `pages_to_scan` pages, sleeps `sleep_millisecs`, and repeats. The window sets the
//! sleep once, and adjusts the batch size to the CPU time that ksmd is seen to use. With a batch of
//! P pages that cost c each and a sleep of S, ksmd's share of a CPU is `s = Pc / (S + Pc)`. So
//! `s / (1 - s)` is proportional to P, and one measurement gives the factor by which P has to
//! change, whatever c is. c varies a lot: the first scan of a page computes a checksum (1 µs
//! measured), later scans search two trees (4 to 6 µs).
//!
//! The window ends when all memory has been scanned twice and further scanning gains hardly
//! anything, when its time or CPU time is used up, when there is nothing to merge, when another
//! process changes a setting, or when it is cancelled. Two scans are needed because ksmd merges a
//! page only if the second scan finds it unchanged. After that the window continues for as long as
//! each eighth of the memory gains a tenth of what as many pages gained before on average: pages
//! that became mergeable late are merged then. A third scan of unique pages costs the most, because
//! ksmd searches both trees; the first eighth of it shows whether the rest is worthwhile.
//!
//! ksmd resumes where it last stopped, perhaps near the end of a scan of guests that no longer
//! exist; their pages count as profit until ksmd reaches them. So a first scan that is only the
//! rest of one does not count, and the gain is measured from the end of the first complete scan.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::knob::{Foreign, Knob, Set};
use crate::observe::KsmKnobs;
use crate::situation::Ksm;

/// The assumed CPU cost per page until ksmd has been measured, in seconds: 171,000 pages per second
/// of CPU time were observed.
const PAGE_COST: f64 = 5.8e-6;
/// The target duration of a batch and the sleep after it, in seconds. It is long compared to a
/// kernel tick (4 ms) and short compared to the time between two samples. A write to `run` waits
/// for the batch to end.
const PERIOD: f64 = 0.1;
/// The shortest sleep, in seconds: one kernel tick.
const SLEEP_MIN: f64 = 0.004;
/// The largest batch, in pages. At 6 µs per page it takes 0.6 s.
const BATCH_MAX: f64 = 100_000.0;
/// The fraction of a limit to aim at, so that the next measurement stays below the limit.
const AIM: f64 = 0.92;
/// The batch grows if ksmd uses less than this fraction of the limit.
const SLACK: f64 = 0.8;
/// The largest factor by which the batch changes from one sample to the next.
const STEP: f64 = 4.0;
/// Two samples closer together than this are too noisy to measure ksmd's speed.
const STEER_AFTER: Duration = Duration::from_millis(200);
/// Full scans before flat profit counts.
const FULL_SCANS: u64 = 2;
/// A first scan with fewer than this fraction of the second scan's pages was only the rest of one.
const SCAN_PART: f64 = 0.75;
/// After that, the gain is evaluated each time one part in this many of the memory has been
/// scanned.
const STRETCH_PART: u64 = 8;
/// A gain below this, extrapolated to all memory, is flat.
const FLAT_BYTES: i64 = 1 << 20;
/// A gain below one part in this many of the average gain of as many pages is flat too.
const FLAT_PART: i64 = 10;
/// Without any progress for this long, there is nothing to merge.
const IDLE: Duration = Duration::from_secs(10);

/// The resources that a window may use.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// The share of one CPU that ksmd may use: above 0, up to 0.95.
    pub cpu_share: f64,
    /// The total CPU time that ksmd may use.
    pub cpu_time: Duration,
    /// Pages that ksmd may scan per second.
    pub pages_per_second: u64,
    /// How long the window may last.
    pub time: Duration,
}

/// The optional settings of a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Whether ksmd leaves pages that it found unique out of its next scans; unchanged if absent.
    pub smart_scan: Option<bool>,
    /// Whether ksmd merges pages of zeros with the kernel's zero page; unchanged if absent.
    pub use_zero_pages: Option<bool>,
}

impl Options {
    /// For windows over guests' memory: pages of zeros need no tree search. Without this option
    /// most huge pages of zeros were seen to be unmerged after two scans (Linux 6.18); ADR 17 has
    /// the figures.
    pub const GUESTS: Self = Self { smart_scan: None, use_zero_pages: Some(true) };
}

/// The state of ksmd at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// ksmd's counters, including its CPU time.
    pub ksm: Ksm,
    /// ksmd's settings when the counters were read.
    pub knobs: KsmKnobs,
}

/// Why a window ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum End {
    /// All memory has been scanned at least twice, and merging gains hardly anything more.
    Flat,
    /// The window's time is used up.
    TimeUsed,
    /// ksmd has used its CPU time.
    CpuTimeUsed,
    /// ksmd made no progress for 10 s: no process has mergeable memory.
    NothingToMerge,
    /// Another process changed a setting.
    Foreign(Foreign),
    /// The window was cancelled.
    CalledOff,
}

/// The result of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// Why the window ended.
    pub end: End,
    /// How long the window lasted.
    pub elapsed: Duration,
    /// CPU time that ksmd used; absent if it cannot be read.
    pub cpu: Option<Duration>,
    /// Pages that ksmd scanned.
    pub pages_scanned: u64,
    /// Full scans of all mergeable memory.
    pub full_scans: u64,
    /// Growth of KSM's profit in bytes; may be negative.
    pub gain_bytes: i64,
}

/// The state machine of a window: give it samples and write the settings that it returns, until it
/// has an [`Outcome`].
#[derive(Debug, Clone)]
pub struct Window {
    budget: Budget,
    options: Options,
    progress: Option<Progress>,
    outcome: Option<Outcome>,
}

/// The state of a window that has begun.
#[derive(Debug, Clone)]
struct Progress {
    begun: Duration,
    first: Ksm,
    last: Ksm,
    at: Duration,
    /// The samples at the end of each of the first two full scans.
    scans: Vec<Ksm>,
    /// The time of the last sample that showed progress.
    moved_at: Duration,
    /// The sample at the beginning of the stretch whose gain is evaluated next.
    stretch: Ksm,
    batch: f64,
    /// The values that the knobs were set to.
    wanted: Vec<Set>,
}

impl Window {
    /// Creates a window that begins with its first sample. A budget out of range is clamped.
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

    /// Returns the window's result; `None` while it lasts.
    #[must_use]
    pub const fn outcome(&self) -> Option<&Outcome> {
        self.outcome.as_ref()
    }

    /// Handles the sample taken at `now` (any monotonic clock), and returns the settings to write.
    /// If there is an [`Self::outcome`] afterwards, all settings must be restored.
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

    /// Ends the window early: it was cancelled, or another process changed a setting.
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
        // The advisor goes first: the kernel refuses pages_to_scan while it is on. `run` goes last,
        // so that ksmd starts with everything set.
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

    /// Returns whether the window is over, and why. `before` is the sample before the last one.
    fn is_over(&mut self, budget: &Budget, before: &Ksm, now: Duration) -> Option<End> {
        if self.is_flat() {
            return Some(End::Flat);
        }
        if now.saturating_sub(self.begun) >= budget.time {
            return Some(End::TimeUsed);
        }
        // Ends at the sample nearest to the limit: the true end may lie up to half an interval's
        // CPU time before or after it.
        let used = cpu_between(&self.first, &self.last) + cpu_between(before, &self.last) / 2;
        if used >= budget.cpu_time {
            return Some(End::CpuTimeUsed);
        }
        (now.saturating_sub(self.moved_at) >= IDLE).then_some(End::NothingToMerge)
    }

    /// Returns whether a stretch has just ended and gained too little.
    fn is_flat(&mut self) -> bool {
        if self.full_scans(&self.stretch) < FULL_SCANS {
            self.stretch = self.last;
            return false;
        }
        let scans_since =
            |since: &Ksm| match self.last.pages_scanned.saturating_sub(since.pages_scanned) {
                // Kernels before Linux 6.6 do not count scanned pages.
                0 => self.last.full_scans.saturating_sub(since.full_scans) as f64,
                pages => pages as f64,
            };
        let gain = |since: &Ksm| self.last.profit_bytes.saturating_sub(since.profit_bytes) as f64;
        let (all, stretch) = (scans_since(&self.first), scans_since(&self.stretch));
        // The pages scanned since the window began are all memory, times the number of full scans
        // or slightly more.
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

    /// Returns the number of full scans of all memory until `then`.
    fn full_scans(&self, then: &Ksm) -> u64 {
        let scans = then.full_scans.saturating_sub(self.first.full_scans);
        scans.saturating_sub(self.began_amid_a_scan().into())
    }

    /// Returns whether the first scan was clearly shorter than the one after it.
    fn began_amid_a_scan(&self) -> bool {
        let pages =
            |from: &Ksm, to: &Ksm| to.pages_scanned.saturating_sub(from.pages_scanned) as f64;
        match &self.scans[..] {
            [one, two] => pages(&self.first, one) < SCAN_PART * pages(one, two),
            _ => false,
        }
    }

    /// Changes the batch by `factor`, and returns the setting if it differs from the last one.
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

/// Returns the factor by which the batch has to change, given what ksmd used between two samples;
/// `None` if ksmd is within its limits and near one of them, or did nothing.
fn factor(budget: &Budget, before: &Ksm, now: &Ksm, elapsed: Duration) -> Option<f64> {
    if elapsed < STEER_AFTER {
        return None;
    }
    let seconds = elapsed.as_secs_f64();
    let scanned = now.pages_scanned.saturating_sub(before.pages_scanned) as f64 / seconds;
    let share = cpu_between(before, now).as_secs_f64() / seconds;
    let odds = |share: f64| share / (1.0 - share.min(0.99));
    // The used fraction of each limit, and the factor that brings it to the aim. A resource that
    // was not measured limits nothing.
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

/// Returns the CPU time that ksmd used between two samples. If the kernel does not report it, it is
/// estimated from the scanned pages at `PAGE_COST`.
fn cpu_between(before: &Ksm, now: &Ksm) -> Duration {
    let counted = now.cpu.zip(before.cpu).map(|(now, before)| now.saturating_sub(before));
    let pages = now.pages_scanned.saturating_sub(before.pages_scanned);
    counted.unwrap_or_else(|| Duration::from_secs_f64(pages as f64 * PAGE_COST))
}

/// Returns the first setting whose value is not the one written here.
fn foreign(wanted: &[Set], knobs: &KsmKnobs) -> Option<Foreign> {
    wanted.iter().find_map(|set| {
        let found = set.knob.of(knobs)?;
        (found != set.value).then_some(Foreign { knob: set.knob, ours: set.value, found })
    })
}

#[cfg(test)]
mod tests;
