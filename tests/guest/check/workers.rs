//! Further threads (`check.threads`), so that several vCPUs write: each rewrites and checks a part
//! of memory, as the first one orders, and publishes its counters.

use core::sync::atomic::{AtomicU64, Ordering::{Acquire, Relaxed, Release}};

use crate::gaps::Gaps;
use crate::linux::{self, tsc};
use crate::memory::Memory;
use crate::options::{Options, THREADS_MAX};
use crate::pace::Pace;
use crate::{Load, NS_PER_MS};

const WORKERS_MAX: usize = THREADS_MAX as usize - 1;

/// What the first thread orders.
struct Orders {
    rate: AtomicU64,
    pages: AtomicU64,
    epoch: AtomicU64,
    checks: AtomicU64,
}

/// The counters of one worker.
struct Counters {
    written: AtomicU64,
    checked: AtomicU64,
    errors: AtomicU64,
    longest: AtomicU64,
    second: AtomicU64,
    total: AtomicU64,
    epoch: AtomicU64,
    checks: AtomicU64,
}

impl Counters {
    const fn new() -> Self {
        Self {
            written: AtomicU64::new(0),
            checked: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            longest: AtomicU64::new(0),
            second: AtomicU64::new(0),
            total: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            checks: AtomicU64::new(0),
        }
    }
}

static ORDERS: Orders = Orders {
    rate: AtomicU64::new(0),
    pages: AtomicU64::new(0),
    epoch: AtomicU64::new(0),
    checks: AtomicU64::new(0),
};

static COUNTERS: [Counters; WORKERS_MAX] = [const { Counters::new() }; WORKERS_MAX];

/// The workers, as the first thread sees them.
pub struct Workers {
    count: usize,
}

/// The sums of all workers' counters.
pub struct Sums {
    /// Pages rewritten.
    pub written: u64,
    /// Pages checked.
    pub checked: u64,
    /// Bad pages found.
    pub errors: u64,
}

impl Workers {
    /// Starts a worker for each thread but the first, with its part of `memory`.
    pub fn start(options: &Options, memory: &mut Memory, hz: u64) -> Self {
        let count = options.threads as usize - 1;
        let part = memory.pages() / (count + 1);
        for counters in &COUNTERS[..count] {
            let memory = memory.split_off(part);
            let gaps = Gaps::default();
            let pace = Pace::new(hz);
            let worker = Worker { memory, counters, gaps, pace, halts: options.halt, hz };
            if let Err(error) = linux::start_thread(worker, Worker::run) {
                linux::fail("check: cannot start a thread, error ", error);
            }
        }
        Self { count }
    }

    /// Has each worker write at its part of `load`.
    pub fn load(&self, load: Load) {
        ORDERS.pages.store(load.pages, Release);
        ORDERS.rate.store(load.rate, Release);
    }

    /// Has all workers forget their gaps, and waits until they have.
    pub fn forget_gaps(&self) {
        let epoch = ORDERS.epoch.fetch_add(1, Release) + 1;
        self.wait_until(|counters| counters.epoch.load(Acquire) == epoch);
    }

    /// Has all workers check all their memory, and waits until they have.
    pub fn check_all(&self) {
        let checks = ORDERS.checks.fetch_add(1, Release) + 1;
        self.wait_until(|counters| counters.checks.load(Acquire) == checks);
    }

    /// Adds up the workers' counters.
    pub fn sums(&self) -> Sums {
        let sum = |of: fn(&Counters) -> &AtomicU64| {
            self.counters().iter().map(|counters| of(counters).load(Acquire)).sum()
        };
        Sums {
            written: sum(|counters| &counters.written),
            checked: sum(|counters| &counters.checked),
            errors: sum(|counters| &counters.errors),
        }
    }

    /// The worst of the workers' gaps and of `gaps`.
    pub fn worst_gaps(&self, gaps: Gaps) -> Gaps {
        self.counters().iter().fold(gaps, |worst, counters| {
            worst.worse(Gaps {
                longest: counters.longest.load(Acquire),
                second: counters.second.load(Acquire),
                total: counters.total.load(Acquire),
            })
        })
    }

    fn counters(&self) -> &'static [Counters] {
        &COUNTERS[..self.count]
    }

    fn wait_until(&self, done: impl Fn(&Counters) -> bool) {
        while !self.counters().iter().all(&done) {
            linux::sleep(NS_PER_MS);
        }
    }
}

/// A further thread.
struct Worker {
    memory: Memory,
    counters: &'static Counters,
    gaps: Gaps,
    pace: Pace,
    halts: bool,
    hz: u64,
}

impl Worker {
    fn run(mut self) -> ! {
        let mut last = tsc();
        loop {
            let now = tsc();
            let elapsed = now.wrapping_sub(last);
            last = now;
            self.gaps.add(elapsed, self.hz);
            let load = Load { rate: ORDERS.rate.load(Acquire), pages: ORDERS.pages.load(Acquire) };
            load.write(&mut self.memory, &mut self.pace, elapsed, self.halts);
            if self.obey() {
                last = tsc();
            }
            self.publish();
            if self.halts {
                linux::sleep(10 * NS_PER_MS);
            }
        }
    }

    /// Does what the first thread waits for, if anything; returns whether it did.
    fn obey(&mut self) -> bool {
        let (epoch, checks) = (ORDERS.epoch.load(Acquire), ORDERS.checks.load(Acquire));
        let forgets = self.counters.epoch.load(Relaxed) != epoch;
        let verifies = self.counters.checks.load(Relaxed) != checks;
        if forgets {
            self.gaps = Gaps::default();
        }
        if verifies {
            self.memory.check_all();
        }
        if forgets || verifies {
            self.publish();
            self.counters.epoch.store(epoch, Release);
            self.counters.checks.store(checks, Release);
        }
        forgets || verifies
    }

    fn publish(&self) {
        let counters = self.counters;
        counters.written.store(self.memory.written(), Release);
        counters.checked.store(self.memory.checked(), Release);
        counters.errors.store(self.memory.errors(), Release);
        counters.longest.store(self.gaps.longest, Release);
        counters.second.store(self.gaps.second, Release);
        counters.total.store(self.gaps.total, Release);
    }
}
