//! Notices that rounds do not lower the expected downtime any more, and decides what to do then.

use std::time::Duration;

use crate::convergence::Verdict;
use crate::guest::Throttled;
use crate::stall::OnStall;

/// A round counts as progress if it leaves at most this share of the least dirty pages so far. The
/// expected downtime would not do: it also rises and falls with the rate of the link.
const PROGRESS: f64 = 0.9;
/// Rounds in a row without progress that make a stall.
const ROUNDS_IN_VAIN: u32 = 2;
/// Shortest time without progress that makes a stall: rounds of a fast link take milliseconds.
const TIME_IN_VAIN: Duration = Duration::from_secs(1);
/// Times in a row that the fixed part of the downtime was above the limit before the limit counts
/// as impossible, and the shortest time that they span.
const MEASURED_IN_VAIN: u32 = 5;
const MEASURING_IN_VAIN: Duration = Duration::from_secs(10);
/// Rounds for which a forced hand-over waits for one that leaves little dirty.
const ROUNDS_TO_MINIMUM: u32 = 4;
/// A round leaves little dirty if that is within this factor of the least so far.
const NEAR_MINIMUM: f64 = 1.1;

/// Longest expected downtime of a forced hand-over.
const FORCED_MAX: Duration = Duration::from_secs(30);

/// First step of the throttle, at least. QEMU's is the same (`cpu-throttle-initial`).
const THROTTLE_FIRST: u8 = 20;
/// Most that a guest is slowed down. QEMU's is the same (`max-cpu-throttle`).
const THROTTLE_MAX: u8 = 99;
/// Shortest time between two steps of the throttle, in which the first shows its effect.
const THROTTLE_STEP: Duration = Duration::from_millis(200);
/// How often the guest is told that its throttle continues.
const THROTTLE_RENEWAL: Duration = Duration::from_secs(1);
/// How long a guest is throttled while nothing is sent.
const THROTTLE_IN_VAIN: Duration = Duration::from_secs(5);

/// The end of a round.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundEnd {
    pub(super) verdict: Verdict,
    /// Pages that are dirty now.
    pub(super) dirty_pages: u64,
    /// Expected downtime if the guest were paused now.
    pub(super) expected: Duration,
    /// Pages that are sent for each page that the guest dirties.
    pub(super) sent_per_dirtied: f64,
    pub(super) now: Duration,
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// What the verdict says.
    None,
    /// What the verdict says, although the migration stalls.
    Wait,
    /// Change the throttle to this, then what the verdict says.
    Throttle(u8),
    /// Hand the guest over, although its downtime is above the limit.
    Force,
    /// Hand the guest over before its memory.
    Postcopy,
    /// Cancel the migration.
    GiveUp,
}

/// The trend of what rounds leave dirty.
#[derive(Debug, Default)]
pub(super) struct StallWatch {
    /// The least dirty pages after a round so far, and when that was.
    least: Option<(u64, Duration)>,
    /// Rounds since then.
    rounds: u32,
    /// How often in a row the fixed part was above the limit, and since when.
    measured: Option<(u32, Duration)>,
    throttle: Option<Step>,
}

/// A step of the throttle.
#[derive(Debug, Clone, Copy)]
struct Step {
    percent: u8,
    /// What the guest has said about it; nothing yet right after the step.
    applied: Option<Throttled>,
    since: Duration,
    renewed: Duration,
    /// What had been sent when it was last seen to grow, and when that was.
    sent: (u64, Duration),
}

impl StallWatch {
    /// Returns how much the guest, which has `vcpus`, is slowed down: all of them alike, unless it
    /// has said otherwise.
    pub(super) fn throttled(&self, vcpus: u16) -> Throttled {
        self.throttle.map_or_else(Throttled::default, |step| {
            step.applied.unwrap_or(Throttled { vcpus, percent: step.percent })
        })
    }

    /// Takes what the guest says about its throttle; returns whether it has one. The answer to the
    /// end of one may come after the beginning of the next.
    pub(super) fn on_throttled(&mut self, throttled: Throttled) -> bool {
        match &mut self.throttle {
            Some(step) if throttled.percent > 0 => {
                step.applied = Some(throttled);
                true
            }
            _ => false,
        }
    }

    /// Restarts the trend: at another bandwidth, what was dirty before says nothing.
    pub(super) fn restart(&mut self) {
        (self.least, self.rounds) = (None, 0);
    }

    /// Ends the throttle; returns whether there was one.
    pub(super) fn end_throttle(&mut self) -> bool {
        self.throttle.take().is_some()
    }

