//! Signs that a guest is short of memory, from what its statistics count.

use std::time::Duration;
use std::{fmt, iter};

use serde::{Deserialize, Serialize};

use crate::policy::PainPolicy;
use crate::situation::Statistics;
use crate::units::Span;

/// A guest's pain, and how long it is spared for it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Pain {
    /// What showed it.
    pub cause: PainCause,
    /// When it was last seen, as the host's uptime.
    pub at: Duration,
    /// Until when the guest keeps everything.
    pub until: Duration,
    /// How often in a row it came back within an hour of its end.
    pub again: u8,
}

/// What showed a guest's pain.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PainCause {
    /// Processes were killed for want of memory.
    OomKill(u64),
    /// Allocations waited for memory, in a second.
    AllocationStalls(f64),
    /// Bytes reclaimed while somebody waited, in a second.
    DirectReclaim(f64),
    /// Page faults that waited for a disk, in a second.
    MajorFaults(f64),
    /// Bytes swapped in or out, in a second.
    Swapping(f64),
    /// It has said nothing for so long.
    Silent(Duration),
}

impl fmt::Display for PainCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: &f64| bytes / f64::from(1 << 20);
        match self {
            Self::OomKill(count) => write!(f, "{count} processes killed for want of memory"),
            Self::AllocationStalls(rate) => write!(f, "{rate:.1} allocations/s wait for memory"),
            Self::DirectReclaim(rate) => {
                write!(f, "{:.1} MiB/s reclaimed while somebody waits", mib(rate))
            }
            Self::MajorFaults(rate) => write!(f, "{rate:.0} page faults/s wait for a disk"),
            Self::Swapping(rate) => write!(f, "{:.1} MiB/s swapped", mib(rate)),
            Self::Silent(time) => write!(f, "its statistics have been silent for {}", Span(*time)),
        }
    }
}

/// Rates are of a second at least, however often somebody looks: a few faults between two looks are
/// no storm, and a storm is not divided among them.
const SPAN: Duration = Duration::from_secs(1);

/// Samples are kept so far apart: there are few of a [`SPAN`] however often a guest is inspected.
const SPACE: Duration = Duration::from_millis(125);

/// What a guest's counters said at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    at: Duration,
    statistics: Statistics,
}

/// The counters of a guest from which its growth is told, and when they were taken.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Counters {
    /// The latest that is a [`SPAN`] older than the newest, if any is.
    at: Duration,
    last: Statistics,
    /// The time of the newest statistics.
    #[serde(default)]
    heard: Duration,
    /// Those since, oldest first, of which the newest is kept in any case. The next node does
    /// without them.
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

    /// Whether a counter of newer statistics went back: the guest began anew.
    pub(super) fn went_back(&self, statistics: &Statistics) -> bool {
        let newest = self.recent.last().map_or(&self.last, |sample| &sample.statistics);
        went_back(newest, statistics)
    }

    /// Takes in newer statistics; says what pain they show. A counter that went back means that the
    /// guest began anew: nothing is told from it, nor from one that was missing before.
    pub(super) fn next(
        &mut self,
        statistics: &Statistics,
        at: Duration,
        policy: &PainPolicy,
    ) -> Option<PainCause> {
        let began_anew = self.went_back(statistics);
        let newest = at.max(self.at());
        self.forget_before(at);
        let since = |(before, then): (&Statistics, Duration)| {
            cause(before, statistics, at.saturating_sub(then), policy)
        };
        let recent = self.recent.iter().map(|sample| (&sample.statistics, sample.at));
        let mut samples = iter::once((&self.last, self.at)).chain(recent);
        let cause = if began_anew { None } else { samples.find_map(since) };
        if began_anew || cause.is_some() {
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

    /// Growth until `at` is told since the latest that is a [`SPAN`] older, and each after it.
    fn forget_before(&mut self, at: Duration) {
        let old =
            self.recent.iter().take_while(|sample| at.saturating_sub(sample.at) >= SPAN).count();
        if let Some(Sample { at, statistics }) = self.recent.drain(..old).next_back() {
            (self.at, self.last) = (at, statistics);
        }
    }
}

/// The pain that counters show which grew so in `span`.
fn cause(
    before: &Statistics,
    now: &Statistics,
    span: Duration,
    policy: &PainPolicy,
) -> Option<PainCause> {
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
        .map(PainCause::OomKill)
        .or_else(|| {
            rate(|it| it.allocation_stalls, policy.allocation_stalls_per_s)
                .map(PainCause::AllocationStalls)
        })
        .or_else(|| rate(|it| it.direct_reclaim_bytes, reclaim).map(PainCause::DirectReclaim))
        .or_else(|| {
            rate(|it| it.major_faults, policy.major_faults_per_s).map(PainCause::MajorFaults)
        })
        .or_else(|| rate(|it| it.swap_in_bytes, swapping).map(PainCause::Swapping))
        .or_else(|| rate(|it| it.swap_out_bytes, swapping).map(PainCause::Swapping))
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
