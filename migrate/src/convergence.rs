//! Decides when to stop sending rounds and pause the guest: one pure function, [`judge`], on the
//! measurements of a [`BandwidthMeter`] and of the last round.

use std::time::Duration;

use crate::memory::PAGE_BYTES;

/// The measurements at the end of a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Observation {
    /// Pages sent in the round that has just ended.
    pub sent_pages: u64,
    /// Pages that are dirty now.
    pub dirty_pages: u64,
    /// Bytes of memory sent per second, zero pages not counted; none if nothing has been measured.
    pub bytes_per_second: Option<f64>,
    /// Downtime of the guest even if no page were dirty.
    pub fixed: Duration,
    /// The downtime limit.
    pub limit: Duration,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Pause the guest.
    SwitchOver,
    /// Send another round: it brings the downtime below its limit, or lowers it further.
    SendRound,
    /// Send another round although the last one has not helped: the guest dirties memory as fast as
    /// it is sent, and the downtime stays above its limit unless the guest writes less.
    SendRoundInVain,
    /// Wait, then measure the fixed part again: it alone exceeds the limit, whatever is sent.
    MeasureAgain,
}

/// The expected downtime if the guest were paused now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpectedDowntime {
    /// Time to send its dirty memory.
    pub memory: Duration,
    /// Time that does not depend on memory.
    pub fixed: Duration,
}

impl ExpectedDowntime {
    /// Returns the sum of both parts.
    pub fn total(&self) -> Duration {
        self.memory.saturating_add(self.fixed)
    }
}

/// Returns dirty memory divided by measured bandwidth, plus the measured fixed part.
pub fn expected_downtime(seen: &Observation) -> ExpectedDowntime {
    let bytes = seen.dirty_pages as f64 * PAGE_BYTES as f64;
    let seconds = match seen.bytes_per_second {
        _ if seen.dirty_pages == 0 => 0.0,
        Some(rate) if rate > 0.0 => bytes / rate,
        _ => f64::INFINITY,
    };
    // More than a Duration holds: treated as endless.
    let memory = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    ExpectedDowntime { memory, fixed: seen.fixed }
}

/// Decides at the end of a round whether to pause the guest.
///
/// It is paused if two things hold. The expected downtime is within the limit, and another round
/// would not pay: no page is dirty, sending the dirty memory takes no longer than an eighth of the
/// fixed part, or the last round has not left at least a quarter fewer pages dirty than it sent. So
/// the limit is not a target: where a few more rounds are cheap, the downtime is much shorter.
/// (Cloud Hypervisor's `is_precopy_converged` ignores the fixed part; QEMU pauses at the limit.)
///
/// A guest that writes faster than the link carries never meets the first condition: rounds go on
/// in vain, and `source::stall` decides what is done about that. Below the fixed part no limit can
/// be met, and rounds would not help: the source waits and measures again.
pub fn judge(seen: &Observation) -> Verdict {
    let expected = expected_downtime(seen);
    let shrinking = seen.dirty_pages.saturating_mul(4) <= seen.sent_pages.saturating_mul(3);
    match (expected.total() <= seen.limit, shrinking) {
        (true, _) if seen.dirty_pages == 0 || expected.memory <= expected.fixed / 8 => {
            Verdict::SwitchOver
        }
        (true, false) => Verdict::SwitchOver,
        (false, _) if expected.fixed > seen.limit => Verdict::MeasureAgain,
        (_, true) => Verdict::SendRound,
        (false, false) => Verdict::SendRoundInVain,
    }
}

/// Rounds that send less than this tell little about bandwidth: they fit into buffers, or wait for
/// what is in them.
pub(crate) const MEASURABLE_BYTES: u64 = 4 << 20;

/// A short round tells that the link is slower now if it takes this factor longer than itself and
/// full buffers would, and this long beyond that: hosts stall now and then.
const SLOWER_FACTOR: f64 = 2.0;
const SLOWER_SECONDS: f64 = 0.1;

/// Measures the bandwidth, in bytes of memory per second, from the last few rounds.
///
/// Zero pages do not count: they cost next to nothing and would suggest a speed that pages with
/// content cannot reach. A round is weighted by its bytes; each later round halves the weight of
/// the earlier ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct BandwidthMeter {
    bytes: f64,
    seconds: f64,
}

