//! The times of a schedule that have passed since the last call.

use super::cron::Cron;

/// The most times that are counted exactly. Beyond that, after an absence of hours to years, the
/// count is a lower bound.
const COUNTED_MAX: u64 = 256;

/// The times that have passed: at least one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Passed {
    /// The first time.
    pub(super) first: u64,
    /// The last but one, if there is more than one.
    pub(super) before_last: Option<u64>,
    /// The last time.
    pub(super) last: u64,
    /// The number of times; a lower bound from [`COUNTED_MAX`] on.
    pub(super) count: u64,
}

/// Returns the times of `cron` from `next`, which is one of them, until `now`, inclusive.
pub(super) fn passed(cron: &Cron, next: u64, now: u64) -> Option<Passed> {
    if next > now {
        return None;
    }
    let mut passed = Passed { first: next, before_last: None, last: next, count: 1 };
    while let Some(tick) = cron.after(passed.last).filter(|tick| *tick <= now) {
        passed.count += 1;
        passed.before_last = Some(passed.last);
        passed.last = tick;
        if passed.count == COUNTED_MAX {
            passed.last = cron.until(now).unwrap_or(tick).max(tick);
            let before = cron.until(passed.last - 1).filter(|before| *before >= next);
            passed.before_last = before.or(passed.before_last);
            break;
        }
    }
    Some(passed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::Zone;

    #[test]
    fn elapsed_times_are_counted_including_the_present_one() {
        let hourly = Cron::parse("0 * * * *", Zone::utc()).unwrap();
        assert_eq!(passed(&hourly, 7200, 7199), None);
        let one = Passed { first: 7200, before_last: None, last: 7200, count: 1 };
        assert_eq!(passed(&hourly, 7200, 7200), Some(one));
        let three = Passed { first: 7200, before_last: Some(10_800), last: 14_400, count: 3 };
        assert_eq!(passed(&hourly, 7200, 14_401), Some(three));
    }

    #[test]
    fn after_years_the_last_is_right_and_the_count_a_lower_bound() {
        let mondays = Cron::parse("* * * * 1", Zone::utc()).unwrap();
        // Sunday, 2026-11-22 12:00 UTC; the last Monday ended six days before.
        let now = 1_795_348_800;
        let passed = passed(&mondays, mondays.after(0).unwrap(), now).unwrap();
        assert_eq!(passed.last, 1_794_873_600 - 60);
        assert_eq!((passed.before_last, passed.count), (Some(passed.last - 60), COUNTED_MAX));
    }
}
