//! What a guest uses, damped: it rises at once and falls slowly.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::situation::{Balloon, Guest, Statistics};

/// How long the fast average remembers.
const FAST: Duration = Duration::from_secs(60);

/// What a guest uses of what it sees, in bytes: the largest of now and of two averages, as ESX
/// estimates working sets (Waldspurger, OSDI 2002, 5.3).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    /// By the last statistics.
    pub now_bytes: u64,
    /// The average that forgets fast.
    pub fast_bytes: u64,
    /// The average that forgets slowly.
    pub slow_bytes: u64,
    /// When the statistics were taken, as the host's uptime.
    pub at: Duration,
}

impl Demand {
    /// The first one.
    pub(super) fn new(bytes: u64, at: Duration) -> Self {
        Self { now_bytes: bytes, fast_bytes: bytes, slow_bytes: bytes, at }
    }

    /// The one after `bytes` were needed at `at`, whose slow average remembers for `slow`.
    /// Statistics that are not newer change nothing but what is needed now.
    pub(super) fn next(self, bytes: u64, at: Duration, slow: Duration) -> Self {
        let passed = at.saturating_sub(self.at);
        Self {
            now_bytes: bytes,
            fast_bytes: towards(self.fast_bytes, bytes, passed, FAST),
            slow_bytes: towards(self.slow_bytes, bytes, passed, slow),
            at: at.max(self.at),
        }
    }

    /// What the guest is taken to use.
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

/// What `guest` uses of what it sees and cannot do without, by its own words: never more than it
/// has. Absent when it does not say.
///
/// All of the numbers come from the same statistics, so that a balloon that moves meanwhile makes
/// no demand: what it sees less what is available, and what its kernel keeps for itself. A driver
/// that leaves `MEMTOT` alone (with `DEFLATE_ON_OOM`) counts the balloon as used: what the guest
/// has, less the `unseen` of it, bounds that.
pub(super) fn used_bytes(
    guest: &Guest,
    balloon: &Balloon,
    statistics: &Statistics,
    unseen: u64,
) -> Option<u64> {
    let caches = statistics.caches_bytes.unwrap_or(0);
    let available = statistics.available_bytes.or_else(|| {
        // Guests that do not say AVAIL (Windows): free memory, and half of the caches.
        statistics.free_bytes.map(|free| free.saturating_add(caches / 2))
    })?;
    let has = guest.has_bytes(balloon).saturating_sub(unseen);
    let sees = statistics.total_bytes.unwrap_or(has).min(has);
    let kernel = (has - sees).min(kernel_bytes_max(guest));
    Some(sees.saturating_sub(available).saturating_add(kernel).min(has))
}

/// What `guest` has and its kernel says nothing of, beyond what that keeps for itself. Absent when
/// it does not say what it sees.
pub(super) fn untold_bytes(
    guest: &Guest,
    balloon: &Balloon,
    statistics: &Statistics,
) -> Option<u64> {
    let untold = guest.has_bytes(balloon).saturating_sub(statistics.total_bytes?);
    Some(untold.saturating_sub(kernel_bytes_max(guest)))
}

/// The most that a kernel is taken to keep for itself: its code, and what it needs to manage the
/// rest.
fn kernel_bytes_max(guest: &Guest) -> u64 {
    guest.memory_bytes / 16
}
