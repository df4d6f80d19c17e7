//! The rules by which ksmtuned and oVirt's MoM drive ksmd, as pure functions of shares of the
//! host's memory.
//!
//! Both run ksmd when guests hold nearly all of the memory or little is free. They increase the
//! batch each time too little is free, and reduce it when enough is. They differ in the sampling
//! interval and in the initial batch. The constants are the defaults of both (`ksmtuned` and
//! `ksmtuned.conf`; `ksm.rules` of MoM), and the rules here follow those files.

use std::time::Duration;

/// Share of the host's memory that should be free.
const FREE_WANTED: f64 = 0.20;
/// Pages by which a batch grows when too little is free.
const BOOST_PAGES: u64 = 300;
/// Pages by which it shrinks when enough is free.
const DECAY_PAGES: u64 = 50;
/// Size of the smallest batch, in pages.
const PAGES_MIN: u64 = 64;
/// Size of the largest batch, in pages.
const PAGES_MAX: u64 = 1250;
/// Sleep between two batches on a host with [`BASELINE_GIB`], in ms.
const SLEEP_MS: f64 = 10.0;
const BASELINE_GIB: f64 = 16.0;

/// A set of rules: sampling interval and initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Rules {
    /// Time between two samples.
    pub(crate) interval: Duration,
    /// Number of samples over which the free share is averaged.
    pub(crate) averaged: usize,
    /// Batch before the first sample, in pages.
    pub(crate) pages_at_first: u64,
    /// Least sleep between two batches, in ms.
    pub(crate) sleep_ms_min: u64,
}

/// Samples every minute, begins with an empty batch, and never sleeps less than 10 ms (`[ $sleep
/// -le 10 ] && sleep=10`).
pub(crate) const KSMTUNED: Rules =
    Rules { interval: Duration::from_secs(60), averaged: 1, pages_at_first: 0, sleep_ms_min: 10 };

/// Samples every 10 s, averages over 50 s, and begins with the kernel's batch.
pub(crate) const MOM: Rules =
    Rules { interval: Duration::from_secs(10), averaged: 5, pages_at_first: 100, sleep_ms_min: 0 };

impl Rules {
    /// The sleep between two batches on a host with this much memory, in ms, rounded down as by
    /// both tools.
    pub(crate) fn sleep_ms(&self, host_gib: f64) -> u64 {
        ((SLEEP_MS * BASELINE_GIB / host_gib) as u64).max(self.sleep_ms_min)
    }
}

/// A sample of a host, in shares of its memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    /// Memory that guests' processes hold, with merged pages counted for each process.
    pub(crate) committed: f64,
    /// Free memory, including caches.
    pub(crate) free: f64,
}

/// What ksmd has to do until the next sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Stop; merged pages stay merged.
    Stop,
    /// Scan in batches of so many pages.
    Run {
        /// Pages per batch.
        pages: u64,
    },
}

/// A set of rules with the state that it has reached.
#[derive(Clone, Debug)]
pub(crate) struct Tuner {
    law: Rules,
    pages: u64,
    free: Vec<f64>,
}

impl Tuner {
    /// Creates a tuner that has not sampled yet.
    pub(crate) fn new(law: Rules) -> Self {
        Self { law, pages: law.pages_at_first, free: Vec::new() }
    }

    /// Takes a sample and returns what ksmd has to do.
    pub(crate) fn sample(&mut self, seen: Seen) -> Order {
        self.free.push(seen.free);
        let first = self.free.len().saturating_sub(self.law.averaged);
        let recent = &self.free[first..];
        let free = recent.iter().sum::<f64>() / recent.len() as f64;
        if seen.committed + FREE_WANTED < 1.0 && free > FREE_WANTED {
            return Order::Stop;
        }
        let pages = if free < FREE_WANTED {
            self.pages + BOOST_PAGES
        } else {
            self.pages.saturating_sub(DECAY_PAGES)
        };
        self.pages = pages.clamp(PAGES_MIN, PAGES_MAX);
        Order::Run { pages: self.pages }
    }
}
