//! Estimates the downtime if the guest were paused now, and whether it is within the limit.

use std::time::Duration;

use super::{Probe, RoundSent};
use crate::convergence::{
    BandwidthMeter, ExpectedDowntime, Observation, Verdict, expected_downtime, judge,
};
use crate::decisions::Decided;
use crate::limits::Limits;
use crate::memory::PAGE_BYTES;
use crate::text::PeerText;

/// Shortest wait before a fixed part above the limit is measured again: the five dry runs after
/// which a limit not far below it counts as impossible span ten seconds.
const MEASURE_AGAIN_AFTER: Duration = Duration::from_millis(2500);
/// Wait before the next dry run, as a multiple of the pause in the last one.
const MEASURE_AGAIN_FACTOR: u32 = 50;

/// Records that are made durable while the guest is paused: committed here, ready and taking there.
/// Together they take about as many flushes as the creation of the first one, which is why its time
/// stands for all of them. If the commit is early, ready is not recorded.
pub(super) const RECORDS_IN_DOWNTIME: u32 = 3;

/// Measurements for a switchover, and the estimate that follows from them.
#[derive(Debug)]
pub(super) struct Estimate {
    meter: BandwidthMeter,
    /// Time to make [`RECORDS_IN_DOWNTIME`] records durable.
    records: Duration,
    /// Downtime of the guest even if no page were dirty.
    fixed: Duration,
    /// Wait before the fixed part is measured again.
    rest: Duration,
    dirty_pages_per_second: f64,
    expected: Option<ExpectedDowntime>,
    verdict: Verdict,
}

impl Estimate {
    /// Creates an estimate without measurements.
    pub(super) fn new() -> Self {
        Self {
            meter: BandwidthMeter::default(),
            records: Duration::ZERO,
            fixed: Duration::ZERO,
            rest: Duration::ZERO,
            dirty_pages_per_second: 0.0,
            expected: None,
            verdict: Verdict::SendRound,
        }
    }

    /// Sets the time that it takes to make [`RECORDS_IN_DOWNTIME`] records durable.
    pub(super) fn set_records(&mut self, took: Duration) {
        self.records = took;
    }

    /// Sets the fixed part of the downtime. State is saved here and loaded there, which counts as
    /// twice the pause and save; state to ready, and commit to running, cost a round trip each, or
    /// one together if the commit is early; disks are flushed once more; records are made durable,
    /// of which an early commit saves one, and has another written beside the flush.
    pub(super) fn add_probe(&mut self, probe: &Probe, commits_early: bool) {
        self.rest = probe.stood.saturating_mul(MEASURE_AGAIN_FACTOR).max(MEASURE_AGAIN_AFTER);
        let one_record = self.records / RECORDS_IN_DOWNTIME;
        let waits = match commits_early {
            true => probe
                .round_trip
                .saturating_add(one_record)
                .saturating_add(probe.flush.max(one_record)),
            false => {
                let round_trips = probe.round_trip.saturating_mul(2);
                round_trips.saturating_add(probe.flush).saturating_add(self.records)
            }
        };
        self.fixed = probe.pause_and_save.saturating_mul(2).saturating_add(waits);
    }

    /// Adds a round that took `elapsed`.
    pub(super) fn add_round(&mut self, sent: &RoundSent, elapsed: Duration) {
        let content = sent.pages.saturating_sub(sent.zero_pages);
        self.meter.add_round(content.saturating_mul(PAGE_BYTES as u64), elapsed);
    }

    /// Sets the number of pages that the guest dirties per second.
    pub(super) fn set_dirty_rate(&mut self, pages_per_second: f64) {
        self.dirty_pages_per_second = pages_per_second;
    }

