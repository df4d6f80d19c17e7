//! Signs that a guest is short of memory, derived from its statistics.

use std::time::Duration;
use std::{fmt, iter};

use serde::{Deserialize, Serialize};

use crate::policy::PressurePolicy;
use crate::situation::Statistics;
use crate::units::Span;

/// Memory pressure in a guest, and how long the guest is spared because of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GuestPressure {
    /// The sign that was found.
    pub cause: PressureSign,
    /// Host uptime when it was last seen.
    pub at: Duration,
    /// Host uptime until which no memory is taken from the guest.
    pub until: Duration,
    /// How many times in a row it returned within an hour of its end.
    pub again: u8,
}

/// The sign of memory pressure in a guest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PressureSign {
    /// Processes killed because memory ran out.
    OomKill(u64),
    /// Allocations per second that waited for memory.
    AllocationStalls(f64),
    /// Bytes per second reclaimed while a process waited.
    DirectReclaim(f64),
    /// Page faults per second that waited for a disk.
    MajorFaults(f64),
    /// Bytes per second swapped in or out.
    Swapping(f64),
    /// Time without new statistics.
    Silent(Duration),
}

impl fmt::Display for PressureSign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: &f64| bytes / f64::from(1 << 20);
        match self {
            Self::OomKill(count) => write!(f, "{count} processes killed for want of memory"),
            Self::AllocationStalls(rate) => write!(f, "{rate:.1} allocations/s wait for memory"),
            Self::DirectReclaim(rate) => {
                write!(f, "{:.1} MiB/s reclaimed while programs wait", mib(rate))
            }
            Self::MajorFaults(rate) => write!(f, "{rate:.0} page faults/s wait for a disk"),
            Self::Swapping(rate) => write!(f, "{:.1} MiB/s swapped", mib(rate)),
            Self::Silent(time) => write!(f, "its statistics have been silent for {}", Span(*time)),
        }
    }
}

/// Rates are taken over at least a second, however often the guest is sampled: a few faults between
/// two samples are no storm, and a storm is not divided among many samples.
const SPAN: Duration = Duration::from_secs(1);

/// Minimum distance between stored samples, so that few fall within a [`SPAN`] however often a
/// guest is inspected.
const SPACE: Duration = Duration::from_millis(125);

/// A guest's counters at one time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    at: Duration,
    statistics: Statistics,
}

/// The counters of a guest that growth is measured against, and when they were taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Counters {
    /// Time of `last`: the latest statistics at least a [`SPAN`] older than the newest, if there
    /// are any.
    at: Duration,
    last: Statistics,
    /// The time of the newest statistics.
    #[serde(default)]
    heard: Duration,
    /// Statistics after `last`, oldest first; the newest is always kept. They are not stored for
    /// the next node.
    #[serde(skip)]
    recent: Vec<Sample>,
}

impl Counters {
    pub(super) fn new(statistics: &Statistics, at: Duration) -> Self {
        Self { at, last: *statistics, heard: at, recent: Vec::new() }
    }

    /// The time of the newest statistics.
    pub(super) fn at(&self) -> Duration {
        self.heard.max(self.at)
    }

    /// Whether a counter went back in newer statistics, i.e. the guest rebooted.
    pub(super) fn went_back(&self, statistics: &Statistics) -> bool {
        let newest = self.recent.last().map_or(&self.last, |sample| &sample.statistics);
        went_back(newest, statistics)
    }

    /// Records newer statistics and returns the pressure that they show. A counter that went back
    /// means that the guest rebooted: nothing is derived from these statistics, nor from a counter
    /// that was missing before.
    pub(super) fn next(
        &mut self,
        statistics: &Statistics,
        at: Duration,
        policy: &PressurePolicy,
    ) -> Option<PressureSign> {
        let has_rebooted = self.went_back(statistics);
        let newest = at.max(self.at());
        self.forget_before(at);
        let since = |(before, then): (&Statistics, Duration)| {
            cause(before, statistics, at.saturating_sub(then), policy)
        };
        let recent = self.recent.iter().map(|sample| (&sample.statistics, sample.at));
        let mut samples = iter::once((&self.last, self.at)).chain(recent);
        let cause = if has_rebooted { None } else { samples.find_map(since) };
        if has_rebooted || cause.is_some() {
            *self = Self::new(statistics, newest);
        } else if at > self.at() {
            self.keep(Sample { at, statistics: *statistics });
        }
        self.heard = newest;
        cause
    }

    fn keep(&mut self, sample: Sample) {
        match &mut self.recent[..] {
            [.., before, last] if last.at - before.at < SPACE => *last = sample,
            _ => self.recent.push(sample),
        }
    }

    /// Drops samples so that growth until `at` is measured from the latest one that is at least a
    /// [`SPAN`] older, and from each one after it.
    fn forget_before(&mut self, at: Duration) {
        let old =
            self.recent.iter().take_while(|sample| at.saturating_sub(sample.at) >= SPAN).count();
        if let Some(Sample { at, statistics }) = self.recent.drain(..old).next_back() {
            (self.at, self.last) = (at, statistics);
        }
    }
}

/// Returns the pressure shown by the growth of the counters over `span`.
fn cause(
    before: &Statistics,
    now: &Statistics,
    span: Duration,
    policy: &PressurePolicy,
) -> Option<PressureSign> {
    let seconds = span.max(SPAN).as_secs_f64();
    let grown = |count: fn(&Statistics) -> Option<u64>| {
        let (before, now) = (count(before)?, count(now)?);
        Some(now.saturating_sub(before)).filter(|grown| *grown > 0)
    };
    let rate = |count: fn(&Statistics) -> Option<u64>, limit: f64| {
        grown(count).map(|grown| grown as f64 / seconds).filter(|rate| *rate > limit)
    };
    let reclaim = policy.direct_reclaim_bytes_per_s as f64;
    let swapping = policy.swapping_bytes_per_s as f64;
    grown(|it| it.oom_kills)
        .map(PressureSign::OomKill)
        .or_else(|| {
            rate(|it| it.allocation_stalls, policy.allocation_stalls_per_s)
                .map(PressureSign::AllocationStalls)
        })
        .or_else(|| rate(|it| it.direct_reclaim_bytes, reclaim).map(PressureSign::DirectReclaim))
        .or_else(|| {
            rate(|it| it.major_faults, policy.major_faults_per_s).map(PressureSign::MajorFaults)
        })
        .or_else(|| rate(|it| it.swap_in_bytes, swapping).map(PressureSign::Swapping))
        .or_else(|| rate(|it| it.swap_out_bytes, swapping).map(PressureSign::Swapping))
}

fn went_back(before: &Statistics, now: &Statistics) -> bool {
    let counts: [fn(&Statistics) -> Option<u64>; 6] = [
        |it| it.oom_kills,
        |it| it.allocation_stalls,
        |it| it.direct_reclaim_bytes,
        |it| it.major_faults,
        |it| it.swap_in_bytes,
        |it| it.swap_out_bytes,
    ];
    counts.iter().any(|count| matches!((count(before), count(now)), (Some(a), Some(b)) if b < a))
}
