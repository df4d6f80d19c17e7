//! Limits how fast a guest writes a disk: even a guest whose vCPUs rest for most of the time has
//! many writes in flight.

use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Longest wait before the limit is looked at again: it may have changed.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Longest time by which a request delays those behind it: a guest's driver may give up on them.
const DELAY_MAX: Duration = Duration::from_secs(5);

/// What a guest may write to a disk.
#[derive(Debug, Default)]
pub(super) struct WriteAllowance(Mutex<Option<Limit>>);

#[derive(Debug)]
struct Limit {
    bytes_per_second: NonZeroU64,
    /// When the lease of the limit ends.
    until: Instant,
    /// When the limit allows for all that was written.
    paid: Instant,
}

/// How many requests may be taken from a queue.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// As many as there are.
    All,
    /// One: it may be a write, after which others wait.
    One,
    /// None before this time has passed.
    After(Duration),
}

impl WriteAllowance {
    /// Sets the limit, for the duration of `lease` from `now`; none ends it. What was written under
    /// an earlier limit still counts.
    pub(super) fn set(&self, bytes_per_second: Option<NonZeroU64>, lease: Duration, now: Instant) {
        let mut limit = self.lock();
        let paid = limit.as_ref().map_or(now, |limit| limit.paid);
        let lease = bytes_per_second.zip(now.checked_add(lease));
        *limit = lease.map(|(bytes_per_second, until)| Limit { bytes_per_second, until, paid });
    }

    /// Returns how many requests may be taken at `now`.
    pub(super) fn turn(&self, now: Instant) -> Turn {
        let mut limit = self.lock();
        match &*limit {
            None => Turn::All,
            Some(Limit { until, .. }) if *until <= now => {
                *limit = None;
                Turn::All
            }
            Some(Limit { paid, .. }) if *paid > now => {
                Turn::After(paid.duration_since(now).min(LOOK_AGAIN))
            }
            Some(_) => Turn::One,
        }
    }

    /// Notes that a write of so many `bytes` was taken at `now`.
    pub(super) fn spend(&self, bytes: u64, now: Instant) {
        if let Some(limit) = &mut *self.lock() {
            let seconds = bytes as f64 / limit.bytes_per_second.get() as f64;
            let delay =
                Duration::try_from_secs_f64(seconds).map_or(DELAY_MAX, |it| it.min(DELAY_MAX));
            limit.paid = limit.paid.max(now) + delay;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Limit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(60);

    fn rate(bytes_per_second: u64) -> Option<NonZeroU64> {
        NonZeroU64::new(bytes_per_second)
    }

    #[test]
    fn writes_take_as_long_as_the_limit_says() {
        let (allowance, begin) = (WriteAllowance::default(), Instant::now());
        assert_eq!(allowance.turn(begin), Turn::All);
        allowance.set(rate(1_000_000), LONG, begin);
        let (mut now, mut written) = (begin, 0);
        while now < begin + 1000 * MS {
            match allowance.turn(now) {
                Turn::After(wait) => now += wait,
                turn => {
                    assert_eq!(turn, Turn::One);
                    allowance.spend(4096, now);
                    written += 4096;
                }
            }
        }
        assert!((1_000_000..1_004_096).contains(&written), "{written}");
    }

    #[test]
    fn a_limit_ends_with_its_lease_or_when_it_is_lifted() {
        let (allowance, now) = (WriteAllowance::default(), Instant::now());
        allowance.set(rate(1), 100 * MS, now);
        allowance.spend(1, now);
        assert_eq!(allowance.turn(now), Turn::After(LOOK_AGAIN));
        assert_eq!(allowance.turn(now + 100 * MS), Turn::All);
        assert_eq!(allowance.turn(now), Turn::All, "it does not come back");
        allowance.set(rate(1), LONG, now);
        allowance.spend(1, now);
        allowance.set(None, LONG, now);
        assert_eq!(allowance.turn(now), Turn::All);
    }

    #[test]
    fn a_renewed_limit_knows_what_was_written() {
        let (allowance, now) = (WriteAllowance::default(), Instant::now());
        allowance.set(rate(1000), LONG, now);
        allowance.spend(1000, now);
        allowance.set(rate(2000), LONG, now + 500 * MS);
        assert_eq!(allowance.turn(now + 999 * MS), Turn::After(MS));
        assert_eq!(allowance.turn(now + 1000 * MS), Turn::One);
    }

    #[test]
    fn no_request_delays_others_for_long() {
        let (allowance, now) = (WriteAllowance::default(), Instant::now());
        allowance.set(rate(1), LONG, now);
        allowance.spend(u64::MAX, now);
        assert_eq!(allowance.turn(now + DELAY_MAX - MS), Turn::After(MS));
        assert_eq!(allowance.turn(now + DELAY_MAX), Turn::One);
    }
}
