//! Notices that rounds do not lower the expected downtime any more, and decides what to do then.

use std::time::Duration;

use crate::convergence::Verdict;
use crate::guest::Throttled;
use crate::limits::Limits;
use crate::stall::OnStall;

/// A round counts as progress if it leaves at most this share of the least dirty pages so far. The
/// expected downtime would not do: it also rises and falls with the rate of the link.
const PROGRESS: f64 = 0.9;
/// Rounds in a row without progress that make a stall.
const ROUNDS_IN_VAIN: u32 = 2;
/// Shortest time without progress that makes a stall: rounds of a fast link take milliseconds.
const TIME_IN_VAIN: Duration = Duration::from_secs(1);
/// Times in a row that the fixed part of the downtime was above the limit before the limit counts
/// as impossible, and the shortest time that they span: a disk may be busy for some seconds.
const MEASURED_IN_VAIN: u32 = 5;
const MEASURING_IN_VAIN: Duration = Duration::from_secs(10);
/// Times in a row that suffice if the least of these fixed parts is more than this factor above the
/// limit, or if the limit may be raised to it.
const MEASURED_AGAIN: u32 = 2;
const FAR_ABOVE: u32 = 4;
/// Shortest downtime limit that can be doubled.
const LIMIT_MIN: Duration = Duration::from_millis(1);
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
/// How long a guest is throttled while nothing is sent. A second would be too short: a link that
/// was down for one can be silent for two, since QUIC doubles the time between its probes (RFC 9002
/// §6.2.1), and a guest at full speed would dirty again what the throttle has gained.
const THROTTLE_IN_VAIN: Duration = Duration::from_secs(5);

/// The end of a round.
#[derive(Debug, Clone, Copy)]
pub(super) struct RoundEnd {
    pub(super) verdict: Verdict,
    /// Pages that are dirty now.
    pub(super) dirty_pages: u64,
    /// Expected downtime if the guest were paused now.
    pub(super) expected: Duration,
    /// The part of it that does not depend on memory.
    pub(super) fixed: Duration,
    /// Pages that are sent for each page of memory that the guest dirties.
    pub(super) sent_per_dirtied: f64,
    /// What the disks that are copied may have, once the guest is throttled, of what is sent.
    pub(super) disks_share: f64,
    pub(super) now: Duration,
}

/// What to do after a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// What the verdict says.
    None,
    /// What the verdict says, although the migration stalls.
    Wait,
    /// Raise the downtime limit to this, then judge the round again.
    Raise(Duration),
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
    measured: Option<Measured>,
    /// The downtime limit as it was last raised, and when that was.
    raised: Option<(Duration, Duration)>,
    throttle: Option<Step>,
}

/// Measurements in a row of a fixed part that was above the downtime limit.
#[derive(Debug, Clone, Copy)]
struct Measured {
    count: u32,
    since: Duration,
    least: Duration,
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

    /// Returns the downtime limit, as it has been raised.
    pub(super) fn limit(&self, limits: &Limits) -> Duration {
        let raised = self.raised.map_or(Duration::ZERO, |(raised, _)| raised);
        raised.clamp(limits.downtime, limits.downtime_ceiling())
    }

