//! State of the kernel's merging: which domain it serves, and whether the open window still returns
//! memory.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::ksm::End;
use crate::policy::MergePolicy;
use crate::situation::{Host, Ksm};

/// Pages that ksmd scans per second of CPU time until a rate has been measured: 171,000 when all
/// pages differed, 290,000 when half were equal (EPYC, nested).
const PAGES_PER_CPU_SECOND: u64 = 171_000;

/// A window ends after this many full scans with a flat profit. A page is merged in its second scan
/// at the earliest.
const PASSES: u64 = 3;
/// A profit that grew by less than this share of itself counts as flat.
const FLAT: f64 = 0.01;

/// State of the kernel's merging.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct KsmLedger {
    /// The window that this node opened.
    pub window: Option<Window>,
    /// The domain of the last windows, and the uptime since which they serve it.
    pub domain: Option<(String, Duration)>,
    /// Host uptime until which nothing is scanned.
    pub paused_until: Duration,
    /// Bytes expected from memory marked since the last window ended.
    promised_bytes: i64,
    /// Measured pages scanned per second of CPU time.
    rate: Option<u64>,
    last: Option<Ksm>,
}

/// An open window.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// Host uptime when it was opened.
    pub since: Duration,
    /// Full scans and profit when the profit last grew.
    mark: Option<(u64, i64)>,
    /// Profit when it was opened.
    profit_bytes: i64,
    /// Why it should end; absent while it should stay open.
    pub end: Option<WindowEnd>,
}

/// The reason why a window ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WindowEnd {
    /// All memory was scanned often enough and the profit no longer grows, or there was nothing to
    /// merge.
    Flat,
    /// Its time or its CPU time is used up, or it was cancelled.
    Over,
    /// Something other than this node stopped ksmd.
    Stopped,
}

impl From<End> for WindowEnd {
    fn from(end: End) -> Self {
        match end {
            End::Flat | End::NothingToMerge => Self::Flat,
            End::TimeUsed | End::CpuTimeUsed | End::CalledOff => Self::Over,
            End::Foreign(_) => Self::Stopped,
        }
    }
}

impl KsmLedger {
    /// Returns the pages that ksmd scans in one second of CPU time.
    #[must_use]
    pub fn pages_per_cpu_second(&self) -> u64 {
        self.rate.unwrap_or(PAGES_PER_CPU_SECOND)
    }

    pub(super) fn observe(&mut self, host: &Host, now: Duration, policy: &MergePolicy) {
        let Some(ksm) = host.ksm else {
            self.window = None;
            self.last = None;
            return;
        };
        self.measure(&ksm);
        if let Some(window) = &mut self.window
            && window.end.is_none()
        {
            window.observe(&ksm, now, policy);
            if window.end.is_some() {
                self.paused_until = now + policy.pause;
            }
        }
        self.last = Some(ksm);
    }

    fn measure(&mut self, ksm: &Ksm) {
        let Some(last) = self.last else { return };
        let (Some(before), Some(cpu)) = (last.cpu, ksm.cpu) else { return };
        let cpu = cpu.saturating_sub(before).as_secs_f64();
        let pages = ksm.pages_scanned.saturating_sub(last.pages_scanned);
        // Below this, rounding dominates: the kernel counts in ticks of 10 ms.
        if cpu < 0.2 || pages == 0 {
            return;
        }
        let measured = ((pages as f64 / cpu) as u64).clamp(10_000, 4_000_000);
        self.rate = Some(self.rate.map_or(measured, |rate| rate - rate / 4 + measured / 4));
    }

    /// Records that a window is open for `domain`.
    pub(super) fn open(&mut self, domain: &str, now: Duration) {
        if self.domain.as_ref().is_none_or(|(known, _)| known != domain) {
            self.domain = Some((domain.to_owned(), now));
        }
        if self.window.is_none() {
            let profit_bytes = self.last.map_or(0, |ksm| ksm.profit_bytes);
            self.window = Some(Window { since: now, mark: None, profit_bytes, end: None });
        }
    }

    /// Records why the open window ended, as reported by the driver of ksmd. `observe` could only
    /// infer it from samples.
    pub fn ended(&mut self, end: WindowEnd, now: Duration, policy: &MergePolicy) {
        if let Some(window) = &mut self.window {
            window.end = Some(end);
            self.paused_until = now + policy.pause;
        }
    }

    pub(super) fn close(&mut self) {
        self.window = None;
        self.promised_bytes = 0;
    }

    /// Adds `bytes` to what is expected of the marked memory.
    pub(super) fn promise(&mut self, bytes: i64) {
        self.promised_bytes = self.promised_bytes.saturating_add(bytes.max(0));
    }

    /// Returns the bytes that the open window is still expected to return.
    #[must_use]
    pub fn under_way_bytes(&self) -> u64 {
        let Some(window) = self.window.filter(|window| window.end.is_none()) else { return 0 };
        let profit = self.last.map_or(0, |ksm| ksm.profit_bytes);
        let grown = profit.saturating_sub(window.profit_bytes).max(0);
        u64::try_from(self.promised_bytes.saturating_sub(grown)).unwrap_or(0)
    }
}

impl Window {
    fn observe(&mut self, ksm: &Ksm, now: Duration, policy: &MergePolicy) {
        if ksm.run != 1 {
            // At the first sample, ksmd may not have been started yet.
            if self.mark.is_some() {
                self.end = Some(WindowEnd::Stopped);
            }
            return;
        }
        let (scans, profit) = (ksm.full_scans, ksm.profit_bytes);
        match self.mark {
            Some((marked_scans, marked_profit)) if scans >= marked_scans => {
                let grown = profit.saturating_sub(marked_profit);
                // At least 1 MiB: a profit of zero cannot grow by a share of itself.
                let flat = ((marked_profit.unsigned_abs() as f64 * FLAT) as i64).max(1 << 20);
                if grown > flat {
                    self.mark = Some((scans, profit));
                } else if scans - marked_scans >= PASSES {
                    self.end = Some(WindowEnd::Flat);
                }
            }
            _ => self.mark = Some((scans, profit)),
        }
        if self.end.is_none() && now.saturating_sub(self.since) >= policy.window {
            self.end = Some(WindowEnd::Over);
        }
    }
}