    /// Returns the throttle if the guest must be told again that it continues; 0 if it ends
    /// because nothing is sent: `sent_bytes` does not grow. A destination that hangs must not keep
    /// the guest slow.
    pub(super) fn renew(&mut self, sent_bytes: u64, now: Duration) -> Option<u8> {
        let step = self.throttle.as_mut()?;
        if sent_bytes > step.sent.0 {
            step.sent = (sent_bytes, now);
        }
        if now.saturating_sub(step.sent.1) >= THROTTLE_IN_VAIN {
            self.throttle = None;
            return Some(0);
        }
        if now.saturating_sub(step.renewed) < THROTTLE_RENEWAL {
            return None;
        }
        step.renewed = now;
        Some(step.percent)
    }

    /// Decides after a round that did not end with a hand-over.
    pub(super) fn after_round(&mut self, on_stall: OnStall, end: &RoundEnd) -> Remedy {
        if end.verdict == Verdict::MeasureAgain {
            return self.after_measurement(on_stall, end);
        }
        self.measured = None;
        if !self.is_stalled(end) && self.throttle.is_none() {
            return Remedy::None;
        }
        match on_stall {
            OnStall::Wait => Remedy::Wait,
            OnStall::Cancel => Remedy::GiveUp,
            OnStall::Postcopy => Remedy::Postcopy,
            OnStall::Throttle => self.throttle_more(end),
            OnStall::Force if end.expected > FORCED_MAX => Remedy::Wait,
            OnStall::Force if self.is_near_minimum(end.dirty_pages) => Remedy::Force,
            OnStall::Force => Remedy::Wait,
        }
    }

    /// Returns whether rounds have been in vain for long enough.
    fn is_stalled(&mut self, end: &RoundEnd) -> bool {
        match self.least {
            Some((least, since)) if end.dirty_pages as f64 > least as f64 * PROGRESS => {
                self.rounds = self.rounds.saturating_add(1);
                self.rounds >= ROUNDS_IN_VAIN && end.now.saturating_sub(since) >= TIME_IN_VAIN
            }
            _ => {
                (self.least, self.rounds) = (Some((end.dirty_pages, end.now)), 0);
                false
            }
        }
    }

    /// A guest that writes in bursts leaves more dirty after some rounds than after others.
    fn is_near_minimum(&self, dirty_pages: u64) -> bool {
        let least = self.least.map_or(u64::MAX, |(least, _)| least);
        dirty_pages as f64 <= least as f64 * NEAR_MINIMUM
            || self.rounds >= ROUNDS_IN_VAIN + ROUNDS_TO_MINIMUM
    }

    fn after_measurement(&mut self, on_stall: OnStall, end: &RoundEnd) -> Remedy {
        let now = end.now;
        let (count, since) = self.measured.unwrap_or((0, now));
        let count = count.saturating_add(1);
        self.measured = Some((count, since));
        if count < MEASURED_IN_VAIN || now.saturating_sub(since) < MEASURING_IN_VAIN {
            return Remedy::None;
        }
        match on_stall {
            OnStall::Wait => Remedy::Wait,
            OnStall::Force if end.expected > FORCED_MAX => Remedy::Wait,
            OnStall::Force => Remedy::Force,
            // A guest that is slower, or comes without its memory, is not paused any faster.
            OnStall::Throttle | OnStall::Postcopy | OnStall::Cancel => Remedy::GiveUp,
        }
    }