impl BandwidthMeter {
    /// Adds a round that sent `bytes` of memory, zero pages not counted, in `elapsed`.
    pub fn add_round(&mut self, bytes: u64, elapsed: Duration) {
        let known = self.bytes >= MEASURABLE_BYTES as f64;
        if bytes == 0 || elapsed.is_zero() {
            return;
        }
        if bytes < MEASURABLE_BYTES && known {
            if !self.is_slower(bytes, elapsed) {
                return;
            }
            // What was measured holds no longer.
            *self = Self::default();
        }
        self.bytes = self.bytes / 2.0 + bytes as f64;
        self.seconds = self.seconds / 2.0 + elapsed.as_secs_f64();
    }

    fn is_slower(&self, bytes: u64, elapsed: Duration) -> bool {
        let buffered = bytes.saturating_add(MEASURABLE_BYTES) as f64;
        let longest = SLOWER_FACTOR * buffered * self.seconds / self.bytes + SLOWER_SECONDS;
        elapsed.as_secs_f64() > longest
    }

    /// Returns bytes of memory per second; none before the first round that had content.
    pub fn bytes_per_second(&self) -> Option<f64> {
        (self.bytes > 0.0 && self.seconds > 0.0).then(|| self.bytes / self.seconds)
    }
}

/// The window of the dirty rate: a guest writes in bursts, and a late round takes only a
/// millisecond.
const DIRTY_RATE_WINDOW: Duration = Duration::from_millis(200);

/// Measures how many pages per second the guest writes, over the last 200 ms of samples of its
/// dirty log, or over all samples while they cover less. A sample covers the whole time since the
/// one before it, whether or not a round was sent in it.
#[derive(Debug, Clone, Copy, Default)]
pub struct DirtyRateMeter {
    sampled: Option<Duration>,
    pages: f64,
    seconds: f64,
}

impl DirtyRateMeter {
    /// Adds a sample that found `pages` dirty at `now`; the log began at `began`.
    pub fn add_sample(&mut self, pages: u64, began: Duration, now: Duration) {
        let since = now.saturating_sub(self.sampled.replace(now).unwrap_or(began)).as_secs_f64();
        let room = (DIRTY_RATE_WINDOW.as_secs_f64() - since).max(0.0);
        if self.seconds > room {
            self.pages *= room / self.seconds;
            self.seconds = room;
        }
        self.pages += pages as f64;
        self.seconds += since;
    }

