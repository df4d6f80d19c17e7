//! Slows a guest down: its vCPUs rest for a share of the time.
//!
//! A thread kicks all vCPUs out of the guest once in each period, and they stay out until their
//! rest is over. A vCPU that is ordered to park does so at once, in the middle of a rest. Nothing
//! is left behind by a caller that fails: the throttle ends automatically with its lease.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::thread::Mailbox;

/// Most of the time that vCPUs may rest, in percent. At 100 the guest would be paused.
const PERCENT_MAX: u8 = 99;

/// Shortest time that vCPUs run between two rests. Shorter ones would go into entering the guest.
const RUN_MIN: Duration = Duration::from_millis(1);
/// Shortest period. QEMU's throttle has the same (`CPU_THROTTLE_TIMESLICE_NS`).
const PERIOD_MIN: Duration = Duration::from_millis(10);

/// The throttle of one guest. Dropping it ends it.
#[derive(Debug, Default)]
pub(crate) struct Throttle(Arc<Shared>);

/// What the throttle's thread and its owner share.
#[derive(Debug, Default)]
struct Shared {
    setting: Mutex<Setting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Setting {
    /// Share of the time that the vCPUs rest; 0 for none.
    percent: u8,
    /// When the lease of the throttle ends.
    until: Option<Instant>,
    /// Whether there is a thread that applies it.
    has_thread: bool,
}

impl Setting {
    /// Returns the share that applies at `now`.
    fn percent_at(&self, now: Instant) -> u8 {
        if self.until.is_some_and(|until| now < until) { self.percent } else { 0 }
    }
}

impl Throttle {
    /// Has the vCPUs of `mailboxes` rest for `percent` of the time, for the duration of `lease` or
    /// until the next call. 0 ends the throttle at once.
    ///
    /// # Errors
    /// If the system starts no thread; the guest then runs at full speed.
    pub(crate) fn set(
        &self,
        percent: u8,
        lease: Duration,
        mailboxes: impl FnOnce() -> Vec<Arc<Mailbox>>,
    ) -> std::io::Result<()> {
        let mut setting = self.0.lock();
        setting.percent = percent.min(PERCENT_MAX);
        setting.until = Instant::now().checked_add(lease);
        self.0.changed.notify_all();
        if setting.percent == 0 || setting.has_thread {
            return Ok(());
        }
        let (shared, mailboxes) = (Arc::clone(&self.0), mailboxes());
        let thread = std::thread::Builder::new().name("throttle".to_owned());
        let started = thread.spawn(move || shared.apply(&mailboxes));
        setting.has_thread = started.is_ok();
        if started.is_err() {
            setting.percent = 0;
        }
        started.map(drop)
    }

    /// Returns the share of the time that the vCPUs rest now, in percent.
    #[cfg(test)]
    pub(crate) fn percent(&self) -> u8 {
        self.0.lock().percent_at(Instant::now())
    }
}

impl Drop for Throttle {
    fn drop(&mut self) {
        self.0.lock().percent = 0;
        self.0.changed.notify_all();
    }
}

impl Shared {
    /// Lets the vCPUs rest in each period, until the throttle ends.
    fn apply(&self, mailboxes: &[Arc<Mailbox>]) {
        let mut setting = self.lock();
        loop {
            let percent = setting.percent_at(Instant::now());
            if percent == 0 {
                break;
            }
            let (run, rest) = period(percent);
            let is_changed;
            (setting, is_changed) = self.wait(setting, run);
            if !is_changed {
                mailboxes.iter().for_each(|mailbox| mailbox.rest_for(rest));
                (setting, _) = self.wait(setting, rest);
            }
        }
        mailboxes.iter().for_each(|mailbox| mailbox.end_rest());
        setting.has_thread = false;
    }

    /// Waits for `time`, or until the setting is changed; returns whether it may have been.
    fn wait<'a>(
        &self,
        setting: MutexGuard<'a, Setting>,
        time: Duration,
    ) -> (MutexGuard<'a, Setting>, bool) {
        let waited = self.changed.wait_timeout(setting, time);
        let (setting, timed) = waited.unwrap_or_else(PoisonError::into_inner);
        (setting, !timed.timed_out())
    }

    fn lock(&self) -> MutexGuard<'_, Setting> {
        self.setting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns how long vCPUs run and then rest, for a share of `percent` (1 to 99) at rest.
fn period(percent: u8) -> (Duration, Duration) {
    let share = f64::from(percent) / 100.0;
    let whole = PERIOD_MIN.max(RUN_MIN.div_f64(1.0 - share));
    let rest = whole.mul_f64(share);
    (whole.saturating_sub(rest), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{COUNT_IN_MEMORY, DATA, vm_with, wait_for_more, word};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn periods_are_short_and_leave_time_to_run() {
        let millis = |percent| {
            let (run, rest) = period(percent);
            (run.as_micros(), rest.as_micros())
        };
        assert_eq!(millis(20), (8_000, 2_000));
        assert_eq!(millis(90), (1_000, 9_000));
        let (run, rest) = millis(99);
        assert!((990..=1_010).contains(&run) && (98_000..=100_000).contains(&rest), "{run} {rest}");
    }

    /// What the guest counts in half a second.
    fn pace(vm: &crate::Vm) -> u64 {
        let before = word(vm, DATA);
        std::thread::sleep(Duration::from_millis(500));
        word(vm, DATA) - before
    }

    #[test]
    fn a_throttled_guest_is_slower_and_recovers() {
        let vm = vm_with(16, COUNT_IN_MEMORY, &[[DATA, 0]]);
        vm.resume().unwrap();
        wait_for_more(&vm, DATA, 1);
        let free = pace(&vm);
        vm.throttle(90, LONG).unwrap();
        assert_eq!(vm.throttle_percent(), 90);
        let slow = pace(&vm);
        assert!(slow > 0 && slow * 2 < free, "{slow} of {free}");
        // A pause does not wait for the end of a rest, and the throttle outlives it.
        vm.throttle(99, LONG).unwrap();
        vm.pause().unwrap();
        vm.resume().unwrap();
        assert_eq!(vm.throttle_percent(), 99);
        vm.throttle(0, LONG).unwrap();
        assert_eq!(vm.throttle_percent(), 0);
        let again = pace(&vm);
        assert!(again > slow * 2, "{again} after {slow}");
    }

    #[test]
    fn a_throttle_ends_with_its_lease() {
        let vm = vm_with(16, COUNT_IN_MEMORY, &[[DATA, 0]]);
        vm.resume().unwrap();
        vm.throttle(99, Duration::from_millis(100)).unwrap();
        while vm.throttle_percent() > 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        let before = word(&vm, DATA);
        wait_for_more(&vm, DATA, before + 1);
        // The next one finds or starts a thread.
        vm.throttle(50, LONG).unwrap();
        assert_eq!(vm.throttle_percent(), 50);
    }
}