    /// Slows the guest down further, unless the last step shows its effect. The first step aims at
    /// rounds of half the size of the one before. But a guest that writes the same pages many times
    /// in a round dirties no fewer of them at half the speed; so each further step leaves it a
    /// quarter of the time that it had.
    fn throttle_more(&mut self, end: &RoundEnd) -> Remedy {
        let percent = match self.throttle {
            None => (100.0 * (1.0 - end.sent_per_dirtied / 2.0)) as u8,
            Some(step)
                if end.verdict == Verdict::SendRoundInVain
                    && step.percent < THROTTLE_MAX
                    && end.now.saturating_sub(step.since) >= THROTTLE_STEP =>
            {
                100 - (100 - step.percent) / 4
            }
            Some(_) if end.verdict == Verdict::SendRoundInVain => return Remedy::Wait,
            Some(_) => return Remedy::None,
        };
        let percent = percent.clamp(THROTTLE_FIRST, THROTTLE_MAX);
        let sent = (self.throttle.map_or(0, |step| step.sent.0), end.now);
        let (since, renewed) = (end.now, end.now);
        self.throttle = Some(Step { percent, applied: None, since, renewed, sent });
        Remedy::Throttle(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A round in vain at `at_ms` with an expected downtime of `expected_ms`, and as many pages
    /// dirty, of a guest that dirties two pages for each that is sent.
    fn in_vain(at_ms: u32, expected_ms: u32) -> RoundEnd {
        RoundEnd {
            verdict: Verdict::SendRoundInVain,
            dirty_pages: expected_ms.into(),
            expected: expected_ms * MS,
            sent_per_dirtied: 0.5,
            now: at_ms * MS,
        }
    }

    /// What is done after each of these rounds.
    fn remedies(on_stall: OnStall, rounds: &[(u32, u32)]) -> Vec<Remedy> {
        let mut watch = StallWatch::default();
        let ends = rounds.iter().map(|(at, expected)| in_vain(*at, *expected));
        ends.map(|end| watch.after_round(on_stall, &end)).collect()
    }

    #[test]
    fn a_stall_takes_rounds_and_time_without_progress() {
        use Remedy::{GiveUp, None};
        let cancel = |rounds| remedies(OnStall::Cancel, rounds);
        assert_eq!(cancel(&[(0, 900), (600, 900), (1200, 900)]), [None, None, GiveUp]);
        let fast: Vec<_> = (0..12).map(|round| (round * 100, 900)).collect();
        let after = cancel(&fast).iter().position(|remedy| *remedy == GiveUp);
        assert_eq!(after, Some(10), "a second, however short the rounds are");
        assert_eq!(cancel(&[(0, 900), (5000, 900)]), [None, None], "one round is no trend");
        let slow: Vec<_> = (0..12).map(|round| (round * 1000, 900 - round * 60)).collect();
        assert_eq!(cancel(&slow)[..9], [None; 9], "slow progress is progress");
    }

    #[test]
    fn a_rate_that_rises_and_falls_is_no_progress() {
        let mut watch = StallWatch::default();
        let ends = [(0, 32), (6, 24), (12, 21)].map(|(at, seconds)| RoundEnd {
            expected: Duration::from_secs(seconds),
            ..in_vain(at * 1000, 8205)
        });
        let remedies = ends.map(|end| watch.after_round(OnStall::Postcopy, &end));
        assert_eq!(remedies, [Remedy::None, Remedy::None, Remedy::Postcopy]);
    }

    #[test]
    fn another_bandwidth_restarts_the_trend() {
        let mut watch = StallWatch::default();
        let mut after = |end| watch.after_round(OnStall::Cancel, &end);
        assert_eq!(after(in_vain(0, 900)), Remedy::None);
        watch.restart();
        let slower = [(1000, 9000), (2000, 8000), (4000, 7000), (6000, 6000)];
        for (at, expected) in slower {
            let remedy = watch.after_round(OnStall::Cancel, &in_vain(at, expected));
            assert_eq!(remedy, Remedy::None, "it falls");
        }
    }

    #[test]
    fn a_guest_that_waits_is_left_alone() {
        let rounds: Vec<_> = (0..50).map(|round| (round * 1000, 900)).collect();
        let remedies = remedies(OnStall::Wait, &rounds);
        assert_eq!(
            (&remedies[..2], &remedies[2..]),
            (&[Remedy::None; 2][..], &[Remedy::Wait; 48][..])
        );
    }

    #[test]
    fn the_throttle_rises_until_rounds_shrink() {
        let mut watch = StallWatch::default();
        let mut after = |end: RoundEnd| watch.after_round(OnStall::Throttle, &end);
        assert_eq!([0, 600].map(|at| after(in_vain(at, 900))), [Remedy::None; 2]);
        assert_eq!(after(in_vain(1200, 900)), Remedy::Throttle(75));
        assert_eq!(after(in_vain(1300, 900)), Remedy::Wait, "too early to see an effect");
        assert_eq!(after(in_vain(1500, 900)), Remedy::Throttle(94));
        let shrinking = RoundEnd { verdict: Verdict::SendRound, ..in_vain(1800, 600) };
        assert_eq!(after(shrinking), Remedy::None);
        assert_eq!(after(in_vain(2100, 600)), Remedy::Throttle(99));
        assert_eq!(after(in_vain(2400, 600)), Remedy::Wait, "it is never stopped");
        assert_eq!(watch.throttled(4), Throttled { vcpus: 4, percent: 99 });
        assert!(watch.end_throttle() && !watch.end_throttle());
        assert_eq!(watch.throttled(4), Throttled::default());
    }

    #[test]
    fn the_first_step_is_neither_too_small_nor_a_pause() {
        let first = |sent_per_dirtied| {
            let mut watch = StallWatch::default();
            let ends = [0, 600, 1200].map(|at| RoundEnd { sent_per_dirtied, ..in_vain(at, 900) });
            ends.map(|end| watch.after_round(OnStall::Throttle, &end))[2]
        };
        assert_eq!(first(5.0), Remedy::Throttle(20));
        assert_eq!(first(f64::INFINITY), Remedy::Throttle(20));
        assert_eq!(first(0.0), Remedy::Throttle(99));
        assert_eq!(first(f64::NAN), Remedy::Throttle(20));
    }

    #[test]
    fn the_guest_is_told_again_that_its_throttle_continues() {
        let mut watch = StallWatch::default();
        assert_eq!(watch.renew(1, 1000 * MS), None);
        for at in [0, 600, 1200] {
            watch.after_round(OnStall::Throttle, &in_vain(at, 900));
        }
        assert_eq!(watch.renew(2, 2100 * MS), None);
        assert_eq!(watch.renew(3, 2300 * MS), Some(75));
        assert_eq!(watch.renew(3, 2400 * MS), None);
    }

    #[test]
    fn the_guest_says_which_share_of_it_rests_until_the_next_step() {
        let mut watch = StallWatch::default();
        let (one, none) = (Throttled { vcpus: 1, percent: 83 }, Throttled::default());
        assert!(!watch.on_throttled(one), "late: it is not throttled any more");
        for at in [0, 600, 1200] {
            watch.after_round(OnStall::Throttle, &in_vain(at, 900));
        }
        assert_eq!(watch.throttled(4), Throttled { vcpus: 4, percent: 75 });
        assert!(!watch.on_throttled(none), "late: the answer to the end of an earlier one");
        assert!(watch.on_throttled(one));
        assert_eq!(watch.throttled(4), one);
        watch.after_round(OnStall::Throttle, &in_vain(1500, 900));
        assert_eq!(watch.throttled(4), Throttled { vcpus: 4, percent: 94 });
    }

    #[test]
    fn the_throttle_ends_when_nothing_is_sent_any_more() {
        let mut watch = StallWatch::default();
        for at in [0, 600, 1200] {
            watch.after_round(OnStall::Throttle, &in_vain(at, 900));
        }
        assert_eq!(watch.renew(7, 3000 * MS), Some(75));
        assert_eq!(watch.renew(7, 7000 * MS), Some(75));
        assert_eq!(watch.renew(7, 8000 * MS), Some(0));
        assert_eq!((watch.throttled(4), watch.renew(7, 9000 * MS)), (Throttled::default(), None));
    }

    #[test]
    fn a_forced_hand_over_waits_for_a_minimum_but_not_for_ever() {
        use Remedy::{Force, None, Wait};
        let force = |rounds| remedies(OnStall::Force, rounds);
        let burst = [(0, 500), (600, 900), (1200, 900), (1800, 540)];
        assert_eq!(force(&burst), [None, None, Wait, Force]);
        let mut louder: Vec<_> = (0..8).map(|round| (round * 600, 900)).collect();
        louder[0].1 = 500;
        assert_eq!(force(&louder).iter().position(|remedy| *remedy == Force), Some(6));
        let endless: Vec<_> = (0..20).map(|round| (round * 600, 31_000)).collect();
        assert_eq!(
            force(&endless)[2..],
            [Wait; 18],
            "a pause of more than half a minute is not forced"
        );
    }

    #[test]
    fn memory_follows_a_guest_that_stalls_as_soon_as_that_is_noticed() {
        let after = remedies(OnStall::Postcopy, &[(0, 900), (600, 900), (1200, 900)]);
        assert_eq!(after, [Remedy::None, Remedy::None, Remedy::Postcopy]);
    }

    #[test]
    fn a_limit_below_the_fixed_part_is_impossible_after_some_measurements() {
        let measured_at = |on_stall, expected_ms| {
            let mut watch = StallWatch::default();
            let again =
                |at| RoundEnd { verdict: Verdict::MeasureAgain, ..in_vain(at, expected_ms) };
            (0..6).map(|n| watch.after_round(on_stall, &again(n * 2500))).collect::<Vec<_>>()
        };
        let measured = |on_stall| measured_at(on_stall, 900);
        let at = |on_stall, remedy| measured(on_stall).iter().position(|other| *other == remedy);
        assert_eq!(at(OnStall::Throttle, Remedy::GiveUp), Some(4));
        assert_eq!(at(OnStall::Cancel, Remedy::GiveUp), Some(4));
        assert_eq!(at(OnStall::Postcopy, Remedy::GiveUp), Some(4));
        assert_eq!(at(OnStall::Force, Remedy::Force), Some(4));
        assert_eq!(at(OnStall::Wait, Remedy::Wait), Some(4));
        let too_long = measured_at(OnStall::Force, 31_000);
        assert!(!too_long.contains(&Remedy::Force), "too long a pause: {too_long:?}");
    }
}
