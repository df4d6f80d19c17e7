//! How long the guest would stand still if it were paused now, and whether that is short enough.

use std::time::Duration;

use super::{Probe, RoundSent};
use crate::convergence::{
    BandwidthMeter, ExpectedDowntime, Observation, Verdict, expected_downtime, judge,
};
use crate::memory::PAGE_BYTES;
use crate::text::PeerText;

/// Shortest wait before a fixed part that is beyond the limit is measured again.
const MEASURE_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// The wait before the next dry run, in times that the guest stood in the last one.
const MEASURE_AGAIN_FACTOR: u32 = 50;

/// What was measured of a switchover, and what follows from it.
#[derive(Debug)]
pub(super) struct Estimate {
    meter: BandwidthMeter,
    /// What making records durable takes while the guest stands.
    records: Duration,
    /// What the guest would stand for even if no page were dirty.
    fixed: Duration,
    /// The wait before that is measured again.
    rest: Duration,
    dirty_pages_per_second: f64,
    expected: Option<ExpectedDowntime>,
    verdict: Verdict,
}

impl Estimate {
    /// One in which nothing was measured yet.
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

    /// Making the records durable that are written while the guest stands takes so long.
    pub(super) fn set_records(&mut self, took: Duration) {
        self.records = took;
    }

    /// The fixed part of the downtime: state is saved here and loaded there; state to ready and
    /// commit to running each cost a round trip; disks are flushed once more; and records are made
    /// durable.
    pub(super) fn add_probe(&mut self, probe: &Probe) {
        self.rest = probe.stood.saturating_mul(MEASURE_AGAIN_FACTOR).max(MEASURE_AGAIN_AFTER);
        self.fixed = probe
            .pause_and_save
            .saturating_add(probe.round_trip)
            .saturating_mul(2)
            .saturating_add(probe.flush)
            .saturating_add(self.records);
    }

    /// Takes a round into account that took `elapsed`.
    pub(super) fn add_round(&mut self, sent: &RoundSent, elapsed: Duration) {
        let content = sent.pages.saturating_sub(sent.zero_pages);
        self.meter.add_round(content.saturating_mul(PAGE_BYTES as u64), elapsed);
    }

    /// So many pages are dirtied in a second.
    pub(super) fn set_dirty_rate(&mut self, pages_per_second: f64) {
        self.dirty_pages_per_second = pages_per_second;
    }

    /// What to do after a round that took `elapsed`, for a guest that may stand for `limit`.
    pub(super) fn judge(
        &mut self,
        sent: &RoundSent,
        elapsed: Duration,
        limit: Duration,
    ) -> Verdict {
        // A guest that has only zero pages has shown no speed but that of finding them.
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

    /// Memory sent each second; absent before the first round that had content.
    pub(super) fn bytes_per_second(&self) -> Option<f64> {
        self.meter.bytes_per_second()
    }

    pub(super) fn dirty_pages_per_second(&self) -> f64 {
        self.dirty_pages_per_second
    }

    /// Absent before the first round is judged.
    pub(super) fn expected_downtime(&self) -> Option<Duration> {
        self.expected.map(|expected| expected.total())
    }

    /// The wait before the fixed part is measured again.
    pub(super) fn rest(&self) -> Duration {
        self.rest
    }

    /// Whether rounds, as far as was judged, bring the downtime below its limit.
    pub(super) fn is_converging(&self) -> bool {
        !matches!(self.verdict, Verdict::SendRoundInVain | Verdict::MeasureAgain)
    }

    /// Why rounds have not ended, for a guest that may stand for `limit`.
    pub(super) fn why_not_over(&self, limit: Duration) -> PeerText {
        let limit = limit.as_secs_f64();
        let text = match (self.verdict, self.expected) {
            (Verdict::SendRoundInVain, Some(expected)) => format!(
                ": the guest dirties {:.0} pages/s, too fast to be paused for less than {:.3} s, and \
                 the downtime limit is {limit:.3} s",
                self.dirty_pages_per_second,
                expected.total().as_secs_f64()
            ),
            (Verdict::MeasureAgain, Some(expected)) => format!(
                ": pausing the guest takes {:.3} s even without dirty memory, and the downtime limit \
                 is {limit:.3} s",
                expected.fixed.as_secs_f64()
            ),
            _ => String::new(),
        };
        PeerText::new(&text)
    }
}