    /// Returns pages per second; 0 before any time has passed.
    pub fn pages_per_second(&self) -> f64 {
        if self.seconds > 0.0 { self.pages / self.seconds } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB_PAGES: u64 = 256;
    const MS: Duration = Duration::from_millis(1);

    /// 1 GiB/s, 5 ms fixed, 300 ms limit.
    fn seen(sent_mib: u64, dirty_mib: u64) -> Observation {
        Observation {
            sent_pages: sent_mib * MIB_PAGES,
            dirty_pages: dirty_mib * MIB_PAGES,
            bytes_per_second: Some(f64::from(1 << 30)),
            fixed: 5 * MS,
            limit: 300 * MS,
        }
    }

    #[test]
    fn switches_over_at_once_when_nothing_is_dirty() {
        assert_eq!(judge(&seen(512, 0)), Verdict::SwitchOver);
        let unknown_speed = Observation { bytes_per_second: None, ..seen(0, 0) };
        assert_eq!(judge(&unknown_speed), Verdict::SwitchOver);
    }

    #[test]
    fn continues_within_the_limit_while_rounds_still_shrink() {
        assert_eq!(judge(&seen(512, 64)), Verdict::SendRound);
        assert_eq!(judge(&seen(64, 48)), Verdict::SendRound);
        assert_eq!(judge(&seen(64, 49)), Verdict::SwitchOver);
    }

    #[test]
    fn switches_over_when_memory_costs_little_beside_the_fixed_part() {
        let slow_state = |dirty_mib| Observation { fixed: 40 * MS, ..seen(64, dirty_mib) };
        assert_eq!(judge(&slow_state(5)), Verdict::SwitchOver);
        assert_eq!(judge(&slow_state(6)), Verdict::SendRound);
    }

    #[test]
    fn never_passes_the_limit_and_reports_useless_rounds() {
        assert_eq!(judge(&seen(512, 400)), Verdict::SendRoundInVain);
        assert_eq!(judge(&seen(1024, 400)), Verdict::SendRound);
        let slow_state = Observation { fixed: 400 * MS, ..seen(64, 0) };
        assert_eq!(judge(&slow_state), Verdict::MeasureAgain);
        let unknown_speed = Observation { bytes_per_second: None, ..seen(64, 64) };
        assert_eq!(expected_downtime(&unknown_speed).total(), Duration::MAX);
        assert_eq!(judge(&unknown_speed), Verdict::SendRoundInVain);
    }

    /// The rates measured for a guest that writes `burst` pages every 10 ms, sampled after each of
    /// `pauses`, in milliseconds.
    fn dirty_rates(burst: u64, pauses: &[u32]) -> Vec<f64> {
        let (mut meter, mut now) = (DirtyRateMeter::default(), 0);
        let mut sample = |pause: u32| {
            let bursts = u64::from((now + pause) / 10 - now / 10);
            now += pause;
            meter.add_sample(bursts * burst, Duration::ZERO, now * MS);
            meter.pages_per_second()
        };
        pauses.iter().map(|pause| sample(*pause)).collect()
    }

    #[test]
    fn short_rounds_do_not_disturb_the_dirty_rate() {
        // 2,000 pages/s: a long round, then many of one millisecond, of which one in ten meets a
        // burst.
        let pauses = [&[1000][..], &[1; 300]].concat();
        for (round, rate) in dirty_rates(20, &pauses).into_iter().enumerate() {
            assert!((1800.0..=2200.0).contains(&rate), "round {round}: {rate}");
        }
        let first = dirty_rates(20, &[20, 1, 1])[2];
        assert!((1500.0..=2500.0).contains(&first), "{first}");
    }

    #[test]
    fn the_dirty_rate_follows_a_guest_that_changes() {
        let mut meter = DirtyRateMeter::default();
        assert_eq!(meter.pages_per_second(), 0.0);
        meter.add_sample(0, Duration::ZERO, Duration::ZERO);
        assert_eq!(meter.pages_per_second(), 0.0);
        meter.add_sample(2000, Duration::ZERO, 1000 * MS);
        meter.add_sample(2000, Duration::ZERO, 1100 * MS);
        let between = meter.pages_per_second();
        assert!((10_000.0..=12_000.0).contains(&between), "{between}");
        meter.add_sample(2000, Duration::ZERO, 1200 * MS);
        assert!(meter.pages_per_second() > 15_000.0);
        // A second without samples between two rounds is not a burst.
        meter.add_sample(20_000, Duration::ZERO, 2200 * MS);
        assert!((meter.pages_per_second() - 20_000.0).abs() < 1.0);
    }

    #[test]
    fn a_small_round_shows_that_the_link_has_become_slow() {
        let mut meter = BandwidthMeter::default();
        meter.add_round(100 << 20, 1000 * MS);
        meter.add_round(2 << 20, 150 * MS);
        assert!(meter.bytes_per_second().unwrap() > 99e6, "a short stall of the host");

        meter.add_round(2 << 20, 2000 * MS);

        assert!((meter.bytes_per_second().unwrap() - f64::from(1 << 20)).abs() < 1.0);
        meter.add_round(2 << 20, 200 * MS);
        meter.add_round(2 << 20, 20 * MS);
        let rate = meter.bytes_per_second().unwrap();
        assert!(rate > 4.0 * f64::from(1 << 20), "it follows a link that is fast again: {rate}");
    }

    #[test]
    fn small_rounds_do_not_disturb_the_meter() {
        let mut meter = BandwidthMeter::default();
        assert_eq!(meter.bytes_per_second(), None);
        meter.add_round(100 << 20, 100 * MS);
        meter.add_round(4096, MS / 1000);

        let rate = meter.bytes_per_second().unwrap();

        assert!((rate - f64::from(1000 << 20)).abs() < 1.0, "{rate}");
        meter.add_round(100 << 20, 1000 * MS);
        assert!(meter.bytes_per_second().unwrap() < rate / 4.0);
    }
}
