//! The host memory that one guest process costs.

use super::fields::Fields;
use super::{ObserveError, Sources};

/// Host memory of one process, in bytes, from the kernel's page tables at the time of the read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessCost {
    /// RSS: all mapped pages; shared pages count in full.
    pub resident_bytes: u64,
    /// PSS: all mapped pages, each divided by the number of processes that share it. The sum over
    /// all processes is what they cost together.
    pub proportional_bytes: u64,
    /// Anonymous pages; guest RAM is among them unless it is backed by a file.
    pub anonymous_bytes: u64,
    /// The anonymous memory on transparent huge pages.
    pub anonymous_huge_bytes: u64,
    /// Pages merged by KSM; absent before Linux 6.8.
    pub merged_bytes: Option<u64>,
    /// Anonymous memory in swap.
    pub swapped_bytes: u64,
    /// Pages from the hugetlb pool, which RSS and PSS exclude.
    pub hugetlb_bytes: u64,
}

impl ProcessCost {
    /// Returns the process's total cost: its PSS plus its huge pages from the pool.
    #[must_use]
    pub const fn total_bytes(&self) -> u64 {
        self.proportional_bytes.saturating_add(self.hugetlb_bytes)
    }
}

/// Reads the cost of process `pid` from `/proc/PID/smaps_rollup` and `/proc/PID/status`.
///
/// The kernel walks the process's page tables for this: 5 ms for 512 MiB of 4 KiB pages
/// (`cargo bench -p memopt --bench observe -- 8 512`), much less for huge pages.
///
/// # Errors
/// [`ObserveError::Gone`] if the process ends in the meantime, [`ObserveError::Forbidden`] for a
/// process of another user.
pub fn process_cost(pid: u32) -> Result<ProcessCost, ObserveError> {
    process_cost_in(&Sources::system(), pid)
}

/// Like [`process_cost`], below another root.
pub(super) fn process_cost_in(sources: &Sources, pid: u32) -> Result<ProcessCost, ObserveError> {
    let rollup = sources.read_of(pid, "smaps_rollup")?;
    let status = sources.read_of(pid, "status")?;
    parse_process_cost(&rollup, &status)
}

/// Reads only how much memory process `pid` occupies, in bytes, from `/proc/PID/status`: its RSS,
/// and its huge pages from the pool, which RSS excludes. The kernel maintains these counters, so
/// this takes microseconds however large the process is.
///
/// # Errors
/// [`ObserveError::Gone`] if the process ends in the meantime, or no longer has memory.
pub fn resident_bytes(pid: u32) -> Result<u64, ObserveError> {
    let text = Sources::system().read_of(pid, "status")?;
    parse_resident(&text)?.ok_or(ObserveError::Gone { pid })
}

/// Parses the RSS and pool pages; `None` for a process without memory.
fn parse_resident(status: &str) -> Result<Option<u64>, ObserveError> {
    let status = Fields { file: "status", text: status };
    let pool = status.optional("HugetlbPages")?.unwrap_or(0);
    Ok(status.optional("VmRSS")?.map(|resident| resident.saturating_add(pool)))
}

/// Parses the text of `smaps_rollup` and `status`.
///
/// # Errors
/// [`ObserveError::Missing`] or [`ObserveError::Amount`] if the text is not what the kernel writes.
pub fn parse_process_cost(rollup: &str, status: &str) -> Result<ProcessCost, ObserveError> {
    let rollup = Fields { file: "smaps_rollup", text: rollup };
    let status = Fields { file: "status", text: status };
    Ok(ProcessCost {
        resident_bytes: rollup.required("Rss")?,
        proportional_bytes: rollup.required("Pss")?,
        anonymous_bytes: rollup.required("Anonymous")?,
        anonymous_huge_bytes: rollup.required("AnonHugePages")?,
        merged_bytes: rollup.optional("KSM")?,
        swapped_bytes: rollup.required("Swap")?,
        hugetlb_bytes: status.optional("HugetlbPages")?.unwrap_or(0),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// From a guest process on Linux 6.18, shortened.
    const ROLLUP: &str = "\
5593e0224000-7ffd564e4000 ---p 00000000 00:00 0                          [rollup]
Rss:              561616 kB
Pss:              555360 kB
Pss_Dirty:        550112 kB
Private_Dirty:    550112 kB
Anonymous:        550112 kB
KSM:                  16 kB
AnonHugePages:    524288 kB
Swap:                 12 kB
SwapPss:              12 kB
Locked:                0 kB
";
    const STATUS: &str = "Name:\tlighter\nVmRSS:\t  561616 kB\nHugetlbPages:\t    2048 kB\n";

    #[test]
    fn reads_every_field() {
        let cost = parse_process_cost(ROLLUP, STATUS).expect("a kernel's text");
        assert_eq!(cost.resident_bytes, 561_616 << 10);
        assert_eq!(cost.proportional_bytes, 555_360 << 10);
        assert_eq!(cost.anonymous_bytes, 550_112 << 10);
        assert_eq!(cost.anonymous_huge_bytes, 512 << 20);
        assert_eq!(cost.merged_bytes, Some(16 << 10));
        assert_eq!(cost.swapped_bytes, 12 << 10);
        assert_eq!(cost.total_bytes(), (555_360 + 2048) << 10);
    }

    #[test]
    fn huge_pages_of_the_pool_are_occupied_too() {
        assert_eq!(parse_resident(STATUS).expect("a kernel's text"), Some((561_616 + 2048) << 10));
        assert_eq!(parse_resident("Name:\tgone\n").expect("a kernel's text"), None);
    }

    #[test]
    fn old_kernel_without_ksm_field_is_fine() {
        let rollup = ROLLUP.replace("KSM:                  16 kB\n", "");
        let cost = parse_process_cost(&rollup, STATUS).expect("a kernel's text");
        assert_eq!(cost.merged_bytes, None);
    }

    #[test]
    fn names_the_field_that_is_missing() {
        let rollup = ROLLUP.replace("Pss:", "Psst:");
        let error = parse_process_cost(&rollup, STATUS).expect_err("no Pss");
        assert!(matches!(error, ObserveError::Missing { field: "Pss", .. }), "{error}");
    }

    #[test]
    fn this_process_costs_something() {
        let cost = process_cost(std::process::id()).expect("our own cost");
        assert!(cost.resident_bytes >= cost.proportional_bytes);
        assert!(cost.proportional_bytes > 0);
        assert!(resident_bytes(std::process::id()).expect("our own RSS") > 0);
    }

    proptest! {
        #[test]
        fn damaged_text_never_panics(
            at in 0..ROLLUP.len(), with in any::<char>(), end in 0..ROLLUP.len(),
        ) {
            let mut text: Vec<char> = ROLLUP.chars().collect();
            text[at] = with;
            let damaged: String = text.into_iter().take(end).collect();
            let _ = parse_process_cost(&damaged, STATUS);
            let _ = parse_process_cost(ROLLUP, &damaged);
        }
    }
}
