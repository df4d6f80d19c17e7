//! Policies for guests that reset or power themselves off, and the pending reset.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::event::StopReason;

/// What happens when a guest resets itself, or has a fault that resets a processor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum OnReboot {
    /// It boots again, from what it was first booted from.
    Restart,
    /// It ends; the reset or the fault is its [`StopReason`].
    #[default]
    Stop,
}

/// Shared by the vCPUs, which request a reset, and the VM, which performs it.
#[derive(Debug, Default)]
pub(crate) struct Resets {
    restarts: AtomicBool,
    /// A guest that powers itself off before this time boots again.
    power_off_restarts_until: Mutex<Option<Instant>>,
    /// Reason of the pending reset.
    due: Mutex<Option<StopReason>>,
    done: AtomicU64,
    last: Mutex<Option<StopReason>>,
    /// When the guest was last made to boot in this VM.
    booted: Mutex<Option<Instant>>,
}

impl Resets {
    /// Sets what happens when the guest resets itself.
    pub(crate) fn set_policy(&self, policy: OnReboot) {
        self.restarts.store(policy == OnReboot::Restart, Ordering::Release);
    }

    /// Returns what happens when the guest resets itself.
    pub(crate) fn policy(&self) -> OnReboot {
        if self.restarts.load(Ordering::Acquire) { OnReboot::Restart } else { OnReboot::Stop }
    }

    /// Makes a guest that powers itself off before `until` boot again; `None` cancels this.
    pub(crate) fn restart_on_power_off(&self, until: Option<Instant>) {
        *lock(&self.power_off_restarts_until) = until;
    }

    /// Whether a guest that cannot continue for `reason` must be reset, and not ended.
    pub(super) fn starts_over(&self, reason: &StopReason) -> bool {
        match reason {
            StopReason::Reset | StopReason::TripleFault { .. } => {
                self.policy() == OnReboot::Restart
            }
            StopReason::PowerOff => {
                lock(&self.power_off_restarts_until).is_some_and(|until| Instant::now() < until)
            }
            _ => false,
        }
    }

    /// Requests a reset. If several are requested, the first reason counts.
    pub(crate) fn request(&self, reason: StopReason) {
        lock(&self.due).get_or_insert(reason);
    }

    /// Clears the pending reset and returns its reason.
    pub(crate) fn take(&self) -> Option<StopReason> {
        lock(&self.due).take()
    }

    /// Whether a reset is pending.
    pub(crate) fn is_due(&self) -> bool {
        lock(&self.due).is_some()
    }

    /// Records that the guest boots from now on.
    pub(crate) fn note_boot(&self) {
        *lock(&self.booted) = Some(Instant::now());
    }

    /// Returns the time since the guest was last made to boot in this VM, if it was.
    pub(crate) fn since_boot(&self) -> Option<Duration> {
        lock(&self.booted).map(|booted| booted.elapsed())
    }

    /// Records that a reset was done.
    pub(crate) fn note_done(&self, reason: StopReason) {
        self.restart_on_power_off(None);
        self.note_boot();
        *lock(&self.last) = Some(reason);
        self.done.fetch_add(1, Ordering::Release);
    }

    /// Returns how often the guest was reset, and the last reason.
    pub(crate) fn done(&self) -> (u64, Option<StopReason>) {
        (self.done.load(Ordering::Acquire), lock(&self.last).clone())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAULT: StopReason = StopReason::TripleFault { vcpu: 0, rip: 0 };

    #[test]
    fn resets_follow_the_policy_and_crashes_never_start_over() {
        let resets = Resets::default();
        assert!(!resets.starts_over(&StopReason::Reset));
        resets.set_policy(OnReboot::Restart);
        assert!(resets.starts_over(&StopReason::Reset) && resets.starts_over(&FAULT));
        let broken = StopReason::Unexpected { vcpu: 0, what: "exit".into() };
        for reason in [StopReason::Asked, StopReason::PowerOff, broken] {
            assert!(!resets.starts_over(&reason), "{reason}");
        }
    }

    #[test]
    fn a_guest_off_starts_over_only_when_asked_in_time_and_once() {
        let resets = Resets::default();
        let minute = Duration::from_secs(60);
        resets.restart_on_power_off(Some(Instant::now() + minute));
        assert!(resets.starts_over(&StopReason::PowerOff));
        resets.note_done(StopReason::PowerOff);
        assert!(!resets.starts_over(&StopReason::PowerOff));
        resets.restart_on_power_off(Some(Instant::now()));
        assert!(!resets.starts_over(&StopReason::PowerOff), "too late");
    }

    #[test]
    fn a_guest_that_was_reset_boots_since_then() {
        let resets = Resets::default();
        assert_eq!(resets.since_boot(), None, "it may have come from another host");
        resets.note_boot();
        let first = *lock(&resets.booted);
        resets.note_done(StopReason::Reset);
        assert!(resets.since_boot().is_some() && *lock(&resets.booted) >= first);
    }

    #[test]
    fn of_several_reasons_the_first_counts() {
        let resets = Resets::default();
        resets.request(FAULT);
        resets.request(StopReason::Reset);
        assert_eq!(resets.take(), Some(FAULT));
        assert!(!resets.is_due());
    }
}
