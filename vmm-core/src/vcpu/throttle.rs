//! Slows a guest down: its vCPUs rest for a share of the time.
//!
//! A thread kicks vCPUs out of the guest once in each period, and each stays out until its rest is
//! over. It watches which of them write, and lets those rest ([`super::writers`]). A vCPU that is
//! ordered to park does so at once, in the middle of a rest. Nothing is left behind by a caller
//! that fails: the throttle ends automatically with its lease, for all vCPUs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::faults::FaultCounter;
use super::thread::Mailbox;
use super::writers::{PERCENT_MAX, Sample, Throttled, Writers, evenly};

/// Shortest time that vCPUs run between two rests. Shorter ones would go into entering the guest.
const RUN_MIN: Duration = Duration::from_millis(1);
/// Shortest period. QEMU's throttle has the same (`CPU_THROTTLE_TIMESLICE_NS`).
const PERIOD_MIN: Duration = Duration::from_millis(10);
/// How often the faults of the vCPUs are read.
const SAMPLE_TIME: Duration = Duration::from_millis(250);

/// The throttle of one guest. Dropping it ends it; drop it before the guest's VM.
#[derive(Debug)]
pub(crate) struct Throttle(Arc<Shared>);

/// What the throttle's thread and its owner share.
#[derive(Debug)]
struct Shared {
    mailboxes: Vec<Arc<Mailbox>>,
    /// A counter for each vCPU, if KVM has them.
    counters: Option<Vec<FaultCounter>>,
    /// Pages that have been written and whose next write is logged again, since the VM exists.
    rearmed: AtomicU64,
    setting: Mutex<Setting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Setting {
    /// By how much the guest is slowed down; 0 for not at all.
    percent: u8,
    /// When the lease of the throttle ends.
    until: Option<Instant>,
    /// Whether there is a thread that applies it.
    has_thread: bool,
    /// What the thread knows about the vCPUs; nothing if their faults cannot be read.
    writers: Option<Writers>,
}

impl Setting {
    /// Returns the percentage that applies at `now`.
    fn percent_at(&self, now: Instant) -> u8 {
        if self.until.is_some_and(|until| now < until) { self.percent } else { 0 }
    }

    /// Returns for how much of the time each of `vcpus` rests, in percent.
    fn rests(&self, vcpus: usize) -> Vec<u8> {
        match &self.writers {
            Some(writers) => writers.rests(self.percent),
            None => evenly(vcpus, self.percent),
        }
    }
}

impl Throttle {
    /// A throttle of the vCPUs of `mailboxes`, with a counter for each if KVM has them.
    pub(crate) fn new(mailboxes: Vec<Arc<Mailbox>>, counters: Option<Vec<FaultCounter>>) -> Self {
        Self(Arc::new(Shared {
            mailboxes,
            counters,
            rearmed: AtomicU64::default(),
            setting: Mutex::default(),
            changed: Condvar::default(),
        }))
    }

    /// Has vCPUs rest, so that the guest writes less by `percent`, for the duration of `lease` or
    /// until the next call. 0 ends the throttle at once.
    ///
    /// # Errors
    /// If the system starts no thread; the guest then runs at full speed.
    pub(crate) fn set(&self, percent: u8, lease: Duration) -> std::io::Result<Throttled> {
        let mut setting = self.0.lock();
        setting.percent = percent.min(PERCENT_MAX);
        setting.until = Instant::now().checked_add(lease);
        self.0.changed.notify_all();
        if setting.percent > 0 && !setting.has_thread {
            let shared = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("throttle".to_owned());
            if let Err(error) = thread.spawn(move || shared.apply()) {
                setting.percent = 0;
                return Err(error);
            }
            setting.has_thread = true;
        }
        Ok(Throttled::of(&setting.rests(self.0.mailboxes.len())))
    }

    /// Notes that the dirty log has been armed again for the pages whose bits are set in `words`.
    pub(crate) fn note_rearmed(&self, words: &[u64]) {
        self.0.rearmed.fetch_add(pages(words), Ordering::Relaxed);
    }

    /// Returns by how much the guest is slowed down now, in percent.
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
    /// Lets vCPUs rest in each period, until the throttle ends.
    fn apply(&self) {
        let mut setting = self.lock();
        let mut sampled: Option<Instant> = None;
        loop {
            let now = Instant::now();
            if setting.percent_at(now) == 0 {
                break;
            }
            if sampled.is_none_or(|at| now.duration_since(at) >= SAMPLE_TIME) {
                sampled = Some(now);
                self.watch(&mut setting);
            }
            let rests = setting.rests(self.mailboxes.len());
            let (run, rest) = period(rests.iter().copied().max().unwrap_or(0));
            let is_changed;
            (setting, is_changed) = self.wait(setting, run);
            if !is_changed {
                self.rest(&rests, run + rest);
                (setting, _) = self.wait(setting, rest);
            }
        }
        self.mailboxes.iter().for_each(|mailbox| mailbox.end_rest());
        setting.writers = None;
        setting.has_thread = false;
    }