    /// Begins again with the downtime limit that the operator has set.
    pub(super) fn reset_limit(&mut self) {
        (self.raised, self.measured) = (None, None);
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

    /// Decides after a round that did not end with a hand-over. A longer pause comes before every
    /// other remedy.
    pub(super) fn after_round(&mut self, limits: &Limits, end: &RoundEnd) -> Remedy {
        if end.verdict == Verdict::MeasureAgain {
            return self.after_measurement(limits, end);
        }
        self.measured = None;
        let is_stalled = self.is_stalled(end);
        let is_in_vain = is_stalled || end.verdict == Verdict::SendRoundInVain;
        if !is_stalled && self.throttle.is_none() {
            return Remedy::None;
        }
        if is_in_vain && self.limit(limits) < limits.downtime_ceiling() {
            return self.raise_by_a_step(limits, end);
        }
        match limits.on_stall {
            OnStall::Wait => Remedy::Wait,
            OnStall::Cancel => Remedy::GiveUp,
            OnStall::Postcopy => Remedy::Postcopy,
            OnStall::Throttle => self.throttle_more(end),
            OnStall::Force if end.expected > FORCED_MAX => Remedy::Wait,
            OnStall::Force if self.is_near_minimum(end.dirty_pages) => Remedy::Force,
            OnStall::Force => Remedy::Wait,
        }
    }

    /// Doubles the downtime limit, unless the last step was too recent: the guest may write less in
    /// a moment. Where even the ceiling would not do, no step below it would either.
    fn raise_by_a_step(&mut self, limits: &Limits, end: &RoundEnd) -> Remedy {
        let is_recent = |(_, at): (Duration, Duration)| end.now.saturating_sub(at) < TIME_IN_VAIN;
        if self.raised.is_some_and(is_recent) {
            return Remedy::Wait;
        }
        let is_enough = end.expected <= limits.downtime_ceiling();
        self.raise(limits, if is_enough { Duration::ZERO } else { end.expected }, end.now)
    }

    /// Doubles the downtime limit, once and then until it is at least `needed`, up to its ceiling.
    fn raise(&mut self, limits: &Limits, needed: Duration, now: Duration) -> Remedy {
        let ceiling = limits.downtime_ceiling();
        let mut limit = self.limit(limits).max(LIMIT_MIN).saturating_mul(2);
        while limit < needed.min(ceiling) {
            limit = limit.saturating_mul(2);
        }
        let limit = limit.min(ceiling);
        self.raised = Some((limit, now));
        Remedy::Raise(limit)
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

    /// Decides after a dry run that took longer than the downtime limit, whatever is dirty.
    fn after_measurement(&mut self, limits: &Limits, end: &RoundEnd) -> Remedy {
        let (now, ceiling) = (end.now, limits.downtime_ceiling());
        let before = self.measured.unwrap_or(Measured { count: 0, since: now, least: end.fixed });
        let (count, least) = (before.count.saturating_add(1), before.least.min(end.fixed));
        self.measured = Some(Measured { count, least, ..before });
        if least <= ceiling && self.limit(limits) < ceiling {
            if count < MEASURED_AGAIN {
                return Remedy::None;
            }
            self.measured = None;
            return self.raise(limits, least, now);
        }
        let spans = now.saturating_sub(before.since);
        let is_far = count >= MEASURED_AGAIN && least > ceiling.saturating_mul(FAR_ABOVE);
        if !is_far && (count < MEASURED_IN_VAIN || spans < MEASURING_IN_VAIN) {
            return Remedy::None;
        }
        match limits.on_stall {
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
            None => (100.0 * (1.0 - end.sent_per_dirtied * (0.5 - end.disks_share))) as u8,
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
            fixed: 10 * MS,
            sent_per_dirtied: 0.5,
            disks_share: 0.0,
            now: at_ms * MS,
        }
    }

    /// A limit of 300 ms that is not raised.
    fn limits(on_stall: OnStall) -> Limits {
        Limits { on_stall, ..Limits::default() }
    }

    /// As `limits`, but it is raised to 2 s.
    fn raised(on_stall: OnStall) -> Limits {
        Limits { downtime_max: Some(2000 * MS), ..limits(on_stall) }
    }

    /// What is done after each of these rounds.
    fn remedies(limits: &Limits, rounds: &[(u32, u32)]) -> Vec<Remedy> {
        let mut watch = StallWatch::default();
        let ends = rounds.iter().map(|(at, expected)| in_vain(*at, *expected));
        ends.map(|end| watch.after_round(limits, &end)).collect()
    }

    #[test]
    fn a_stall_takes_rounds_and_time_without_progress() {
        use Remedy::{GiveUp, None};
        let cancel = |rounds| remedies(&limits(OnStall::Cancel), rounds);
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
        let remedies = ends.map(|end| watch.after_round(&limits(OnStall::Postcopy), &end));
        assert_eq!(remedies, [Remedy::None, Remedy::None, Remedy::Postcopy]);
    }

    #[test]
    fn another_bandwidth_restarts_the_trend() {
        let mut watch = StallWatch::default();
        let mut after = |end| watch.after_round(&limits(OnStall::Cancel), &end);
        assert_eq!(after(in_vain(0, 900)), Remedy::None);
        watch.restart();
        let slower = [(1000, 9000), (2000, 8000), (4000, 7000), (6000, 6000)];
        for (at, expected) in slower {
            let remedy = watch.after_round(&limits(OnStall::Cancel), &in_vain(at, expected));
            assert_eq!(remedy, Remedy::None, "it falls");
        }
    }

    #[test]
    fn a_guest_that_waits_is_left_alone() {
        let rounds: Vec<_> = (0..50).map(|round| (round * 1000, 900)).collect();
        let remedies = remedies(&limits(OnStall::Wait), &rounds);
        assert_eq!(
            (&remedies[..2], &remedies[2..]),
            (&[Remedy::None; 2][..], &[Remedy::Wait; 48][..])
        );
    }

    #[test]
    fn the_throttle_rises_until_rounds_shrink() {
        let mut watch = StallWatch::default();
        let mut after = |end: RoundEnd| watch.after_round(&limits(OnStall::Throttle), &end);
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
            ends.map(|end| watch.after_round(&limits(OnStall::Throttle), &end))[2]
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
            watch.after_round(&limits(OnStall::Throttle), &in_vain(at, 900));
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
            watch.after_round(&limits(OnStall::Throttle), &in_vain(at, 900));
        }
        assert_eq!(watch.throttled(4), Throttled { vcpus: 4, percent: 75 });
        assert!(!watch.on_throttled(none), "late: the answer to the end of an earlier one");
        assert!(watch.on_throttled(one));
        assert_eq!(watch.throttled(4), one);
        watch.after_round(&limits(OnStall::Throttle), &in_vain(1500, 900));
        assert_eq!(watch.throttled(4), Throttled { vcpus: 4, percent: 94 });
    }

    #[test]
    fn the_throttle_ends_when_nothing_is_sent_any_more() {
        let mut watch = StallWatch::default();
        for at in [0, 600, 1200] {
            watch.after_round(&limits(OnStall::Throttle), &in_vain(at, 900));
        }
        assert_eq!(watch.renew(7, 3000 * MS), Some(75));
        assert_eq!(watch.renew(7, 7000 * MS), Some(75));
        assert_eq!(watch.renew(7, 8000 * MS), Some(0));
        assert_eq!((watch.throttled(4), watch.renew(7, 9000 * MS)), (Throttled::default(), None));
    }

    #[test]
    fn a_forced_hand_over_waits_for_a_minimum_but_not_for_ever() {
        use Remedy::{Force, None, Wait};
        let force = |rounds| remedies(&limits(OnStall::Force), rounds);
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
        let after = remedies(&limits(OnStall::Postcopy), &[(0, 900), (600, 900), (1200, 900)]);
        assert_eq!(after, [Remedy::None, Remedy::None, Remedy::Postcopy]);
    }

    /// What is done after dry runs with these fixed parts, each of them 2.5 s after the last.
    fn measured(limits: &Limits, fixed_ms: &[u32]) -> Vec<Remedy> {
        let mut watch = StallWatch::default();
        let ends = (0..).zip(fixed_ms).map(|(n, fixed)| RoundEnd {
            verdict: Verdict::MeasureAgain,
            fixed: *fixed * MS,
            ..in_vain(n * 2500, *fixed)
        });
        ends.map(|end| watch.after_round(limits, &end)).collect()
    }

    #[test]
    fn a_limit_below_the_fixed_part_is_impossible_after_some_measurements() {
        use Remedy::{Force, GiveUp, None, Wait};
        for (on_stall, remedy) in [
            (OnStall::Throttle, GiveUp),
            (OnStall::Cancel, GiveUp),
            (OnStall::Postcopy, GiveUp),
            (OnStall::Force, Force),
            (OnStall::Wait, Wait),
        ] {
            let after = |fixed_ms: &[u32]| measured(&limits(on_stall), fixed_ms);
            assert_eq!(after(&[900; 5]), [None, None, None, None, remedy], "it may be noise");
            assert_eq!(after(&[1201, 1300]), [None, remedy], "it is far above");
            let nearly = after(&[9000, 1200, 9000, 9000, 9000]);
            assert_eq!(nearly, [None, None, None, None, remedy], "the least is not far above");
        }
        let too_long = measured(&limits(OnStall::Force), &[31_000; 6]);
        assert_eq!(too_long[1..], [Wait; 5], "too long a pause");
    }

    #[test]
    fn a_stall_raises_the_limit_step_by_step_before_the_remedy() {
        use Remedy::{GiveUp, None, Raise, Wait};
        let rounds: Vec<_> = (0..9).map(|round| (round * 600, 1900)).collect();
        let steps = remedies(&raised(OnStall::Cancel), &rounds);
        assert_eq!(steps[..4], [None, None, Raise(600 * MS), Wait], "each step gets a second");
        assert_eq!(steps[4..], [Raise(1200 * MS), Wait, Raise(2000 * MS), GiveUp, GiveUp]);
        let rounds = [(0, 2100), (600, 2100), (1200, 2100), (1300, 2100)];
        let steps = remedies(&raised(OnStall::Throttle), &rounds);
        let throttle = Remedy::Throttle(75);
        assert_eq!(steps, [None, None, Raise(2000 * MS), throttle], "no step would do");
    }

    #[test]
    fn a_limit_is_raised_before_the_throttle_goes_on() {
        let mut watch = StallWatch::default();
        for at in [0, 600] {
            watch.after_round(&limits(OnStall::Throttle), &in_vain(at, 900));
        }
        let throttled = watch.after_round(&limits(OnStall::Throttle), &in_vain(1200, 900));
        assert_eq!(throttled, Remedy::Throttle(75));
        let mut after = |end| watch.after_round(&raised(OnStall::Throttle), &end);
        let shrinking = |at| RoundEnd { verdict: Verdict::SendRound, ..in_vain(at, 500) };
        assert_eq!(after(shrinking(1800)), Remedy::None, "the throttle shows its effect");
        assert_eq!(after(in_vain(2400, 500)), Remedy::Raise(600 * MS));
        assert_eq!(after(in_vain(2500, 700)), Remedy::Wait);
        assert_eq!(after(in_vain(3600, 2500)), Remedy::Raise(2000 * MS));
        assert_eq!(after(in_vain(3700, 2500)), Remedy::Throttle(94));
    }

    #[test]
    fn the_limit_as_raised_is_within_what_the_operator_sets() {
        let mut watch = StallWatch::default();
        let wait = raised(OnStall::Wait);
        assert_eq!(watch.limit(&wait), 300 * MS);
        for at in [0, 600, 1200, 2300] {
            watch.after_round(&wait, &in_vain(at, 1900));
        }
        assert_eq!(watch.limit(&wait), 1200 * MS);
        assert_eq!(watch.limit(&Limits { downtime_max: Some(1000 * MS), ..wait }), 1000 * MS);
        assert_eq!(watch.limit(&Limits { downtime: 5000 * MS, ..wait }), 5000 * MS);
        watch.reset_limit();
        assert_eq!(watch.limit(&wait), 300 * MS);
    }

    #[test]
    fn a_limit_below_the_fixed_part_is_raised_as_far_as_it_needs_to_be() {
        use Remedy::{GiveUp, None, Raise};
        let after = |fixed_ms: &[u32]| measured(&raised(OnStall::Throttle), fixed_ms);
        assert_eq!(after(&[320, 310]), [None, Raise(600 * MS)], "no remedy is needed");
        assert_eq!(after(&[1900, 700]), [None, Raise(1200 * MS)], "the least of two");
        assert_eq!(after(&[1900, 700, 1900, 1900])[2..], [None, Raise(2000 * MS)]);
        assert_eq!(after(&[2001; 5]), [None, None, None, None, GiveUp], "nor does the ceiling do");
        assert_eq!(after(&[8001; 2]), [None, GiveUp]);
        let tiny = Limits { downtime: Duration::ZERO, ..raised(OnStall::Wait) };
        assert_eq!(measured(&tiny, &[3, 3])[1], Raise(4 * MS));
    }
}
