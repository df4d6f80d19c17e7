//! What the operator allows a migration to cost.

use std::time::Duration;

/// Limits of one migration, for the source. The bandwidth limit is the shell's business: the
/// machine sees it as measured bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The guest is paused for the last round only when this is expected to last no longer.
    /// [`Limits::standstill`] bounds the actual pause.
    pub downtime: Duration,
    /// The migration is cancelled when it has not committed after this time; none: never.
    pub total: Option<Duration>,
    /// Longest wait for an answer to a greeting or a description of the guest.
    pub answer: Duration,
    /// The guest resumes on the source when the destination is not ready this long after the pause,
    /// also when it was paused by its user. See [`Limits::standstill`] for one that ran.
    pub switchover: Duration,
}

/// What a hand-over may take beyond twice the downtime limit.
const STANDSTILL_SLACK: Duration = Duration::from_secs(1);

impl Limits {
    /// Longest pause of a running guest before the decision to hand it over: twice the downtime
    /// limit and a second. At most [`Limits::switchover`], or the downtime limit and a second where
    /// that is longer.
    ///
    /// The downtime limit is compared with an estimate before the pause; this one holds after it,
    /// when the link or a disk has become slower than it was. The slack keeps a hand-over that was
    /// a little slower than expected from being repeated, which would cost the guest a second
    /// standstill.
    pub fn standstill(&self) -> Duration {
        let once = self.downtime.saturating_add(STANDSTILL_SLACK);
        once.saturating_add(self.downtime).min(self.switchover.max(once))
    }
}

impl Default for Limits {
    /// 300 ms of downtime, an hour in all, 60 s for an answer, 30 s for a switchover.
    fn default() -> Self {
        Self {
            downtime: Duration::from_millis(300),
            total: Some(Duration::from_secs(3600)),
            answer: Duration::from_secs(60),
            switchover: Duration::from_secs(30),
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
}