    /// Decides what to do after a round that took `elapsed`, for a downtime limit of `limit`.
    pub(super) fn judge(
        &mut self,
        sent: &RoundSent,
        elapsed: Duration,
        limit: Duration,
    ) -> Verdict {
        // A guest with only zero pages has shown no bandwidth, only the speed of finding zero
        // pages.
        let found = sent.pages as f64 * PAGE_BYTES as f64 / elapsed.as_secs_f64();
        let found = Some(found).filter(|rate| rate.is_finite() && *rate > 0.0);
        let seen = Observation {
            sent_pages: sent.pages,
            dirty_pages: sent.dirty_pages,
            bytes_per_second: self.bytes_per_second().or(found),
            fixed: self.fixed,
            limit,
        };
        self.expected = Some(expected_downtime(&seen));
        self.verdict = judge(&seen);
        self.verdict
    }

    /// Returns memory sent per second; none before the first round that had content.
    pub(super) fn bytes_per_second(&self) -> Option<f64> {
        self.meter.bytes_per_second()
    }

    pub(super) fn dirty_pages_per_second(&self) -> f64 {
        self.dirty_pages_per_second
    }

    /// Returns the expected downtime; none before the first round is judged.
    pub(super) fn expected_downtime(&self) -> Option<Duration> {
        self.expected.map(|expected| expected.total())
    }

    /// Returns the part of the downtime that does not depend on memory.
    pub(super) fn fixed(&self) -> Duration {
        self.fixed
    }

    /// Returns the wait before the fixed part is measured again.
    pub(super) fn rest(&self) -> Duration {
        self.rest
    }

    /// Returns the pages that are sent for each page that the guest dirties; not a number before
    /// both are known.
    pub(super) fn sent_per_dirtied(&self) -> f64 {
        let sent = self.bytes_per_second().map_or(f64::NAN, |bytes| bytes / PAGE_BYTES as f64);
        sent / self.dirty_pages_per_second
    }

    /// Returns whether rounds, by the last verdict, bring the downtime below its limit.
    pub(super) fn is_converging(&self) -> bool {
        !matches!(self.verdict, Verdict::SendRoundInVain | Verdict::MeasureAgain)
    }

    /// Returns how the migration stalls, by the last verdict; none before the first one.
    pub(super) fn stall(&self, limits: &Limits) -> Option<Decided> {
        let (expected, on_stall) = (self.expected?, limits.on_stall);
        let downtime_limit_seconds = limits.downtime.as_secs_f64();
        Some(match self.verdict {
            Verdict::MeasureAgain => Decided::Impossible {
                fixed_seconds: expected.fixed.as_secs_f64(),
                downtime_limit_seconds: limits.downtime_ceiling().as_secs_f64(),
                on_stall,
            },
            _ => Decided::Stalled {
                dirty_pages_per_second: self.dirty_pages_per_second,
                bandwidth_bytes_per_second: self.bytes_per_second().unwrap_or(0.0),
                expected_downtime_seconds: expected.total().as_secs_f64(),
                downtime_limit_seconds,
                on_stall,
            },
        })
    }

    /// Returns why rounds have not ended. A fixed part is compared with the downtime limit as far
    /// as it may be raised.
    pub(super) fn why_not_over(&self, limits: &Limits) -> PeerText {
        let limit = limits.downtime.as_secs_f64();
        let ceiling = limits.downtime_ceiling().as_secs_f64();
        let text = match (self.verdict, self.expected) {
            (Verdict::SendRoundInVain, Some(expected)) => format!(
                ": the guest dirties {:.0} pages/s, too fast to be paused for less than {:.3} s, and \
                 the downtime limit is {limit:.3} s",
                self.dirty_pages_per_second,
                expected.total().as_secs_f64()
            ),
            (Verdict::MeasureAgain, Some(expected)) => format!(
                ": pausing the guest takes {:.3} s even without dirty memory, and the downtime limit \
                 is {ceiling:.3} s",
                expected.fixed.as_secs_f64()
            ),
            _ => String::new(),
        };
        PeerText::new(&text)
    }
}
