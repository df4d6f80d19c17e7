//! The laws by which ksmtuned and oVirt's MoM drive ksmd, as pure functions of shares of the host's
//! memory.
//!
//! Both run ksmd when guests have nearly all of the memory, or little is free, and let it look at
//! more pages each time they find too little free, at fewer when there is enough. They differ in
//! how often they look, and in where they begin. Constants are those that both ship with
//! (`ksmtuned` and `ksmtuned.conf`; `ksm.rules` of MoM); the laws here follow what these say.

use std::time::Duration;

/// What should be free, as a share of the host's memory.
const FREE_WANTED: f64 = 0.20;
/// Pages more in each batch when too little is free.
const BOOST_PAGES: u64 = 300;
/// Pages fewer when enough is.
const DECAY_PAGES: u64 = 50;
/// The smallest batch.
const PAGES_MIN: u64 = 64;
/// The largest batch.
const PAGES_MAX: u64 = 1250;
/// The sleep between two batches on a host with [`BASELINE_GIB`], in ms.
const SLEEP_MS: f64 = 10.0;
const BASELINE_GIB: f64 = 16.0;

/// Who looks how often, and begins where.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Law {
    /// Between two looks.
    pub(crate) interval: Duration,
    /// Looks over which the free share is averaged.
    pub(crate) averaged: usize,
    /// The batch before the first look.
    pub(crate) pages_at_first: u64,
    /// The least sleep between two batches, in ms.
    pub(crate) sleep_ms_min: u64,
}

/// Looks each minute, begins with nothing, and never sleeps less than 10 ms (`[ $sleep -le 10 ] &&
/// sleep=10`).
pub(crate) const KSMTUNED: Law =
    Law { interval: Duration::from_secs(60), averaged: 1, pages_at_first: 0, sleep_ms_min: 10 };

/// Looks every 10 s, averages over 50 s, and begins with what the kernel has.
pub(crate) const MOM: Law =
    Law { interval: Duration::from_secs(10), averaged: 5, pages_at_first: 100, sleep_ms_min: 0 };

impl Law {
    /// The sleep between two batches on a host with this much memory, in ms, rounded down as both
    /// do.
    pub(crate) fn sleep_ms(&self, host_gib: f64) -> u64 {
        ((SLEEP_MS * BASELINE_GIB / host_gib) as u64).max(self.sleep_ms_min)
    }
}

/// What is seen of a host, as shares of its memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Seen {
    /// What guests' processes hold, pages that are merged counted for each of them.
    pub(crate) committed: f64,
    /// What is free, caches included.
    pub(crate) free: f64,
}

/// What ksmd is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Nothing; what is merged stays.
    Stop,
    /// To look at so many pages in a batch.
    Run {
        /// The batch.
        pages: u64,
    },
}

/// A law at work.
#[derive(Clone, Debug)]
pub(crate) struct Tuner {
    law: Law,
    pages: u64,
    free: Vec<f64>,
}

impl Tuner {
    /// That has not looked yet.
    pub(crate) fn new(law: Law) -> Self {
        Self { law, pages: law.pages_at_first, free: Vec::new() }
    }

    /// What follows from a look.
    pub(crate) fn look(&mut self, seen: Seen) -> Order {
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
