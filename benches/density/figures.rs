//! The cost of the guests for their host at one point in time.

use anyhow::{Context, Result};
use memopt::observe::{Sources, cost, host_memory, ksm, merged};

/// Size of the kernel's record of a page that ksmd has scanned (`struct ksm_rmap_item`), in bytes.
const ITEM_BYTES: u64 = 64;

/// The cost of the guests for their host at one point in time, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// PSS of all guests' processes.
    pub(crate) proportional: u64,
    /// Resident memory of the guests' processes, with merged pages counted for each process.
    pub(crate) resident: u64,
    /// Memory of ksmd's records of all guests' pages.
    pub(crate) records: u64,
    /// Transparent huge pages of all guests.
    pub(crate) huge: u64,
    /// Transparent huge pages of the hot guests.
    pub(crate) hot_huge: u64,
    /// Transparent huge pages of the read-hot guests.
    pub(crate) reader_huge: u64,
    /// Memory that the host reports as available.
    pub(crate) available: u64,
    /// The kernel's own figure of the total profit of merging; may be negative.
    pub(crate) profit: i64,
}

impl Figures {
    /// Measures the guests in the processes `pids`; `hot` and `readers` are the indices of the hot
    /// and the read-hot ones.
    ///
    /// # Errors
    /// If one of the processes is gone.
    pub(crate) fn take(pids: &[u32], hot: &[usize], readers: &[usize]) -> Result<Self> {
        let sources = Sources::system();
        let mut figures = Self {
            available: host_memory()?.available_bytes,
            profit: ksm(&sources)?.counters.profit_bytes,
            ..Self::default()
        };
        for (index, pid) in pids.iter().enumerate() {
            let cost = cost(&sources, *pid)?;
            let merged = merged(&sources, *pid)?.context("this takes Linux 6.1")?;
            figures.proportional += cost.proportional_bytes;
            figures.resident += cost.resident_bytes;
            figures.records += merged.rmap_items * ITEM_BYTES;
            figures.huge += cost.huge_bytes;
            figures.hot_huge += if hot.contains(&index) { cost.huge_bytes } else { 0 };
            figures.reader_huge += if readers.contains(&index) { cost.huge_bytes } else { 0 };
        }
        Ok(figures)
    }
}
