//! Limits how fast a guest writes a disk: even a guest whose vCPUs rest for most of the time has
//! many writes in flight.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::log::pages_of;
use crate::memory::PAGE_BYTES;

/// Longest wait before the limit is read again: it may have changed.
const RECHECK: Duration = Duration::from_millis(50);
/// Longest time by which a write delays those behind it in its queue: a guest's driver may give up
/// on them.
const DELAY_MAX: Duration = Duration::from_secs(5);
/// How long a queue counts as one that writes after the delay of its last write.
const WRITES_FOR: Duration = Duration::from_secs(1);

/// What a guest may write to a disk.
#[derive(Debug, Default)]
pub(super) struct WriteLimit(Mutex<Option<Limit>>);

#[derive(Debug)]
struct Limit {
    bytes_per_second: NonZeroU64,
    /// When the lease of the limit ends.
    until: Instant,
    /// By queue, when the limit allows for what was written from it.
    free_at: BTreeMap<usize, Instant>,
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

impl WriteLimit {
    /// Sets the limit, for the duration of `lease` from `now`; `None` ends it. What was written
    /// under an earlier limit still counts.
    pub(super) fn set(&self, bytes_per_second: Option<NonZeroU64>, lease: Duration, now: Instant) {
        let mut limit = self.lock();
        let free_at = limit.take().map(|limit| limit.free_at).unwrap_or_default();
        let set = bytes_per_second.zip(now.checked_add(lease));
        *limit = set.map(|(bytes_per_second, until)| Limit { bytes_per_second, until, free_at });
    }

    /// Returns how many requests may be taken from `queue` at `now`.
    pub(super) fn turn(&self, queue: usize, now: Instant) -> Turn {
        let mut limit = self.lock();
        if limit.as_ref().is_some_and(|limit| limit.until <= now) {
            *limit = None;
        }
        let Some(limit) = &*limit else { return Turn::All };
        match limit.free_at.get(&queue).map(|free_at| free_at.saturating_duration_since(now)) {
            Some(wait) if !wait.is_zero() => Turn::After(wait.min(RECHECK)),
            _ => Turn::One,
        }
    }

    /// Notes that a write to this range of the disk (first byte and length) was taken from `queue`
    /// at `now`. It counts as the pages that it touches, which are sent again. Queues that write at
    /// the same time share the limit, so that none waits for another one.
    pub(super) fn spend(&self, queue: usize, (offset, bytes): (u64, u64), now: Instant) {
        let Some(limit) = &mut *self.lock() else { return };
        let writes = |(other, at): &(&usize, &Instant)| **other != queue && **at + WRITES_FOR > now;
        let writing = 1 + limit.free_at.iter().filter(writes).count();
        let pages = pages_of(offset, bytes);
        let bytes = (pages.end - pages.start) as f64 * PAGE_BYTES as f64;
        let seconds = bytes * writing as f64 / limit.bytes_per_second.get() as f64;
        let delay = Duration::try_from_secs_f64(seconds).map_or(DELAY_MAX, |it| it.min(DELAY_MAX));
        let free_at = limit.free_at.entry(queue).or_insert(now);
        *free_at = ((*free_at).max(now) + delay).min(now + DELAY_MAX);
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

    fn limited(bytes_per_second: u64, now: Instant) -> WriteLimit {
        let limit = WriteLimit::default();
        limit.set(NonZeroU64::new(bytes_per_second), LONG, now);
        limit
    }

    /// Has `queues` write as much as they may for a second, each request `bytes` long at a place of
    /// its own; returns how many bytes of pages each has written.
    fn written_in_a_second(limit: &WriteLimit, queues: usize, bytes: u64) -> Vec<u64> {
        let begin = Instant::now();
        let mut written = vec![0; queues];
        for step in 0..10_000 {
            let now = begin + step * MS / 10;
            for (queue, written) in written.iter_mut().enumerate() {
                while limit.turn(queue, now) == Turn::One {
                    limit.spend(queue, (8192 * u64::from(step), bytes), now);
                    *written += bytes.next_multiple_of(4096);
                }
            }
        }
        written
    }

    #[test]
    fn writes_take_as_long_as_the_limit_says_and_count_as_pages() {
        for bytes in [512, 4096, 65_536] {
            let limit = limited(1_000_000, Instant::now());
            let written = written_in_a_second(&limit, 1, bytes)[0];
            assert!((950_000..1_070_000).contains(&written), "{written} by {bytes}");
        }
        let limit = WriteLimit::default();
        assert_eq!(limit.turn(0, Instant::now()), Turn::All);
    }

    #[test]
    fn queues_that_write_share_the_limit_and_others_do_not_wait() {
        let limit = limited(1_000_000, Instant::now());
        let written = written_in_a_second(&limit, 4, 4096);
        assert!((900_000..1_150_000).contains(&written.iter().sum::<u64>()), "{written:?}");
        assert!(written.iter().all(|bytes| *bytes > 200_000), "{written:?}");
        assert_eq!(limit.turn(4, Instant::now()), Turn::One, "a queue that only reads");
    }

    #[test]
    fn a_limit_ends_with_its_lease_or_when_it_is_lifted() {
        let now = Instant::now();
        let limit = WriteLimit::default();
        limit.set(NonZeroU64::new(1), 100 * MS, now);
        limit.spend(0, (0, 1), now);
        assert_eq!(limit.turn(0, now), Turn::After(RECHECK));
        assert_eq!(limit.turn(0, now + 100 * MS), Turn::All);
        assert_eq!(limit.turn(0, now), Turn::All, "it does not come back");
        limit.set(NonZeroU64::new(1), LONG, now);
        limit.spend(0, (0, 1), now);
        limit.set(None, LONG, now);
        assert_eq!(limit.turn(0, now), Turn::All);
    }

    #[test]
    fn a_renewed_limit_knows_what_was_written() {
        let now = Instant::now();
        let limit = limited(4096, now);
        limit.spend(0, (4096, 4096), now);
        limit.set(NonZeroU64::new(8192), LONG, now + 500 * MS);
        assert_eq!(limit.turn(0, now + 999 * MS), Turn::After(MS));
        assert_eq!(limit.turn(0, now + 1000 * MS), Turn::One);
    }

    #[test]
    fn no_writes_delay_others_for_long() {
        let now = Instant::now();
        let limit = limited(1, now);
        limit.spend(0, (0, u64::MAX), now);
        limit.spend(0, (0, 4096), now);
        assert_eq!(limit.turn(0, now + DELAY_MAX - MS), Turn::After(MS));
        assert_eq!(limit.turn(0, now + DELAY_MAX), Turn::One);
    }
}
