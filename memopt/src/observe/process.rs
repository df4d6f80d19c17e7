//! Reads what one process costs, as plans need it, and what the kernel has merged of it.

use super::ObserveError;
use super::cost::{ProcessCost, process_cost_in};
use super::fields::Fields;
use super::sources::{Sources, if_there, unsigned, value_of};
use super::stat::started_of;
use crate::situation::Cost;

/// Bytes per page that the kernel merges.
const PAGE_BYTES: u64 = 4096;

/// KSM's state of one process (`/proc/PID/ksm_stat`, Linux 6.1 and later).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Merged {
    /// Pages for which the kernel keeps a record.
    pub rmap_items: u64,
    /// Pages of zeros that map the kernel's zero page (Linux 6.6).
    pub zero_pages: u64,
    /// Pages merged with others, of this process or of another.
    pub merging_pages: u64,
    /// Bytes saved by merging, minus the kernel's records; may be negative. The sum over all
    /// processes is more than what is actually saved.
    pub profit_bytes: i64,
    /// Whether all memory of the process may be merged (`PR_SET_MEMORY_MERGE`); absent on older
    /// kernels.
    pub merge_any: Option<bool>,
    /// Whether any of its memory may be merged; absent on older kernels.
    pub is_mergeable: Option<bool>,
}

impl Merged {
    /// Returns the merged memory, in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.merging_pages.saturating_add(self.zero_pages).saturating_mul(PAGE_BYTES)
    }
}

/// Reads what is merged of process `pid`. `None` if the kernel does not report it, and for a
/// process whose first thread has no memory: a kernel thread, a zombie, or one whose first thread
/// has ended before the others.
///
/// # Errors
/// [`ObserveError::Gone`] if the process ends in the meantime, [`ObserveError::Forbidden`] for a
/// process of another user, [`ObserveError::Unexpected`] if the file is not what the kernel writes.
pub fn merged(sources: &Sources, pid: u32) -> Result<Option<Merged>, ObserveError> {
    // Without the folder the process is gone; if only this file is missing, the kernel does not
    // report it.
    if !sources.path(format!("proc/{pid}")).exists() {
        return Err(ObserveError::Gone { pid });
    }
    merged_of_thread(sources, &format!("proc/{pid}"))
}

/// Like [`merged`], for the thread whose folder is `folder`.
pub(super) fn merged_of_thread(
    sources: &Sources,
    folder: &str,
) -> Result<Option<Merged>, ObserveError> {
    let file = format!("{folder}/ksm_stat");
    match if_there(sources.read(&file))? {
        Some(text) if !text.is_empty() => {
            parse_ksm_stat(&text).map(Some).ok_or_else(|| sources.unexpected(&file, &text))
        }
        _ => Ok(None),
    }
}

/// Parses the text of `ksm_stat`; `None` if it is not what the kernel writes.
#[must_use]
pub fn parse_ksm_stat(text: &str) -> Option<Merged> {
    let count = |name| value_of(text, name).map_or(Some(0), unsigned);
    let answer = |name| match value_of(text, name) {
        None => Some(None),
        Some("yes") => Some(Some(true)),
        Some("no") => Some(Some(false)),
        Some(_) => None,
    };
    Some(Merged {
        rmap_items: value_of(text, "ksm_rmap_items").and_then(unsigned)?,
        zero_pages: count("ksm_zero_pages")?,
        merging_pages: count("ksm_merging_pages")?,
        profit_bytes: match value_of(text, "ksm_process_profit") {
            Some(profit) => profit.parse().ok()?,
            None => 0,
        },
        merge_any: answer("ksm_merge_any")?,
        is_mergeable: answer("ksm_mergeable")?,
    })
}

/// Reads what process `pid` costs. The kernel walks all its page tables for this, so with many
/// guests [`super::Meter`] does it only occasionally.
///
/// # Errors
/// [`ObserveError::Gone`] if the process ends in the meantime, [`ObserveError::Forbidden`] for a
/// process of another user.
pub fn cost(sources: &Sources, pid: u32) -> Result<Cost, ObserveError> {
    let merged = merged(sources, pid)?;
    let exact = process_cost_in(sources, pid)?;
    Ok(exact_cost(&exact, merged))
}