    /// Has each vCPU rest for its percentage of a `period`, from now on.
    fn rest(&self, rests: &[u8], period: Duration) {
        for (mailbox, percent) in self.mailboxes.iter().zip(rests) {
            if *percent > 0 {
                mailbox.rest_for(period.mul_f64(f64::from(*percent) / 100.0));
            }
        }
    }

    /// Learns which vCPUs write. The caller holds the lock, and the throttle has not ended: Linux
    /// before 6.5 must not read the counters of a VM that is gone.
    fn watch(&self, setting: &mut Setting) {
        let sample = self.sample();
        match (&mut setting.writers, sample) {
            (Some(writers), Some(sample)) => writers.learn(sample, setting.percent),
            (writers, sample) => *writers = sample.map(Writers::new),
        }
    }

    fn sample(&self) -> Option<Sample> {
        let rearmed = self.rearmed.load(Ordering::Relaxed);
        let counters = self.counters.as_ref()?;
        let faults: Option<Vec<u64>> = counters.iter().map(FaultCounter::read).collect();
        Some(Sample { faults: faults?, rearmed })
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

/// Returns the number of pages whose bits are set in `words`.
fn pages(words: &[u64]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}

/// Returns how long a vCPU runs and then rests, for a share of `percent` (up to 99) at rest.
fn period(percent: u8) -> (Duration, Duration) {
    let share = f64::from(percent) / 100.0;
    let whole = PERIOD_MIN.max(RUN_MIN.div_f64(1.0 - share));
    let rest = whole.mul_f64(share);
    (whole.saturating_sub(rest), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Vm;
    use crate::boot::{UserEntry, start_user_mode};
    use crate::testing::{
        CODE, COUNT_IN_MEMORY, DATA, PATIENCE, TOUCH_PAGES, empty_vm, vm_with, wait_for_more, word,
    };

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
    fn pace(vm: &Vm) -> u64 {
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
        let counters = [DATA, DATA + 4096];
        let vm = vm_with(16, COUNT_IN_MEMORY, &counters.map(|counter| [counter, 0]));
        vm.resume().unwrap();
        vm.throttle(99, Duration::from_millis(100)).unwrap();
        while vm.throttle_percent() > 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        for counter in counters {
            let before = word(&vm, counter);
            wait_for_more(&vm, counter, before + 1);
        }
        // The next one finds or starts a thread.
        vm.throttle(50, LONG).unwrap();
        assert_eq!(vm.throttle_percent(), 50);
    }

    /// A guest that counts on its first vCPU and writes 1000 pages, over and over, on the second.
    fn counter_and_writer() -> Vm {
        let vm = empty_vm(16, 2);
        let writer = CODE + 4096;
        vm.ram().write(CODE, COUNT_IN_MEMORY).unwrap();
        vm.ram().write(writer, TOUCH_PAGES).unwrap();
        let entry = |rip, args| UserEntry { rip, rsp: 0, args };
        let entries = [entry(CODE, [DATA, 0]), entry(writer, [DATA + 4096, 1000])];
        start_user_mode(&vm, &entries).unwrap();
        vm
    }

    /// Sends "rounds" of `vm` while it is throttled by 90 %, until `is_enough` or for some seconds.
    fn throttled_in_rounds(vm: &Vm, is_enough: impl Fn(Throttled) -> bool) -> Throttled {
        let mut words = vec![0; vm.ram().chunks()];
        let deadline = Instant::now() + PATIENCE;
        loop {
            words.fill(0);
            vm.collect_dirty(&mut words).unwrap();
            vm.rearm_dirty(0, &words).unwrap();
            std::thread::sleep(Duration::from_millis(100));
            let throttled = vm.throttle(90, LONG).unwrap();
            if is_enough(throttled) || Instant::now() > deadline {
                return throttled;
            }
        }
    }

    /// Whether this host's processor logs writes itself, so that they cause no faults.
    fn has_page_modification_logging() -> bool {
        ["kvm_intel", "kvm_amd"].iter().any(|module| {
            let parameter = format!("/sys/module/{module}/parameters/pml");
            std::fs::read_to_string(parameter).is_ok_and(|value| value.trim() == "Y")
        })
    }

    #[test]
    fn the_vcpu_that_writes_rests_and_the_other_does_not() {
        let vm = counter_and_writer();
        vm.start_dirty_log().unwrap();
        vm.resume().unwrap();
        wait_for_more(&vm, DATA, 1);
        let free = pace(&vm);
        let both = vm.throttle(90, LONG).unwrap();
        assert_eq!(both, Throttled { vcpus: 2, percent: 90 }, "nothing is known yet");
        if has_page_modification_logging() {
            let start = Instant::now();
            let later = |_| start.elapsed() > 4 * SAMPLE_TIME;
            assert_eq!(throttled_in_rounds(&vm, later), both);
            return;
        }
        let one = throttled_in_rounds(&vm, |throttled| throttled.vcpus == 1);
        assert!(one.vcpus == 1 && (85..=95).contains(&one.percent), "{one:?}");
        let beside = pace(&vm);
        assert!(beside * 3 > free, "{beside} of {free}");
        assert_eq!(vm.throttle(0, LONG).unwrap(), Throttled::default());
    }
}
