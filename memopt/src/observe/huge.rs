//! Transparent huge pages, and counters of how often the kernel makes, splits and unshares pages.

use serde::Serialize;

use super::ObserveError;
use super::fields::Fields;
use super::sources::{Sources, chosen, if_there, unsigned, value_of};

/// The host's memory on transparent huge pages, and the policy for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// Anonymous memory on huge pages, in bytes.
    pub anonymous_bytes: u64,
    /// Shared memory on huge pages, in bytes.
    pub shmem_bytes: u64,
    /// Which anonymous memory may use them; absent on a kernel without them.
    pub enabled: Option<HugePagePolicy>,
}

/// The setting in `/sys/kernel/mm/transparent_hugepage/enabled`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HugePagePolicy {
    /// All anonymous memory.
    Always,
    /// Memory that asked for them (`MADV_HUGEPAGE`).
    Madvise,
    /// No memory, even if it asked for them.
    Never,
}

/// Counters of `/proc/vmstat` since boot; absent if the kernel does not count them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Activity {
    /// Huge pages allocated by a page fault.
    pub thp_fault_alloc: Option<u64>,
    /// Page faults that fell back to small pages because no huge page was available.
    pub thp_fault_fallback: Option<u64>,
    /// Huge pages made by khugepaged or `MADV_COLLAPSE`.
    pub thp_collapse_alloc: Option<u64>,
    /// Huge pages that were split.
    pub thp_split_page: Option<u64>,
    /// Mappings of huge pages that were split.
    pub thp_split_pmd: Option<u64>,
    /// Merged pages that were copied because a process wrote to them (Linux 5.19).
    pub cow_ksm: Option<u64>,
    /// Merged pages that were copied when they were swapped in (Linux 5.19).
    pub ksm_swpin_copy: Option<u64>,
    /// Pages swapped in.
    pub pswpin: Option<u64>,
    /// Pages swapped out.
    pub pswpout: Option<u64>,
}

/// Reads the state of transparent huge pages from `/proc/meminfo` and
/// `/sys/kernel/mm/transparent_hugepage`.
///
/// # Errors
/// [`ObserveError`] if a file cannot be read or is not what the kernel writes.
pub fn huge_pages(sources: &Sources) -> Result<HugePages, ObserveError> {
    const ENABLED: &str = "sys/kernel/mm/transparent_hugepage/enabled";
    let text = sources.read("proc/meminfo")?;
    let fields = Fields { file: "meminfo", text: &text };
    let enabled = match if_there(sources.read(ENABLED))? {
        Some(text) => Some(match chosen(&text) {
            Some("always") => HugePagePolicy::Always,
            Some("madvise") => HugePagePolicy::Madvise,
            Some("never") => HugePagePolicy::Never,
            _ => return Err(sources.unexpected(ENABLED, &text)),
        }),
        None => None,
    };
    Ok(HugePages {
        anonymous_bytes: fields.optional("AnonHugePages")?.unwrap_or(0),
        shmem_bytes: fields.optional("ShmemHugePages")?.unwrap_or(0),
        enabled,
    })
}

/// Reads the counters of `/proc/vmstat`.
///
/// # Errors
/// [`ObserveError`] if the file cannot be read.
pub fn activity(sources: &Sources) -> Result<Activity, ObserveError> {
    Ok(parse_vmstat(&sources.read("proc/vmstat")?))
}

/// Parses the text of `vmstat`; a value that is not a number counts as absent.
#[must_use]
pub fn parse_vmstat(text: &str) -> Activity {
    let counter = |name| value_of(text, name).and_then(unsigned);
    Activity {
        thp_fault_alloc: counter("thp_fault_alloc"),
        thp_fault_fallback: counter("thp_fault_fallback"),
        thp_collapse_alloc: counter("thp_collapse_alloc"),
        thp_split_page: counter("thp_split_page"),
        thp_split_pmd: counter("thp_split_pmd"),
        cow_ksm: counter("cow_ksm"),
        ksm_swpin_copy: counter("ksm_swpin_copy"),
        pswpin: counter("pswpin"),
        pswpout: counter("pswpout"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn counters_with_longer_names_are_others() {
        let text = "thp_split_page_failed 9\nthp_split_page 3\ncow_ksm 17\npswpin -1\n";
        let activity = parse_vmstat(text);
        assert_eq!((activity.thp_split_page, activity.cow_ksm), (Some(3), Some(17)));
        assert_eq!((activity.pswpin, activity.pswpout), (None, None));
    }

    #[test]
    fn this_host_is_readable() {
        let sources = Sources::system();
        assert!(activity(&sources).unwrap().pswpin.is_some());
        huge_pages(&sources).unwrap();
    }

    proptest! {
        #[test]
        fn any_text_of_vmstat_is_scanned(text in "(?s)(thp_|cow_ksm |pswpin ){0,3}.{0,200}") {
            let _ = parse_vmstat(&text);
        }
    }
}
