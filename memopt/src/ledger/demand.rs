//! A guest's memory use, damped: it rises at once and falls slowly.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::situation::{Balloon, Guest, Statistics};

/// Time constant of the fast average.
const FAST: Duration = Duration::from_secs(60);

/// Bytes in use of the memory that a guest sees: the largest of the current value and two averages,
/// as ESX estimates working sets (Waldspurger, OSDI 2002, 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    /// Use according to the last statistics.
    pub now_bytes: u64,
    /// Average with the short time constant.
    pub fast_bytes: u64,
    /// Average with the long time constant.
    pub slow_bytes: u64,
    /// Host uptime when the statistics were taken.
    pub at: Duration,
}

impl Demand {
    /// Starts with a first value, taken at `at`.
    pub(super) fn new(bytes: u64, at: Duration) -> Self {
        Self { now_bytes: bytes, fast_bytes: bytes, slow_bytes: bytes, at }
    }

    /// Returns the demand after `bytes` were in use at `at`, with `slow` as the time constant of
    /// the slow average. Statistics that are not newer change only the current value.
    pub(super) fn next(self, bytes: u64, at: Duration, slow: Duration) -> Self {
        let passed = at.saturating_sub(self.at);
        Self {
            now_bytes: bytes,
            fast_bytes: towards(self.fast_bytes, bytes, passed, FAST),
            slow_bytes: towards(self.slow_bytes, bytes, passed, slow),
            at: at.max(self.at),
        }
    }

    /// Returns the estimated use of the guest.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.now_bytes.max(self.fast_bytes).max(self.slow_bytes)
    }
}

/// An exponential average over real time, by the implicit Euler step: it is stable for any
/// interval, and needs no `exp`, whose last digit differs between machines.
fn towards(average: u64, value: u64, passed: Duration, remembers: Duration) -> u64 {
    let (passed, remembers) = (passed.as_secs_f64(), remembers.as_secs_f64());
    let share = passed / (passed + remembers).max(f64::MIN_POSITIVE);
    let change = (value as f64 - average as f64) * share;
    (average as f64 + change).max(0.0) as u64
}

/// Returns the bytes that `guest` reports as in use and not dispensable: never more than it has.
/// `None` when it does not report enough.
///
/// All numbers come from the same statistics, so that a balloon that moves meanwhile creates no
/// demand: the memory that the guest sees, less what is available, plus what its kernel keeps for
/// itself. A driver that does not adjust `MEMTOT` (with `DEFLATE_ON_OOM`) counts the balloon as
/// used; the result is therefore limited to what the guest has, less `unseen`.
pub(super) fn used_bytes(
    guest: &Guest,
    balloon: &Balloon,
    statistics: &Statistics,
    unseen: u64,
) -> Option<u64> {
    let caches = statistics.caches_bytes.unwrap_or(0);
    let available = statistics.available_bytes.or_else(|| {
        // Guests that do not report AVAIL (Windows): free memory plus half of the caches.
        statistics.free_bytes.map(|free| free.saturating_add(caches / 2))
    })?;
    let has = guest.has_bytes(balloon).saturating_sub(unseen);
    let sees = statistics.total_bytes.unwrap_or(has).min(has);
    let kernel = (has - sees).min(kernel_bytes_max(guest));
    Some(sees.saturating_sub(available).saturating_add(kernel).min(has))
}

/// Returns the memory that `guest` has but its kernel does not report, beyond what that kernel
/// keeps for itself. `None` when the guest does not report its total.
pub(super) fn unreported_bytes(
    guest: &Guest,
    balloon: &Balloon,
    statistics: &Statistics,
) -> Option<u64> {
    let untold = guest.has_bytes(balloon).saturating_sub(statistics.total_bytes?);
    Some(untold.saturating_sub(kernel_bytes_max(guest)))
}

/// Upper bound of what a kernel keeps for itself: its code, and what it needs to manage the rest.
fn kernel_bytes_max(guest: &Guest) -> u64 {
    guest.memory_bytes / 16
}
