//! What guests cost their host at one moment.

use anyhow::{Context, Result};
use memopt::observe::{Sources, cost, host_memory, ksm, merged};

/// What the kernel keeps for each page that ksmd has looked at (`struct ksm_rmap_item`).
const ITEM_BYTES: u64 = 64;

/// What guests cost their host at one moment, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// PSS of all guests' processes.
    pub(crate) proportional: u64,
    /// What the guests' processes hold, merged pages counted for each.
    pub(crate) resident: u64,
    /// ksmd's records of all guests' pages.
    pub(crate) records: u64,
    /// Transparent huge pages of all guests.
    pub(crate) huge: u64,
    /// Those of the hot ones.
    pub(crate) hot_huge: u64,
    /// Those of the read-hot ones.
    pub(crate) reader_huge: u64,
    /// What the host says is available.
    pub(crate) available: u64,
    /// What the kernel says that merging brings on the whole; signed.
    pub(crate) profit: i64,
}

impl Figures {
    /// Of the guests in these processes, of which those at `hot` are hot, and those at `readers`
    /// read-hot.
    ///
    /// # Errors
    /// One of them is gone.
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