pub(super) fn exact_cost(exact: &ProcessCost, merged: Option<Merged>) -> Cost {
    Cost {
        resident_bytes: exact.resident_bytes,
        proportional_bytes: exact.total_bytes(),
        huge_bytes: exact.anonymous_huge_bytes,
        merged_bytes: exact.merged_bytes.or_else(|| merged.map(|merged| merged.bytes())),
        merge_profit_bytes: merged.map(|merged| merged.profit_bytes),
        swapped_bytes: exact.swapped_bytes,
    }
}

/// The counters that the kernel maintains for each process, so that reading them takes
/// microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cheap {
    pub(super) resident_bytes: u64,
    pub(super) pool_bytes: u64,
    pub(super) swapped_bytes: u64,
    pub(super) merged: Option<Merged>,
    /// Start time of the process in ticks since boot: distinguishes it from a later one with its
    /// pid.
    pub(super) started: u64,
}

impl Cheap {
    pub(super) fn read(sources: &Sources, pid: u32) -> Result<Self, ObserveError> {
        let started = started_of(sources, pid)?;
        let merged = merged(sources, pid)?;
        let status = sources.read_of(pid, "status")?;
        Self::parse(&status, merged, started)?.ok_or(ObserveError::Gone { pid })
    }

    /// Parses the counters; `None` for a process without memory.
    fn parse(
        status: &str,
        merged: Option<Merged>,
        started: u64,
    ) -> Result<Option<Self>, ObserveError> {
        let status = Fields { file: "status", text: status };
        let Some(resident_bytes) = status.optional("VmRSS")? else { return Ok(None) };
        let pool_bytes = status.optional("HugetlbPages")?.unwrap_or(0);
        let swapped_bytes = status.optional("VmSwap")?.unwrap_or(0);
        Ok(Some(Self { resident_bytes, pool_bytes, swapped_bytes, merged, started }))
    }

    /// Returns RSS plus pool pages, in bytes.
    pub(super) const fn occupied_bytes(&self) -> u64 {
        self.resident_bytes.saturating_add(self.pool_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From Linux 6.18.
    const STAT: &str = "ksm_rmap_items 16384\nksm_zero_pages 2\nksm_merging_pages 100\n\
                        ksm_process_profit -630784\nksm_merge_any: no\nksm_mergeable: yes\n";

    #[test]
    fn reads_what_is_merged_with_its_sign() {
        let merged = parse_ksm_stat(STAT).unwrap();
        assert_eq!(merged.profit_bytes, -630_784);
        assert_eq!(merged.bytes(), 102 * 4096);
        assert_eq!((merged.merge_any, merged.is_mergeable), (Some(false), Some(true)));
    }

    #[test]
    fn an_older_kernel_reports_less_and_nonsense_is_refused() {
        let merged = parse_ksm_stat("ksm_rmap_items 1\n").unwrap();
        assert_eq!((merged.bytes(), merged.is_mergeable), (0, None));
        for bad in ["", "ksm_rmap_items -1\n", "ksm_rmap_items 1\nksm_mergeable: perhaps\n"] {
            assert_eq!(parse_ksm_stat(bad), None, "{bad}");
        }
    }

    #[test]
    fn this_process_costs_something() {
        let sources = Sources::system();
        let cost = cost(&sources, std::process::id()).unwrap();
        assert!(cost.proportional_bytes > 0 && cost.resident_bytes >= cost.proportional_bytes);
        let cheap = Cheap::read(&sources, std::process::id()).unwrap();
        assert!(cheap.started > 0 && cheap.resident_bytes > 0);
    }

    #[test]
    fn a_process_without_a_folder_is_gone() {
        let gone = cost(&Sources::system(), 4_194_305).unwrap_err();
        assert!(matches!(gone, ObserveError::Gone { pid: 4_194_305 }), "{gone}");
    }

    proptest! {
        #[test]
        fn any_text_of_ksm_stat_gives_numbers_or_nothing(text in "(?s)(ksm_rmap_items [0-9]{1,25}\n)?.{0,200}") {
            let _ = parse_ksm_stat(&text);
        }

        #[test]
        fn reads_back_what_a_kernel_writes(items: u64, merging: u64, profit: i64) {
            let text = format!("ksm_rmap_items {items}\nksm_merging_pages {merging}\nksm_process_profit {profit}\n");
            let merged = parse_ksm_stat(&text).unwrap();
            prop_assert_eq!((merged.rmap_items, merged.merging_pages), (items, merging));
            prop_assert_eq!(merged.profit_bytes, profit);
        }
    }
}
