//! Limits that the operator sets for a migration.

use std::time::Duration;

use crate::stall::OnStall;

/// Limits of one migration, for the source. The bandwidth limit is not among them: the shell
/// applies it, and the state machine sees it as measured bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The source pauses the guest for the last round only if the expected downtime is within this.
    /// [`Limits::standstill`] bounds the actual pause.
    pub downtime: Duration,
    /// Most to which the source raises the downtime limit, step by step, if it is not met; none, or
    /// less than the limit: it is not raised.
    pub downtime_max: Option<Duration>,
    /// Time after which a migration that has not committed is aborted; none: no limit.
    pub total: Option<Duration>,
    /// Longest wait for the answer to a greeting or to the description of the guest.
    pub answer: Duration,
    /// Longest time from the pause until the destination must be ready, or run the guest if the
    /// commit is early, for a guest that its user had paused: then the migration is aborted. For a
    /// guest that ran, [`Limits::standstill`] applies; this caps it, but not below the downtime
    /// limit plus a second.
    pub switchover: Duration,
    /// What to do if rounds do not bring the downtime within its limit.
    pub on_stall: OnStall,
}

/// Limits that change during a migration; what is absent stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LimitsChange {
    /// Most bytes per second; 0 for no limit. The shell applies it.
    pub bandwidth: Option<u64>,
    /// The downtime limit, from which it is raised again.
    pub downtime: Option<Duration>,
    /// Most to which it is raised.
    pub downtime_max: Option<Duration>,
    /// The time limit, counted from the start of the migration.
    pub total: Option<Duration>,
    /// What to do about a stall.
    pub on_stall: Option<OnStall>,
}

impl LimitsChange {
    /// Returns whether it changes nothing but the bandwidth.
    pub(crate) fn is_of_bandwidth(&self) -> bool {
        *self == Self { bandwidth: self.bandwidth, ..Self::default() }
    }
}

/// Time that a hand-over may take in addition to twice the downtime limit.
const STANDSTILL_SLACK: Duration = Duration::from_secs(1);

impl Limits {
    /// Returns the downtime limit as far as it may be raised.
    pub fn downtime_ceiling(&self) -> Duration {
        self.downtime_max.map_or(self.downtime, |max| max.max(self.downtime))
    }

    /// Returns the longest pause of a running guest before the decision to hand it over, or, if the
    /// commit is early, before the guest is wanted back: twice the downtime limit plus a second. It
    /// is at most [`Limits::switchover`], or the downtime limit plus a second if that is longer.
    ///
    /// The downtime limit is compared with an estimate before the pause; this one applies after it,
    /// when the link or a disk may have become slower. The slack lets a hand-over finish that is
    /// slightly slower than expected; repeating it would pause the guest a second time.
    pub fn standstill(&self) -> Duration {
        let once = self.downtime.saturating_add(STANDSTILL_SLACK);
        once.saturating_add(self.downtime).min(self.switchover.max(once))
    }

    /// Applies a change.
    pub(crate) fn change(&mut self, change: &LimitsChange) {
        self.downtime = change.downtime.unwrap_or(self.downtime);
        self.downtime_max = change.downtime_max.or(self.downtime_max);
        self.total = change.total.or(self.total);
        self.on_stall = change.on_stall.unwrap_or(self.on_stall);
    }
}

impl Default for Limits {
    /// 300 ms of downtime and never more, an hour in all, 60 s for an answer, 30 s for a
    /// switchover; a guest that writes too fast is throttled.
    fn default() -> Self {
        Self {
            downtime: Duration::from_millis(300),
            downtime_max: None,
            total: Some(Duration::from_secs(3600)),
            answer: Duration::from_secs(60),
            switchover: Duration::from_secs(30),
            on_stall: OnStall::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standstill_is_bounded_by_the_downtime_limit() {
        let allowed = |downtime_ms| {
            let downtime = Duration::from_millis(downtime_ms);
            Limits { downtime, ..Limits::default() }.standstill().as_millis()
        };
        assert_eq!(allowed(1), 1_002);
        assert_eq!(allowed(300), 1_600);
        assert_eq!(allowed(10_000), 21_000);
        assert_eq!(allowed(20_000), 30_000);
        assert_eq!(allowed(60_000), 61_000, "no less than what its user allows");
        let endless = Limits { downtime: Duration::MAX, ..Limits::default() };
        assert_eq!(endless.standstill(), Duration::MAX);
    }

    #[test]
    fn the_downtime_limit_is_never_below_what_it_is_set_to() {
        let ceiling =
            |downtime_max| Limits { downtime_max, ..Limits::default() }.downtime_ceiling();
        let ms = Duration::from_millis;
        assert_eq!([None, Some(ms(100)), Some(ms(300))].map(ceiling), [ms(300); 3]);
        assert_eq!(ceiling(Some(ms(2000))), ms(2000));
    }
}
