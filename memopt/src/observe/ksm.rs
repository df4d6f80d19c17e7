//! The kernel's samepage merging: its counters, its knobs, and the CPU time of its thread.
//!
//! The kernel's Documentation/admin-guide/mm/ksm.rst names the files. Those added after Linux 4.14
//! may be missing.

use std::time::Duration;

use super::ObserveError;
use super::sources::{Sources, chosen, unsigned};
use super::stat::used;
use crate::situation;

const FOLDER: &str = "sys/kernel/mm/ksm";

/// Bytes per page: KSM merges 4 KiB pages on x86-64.
const PAGE_BYTES: i64 = 4096;
/// Bytes that the kernel keeps for each page that KSM scans (`struct ksm_rmap_item`).
const ITEM_BYTES: i64 = 64;

/// The state in `/sys/kernel/mm/ksm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KsmState {
    /// The counters that plans use.
    pub counters: situation::Ksm,
    /// Pages that `smart_scan` has skipped since boot; absent before Linux 6.7.
    pub pages_skipped: Option<u64>,
    /// Page contents with more sharers than `max_page_sharing`; absent before Linux 4.14.
    pub stable_node_chains: Option<u64>,
    /// Duplicate pages that the kernel keeps for those contents.
    pub stable_node_dups: Option<u64>,
    /// The most mappings that share one page; absent before Linux 4.14.
    pub max_page_sharing: Option<u64>,
    /// Whether `pages_scanned` is counted (Linux 6.6); otherwise the counter stays 0.
    pub counts_scanned: bool,
    /// The settings, read together with the counters.
    pub knobs: KsmKnobs,
}

/// The settings of the kernel's samepage merging.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KsmKnobs {
    /// 0 stopped, 1 running, 2 stopped and everything unmerged.
    pub run: u64,
    /// Pages that ksmd scans before it sleeps.
    pub pages_to_scan: u64,
    /// How long ksmd sleeps between batches, in milliseconds.
    pub sleep_millisecs: u64,
    /// Whether ksmd leaves pages that it found unique out of its next scans; absent before Linux
    /// 6.7.
    pub smart_scan: Option<u64>,
    /// Whether ksmd merges pages of zeros with the kernel's zero page; absent before Linux 4.12.
    pub use_zero_pages: Option<u64>,
    /// Whether pages of different NUMA nodes are merged; absent on kernels without NUMA.
    pub merge_across_nodes: Option<u64>,
    /// What sets `pages_to_scan`; absent before Linux 6.8.
    pub advisor: Option<Advisor>,
}

/// What decides how many pages ksmd scans per batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advisor {
    /// User space, by writing `pages_to_scan`.
    Off,
    /// The kernel's advisor, so that a scan takes `advisor_target_scan_time`. `pages_to_scan`
    /// cannot be written in this mode.
    ScanTime,
}

impl Advisor {
    /// Parses `advisor_mode`, e.g. `[none] scan-time`; `None` for an unknown mode.
    fn parse(text: &str) -> Option<Self> {
        match chosen(text)? {
            "none" => Some(Self::Off),
            "scan-time" => Some(Self::ScanTime),
            _ => None,
        }
    }
}

/// Reads `/sys/kernel/mm/ksm`. The counters lack ksmd's CPU time, which [`ksmd_time`] reads.
///
/// # Errors
/// [`ObserveError::Absent`] on a kernel without `CONFIG_KSM`, [`ObserveError::Unexpected`] if a
/// file is not what the kernel writes.
pub fn ksm(sources: &Sources) -> Result<KsmState, ObserveError> {
    let number = |name: &str| sources.number(&format!("{FOLDER}/{name}"));
    let optional = |name: &str| sources.number_if_there(&format!("{FOLDER}/{name}"));
    let knobs = ksm_knobs(sources)?;
    let (shared, sharing) = (number("pages_shared")?, number("pages_sharing")?);
    let (unshared, volatile) = (number("pages_unshared")?, number("pages_volatile")?);
    let zero_pages = optional("ksm_zero_pages")?.unwrap_or(0);
    let profit = sources.signed(&format!("{FOLDER}/general_profit"));
    let reckoned = || {
        let items = [shared, sharing, unshared, volatile].into_iter().map(signed);
        let records = items.fold(0_i64, i64::saturating_add).saturating_mul(ITEM_BYTES);
        let saved = signed(sharing).saturating_add(signed(zero_pages)).saturating_mul(PAGE_BYTES);
        saved.saturating_sub(records)
    };
    let scanned = optional("pages_scanned")?;
    Ok(KsmState {
        counters: situation::Ksm {
            run: u8::try_from(knobs.run).unwrap_or(u8::MAX),
            pages_shared: shared,
            pages_sharing: sharing,
            pages_unshared: unshared,
            pages_volatile: volatile,
            zero_pages,
            pages_scanned: scanned.unwrap_or(0),
            full_scans: number("full_scans")?,
            profit_bytes: super::sources::if_there(profit)?.unwrap_or_else(reckoned),
            cpu: None,
        },
        pages_skipped: optional("pages_skipped")?,
        stable_node_chains: optional("stable_node_chains")?,
        stable_node_dups: optional("stable_node_dups")?,
        max_page_sharing: optional("max_page_sharing")?,
        counts_scanned: scanned.is_some(),
        knobs,
    })
}

/// Reads the settings of the kernel's samepage merging.
///
/// # Errors
/// As [`ksm`].
pub fn ksm_knobs(sources: &Sources) -> Result<KsmKnobs, ObserveError> {
    let number = |name: &str| sources.number(&format!("{FOLDER}/{name}"));
    let optional = |name: &str| sources.number_if_there(&format!("{FOLDER}/{name}"));
    let file = format!("{FOLDER}/advisor_mode");
    let advisor = match super::sources::if_there(sources.read(&file))? {
        Some(text) => Some(Advisor::parse(&text).ok_or_else(|| sources.unexpected(&file, &text))?),
        None => None,
    };
    Ok(KsmKnobs {
        run: number("run")?,
        pages_to_scan: number("pages_to_scan")?,
        sleep_millisecs: number("sleep_millisecs")?,
        smart_scan: optional("smart_scan")?,
        use_zero_pages: optional("use_zero_pages")?,
        merge_across_nodes: optional("merge_across_nodes")?,
        advisor,
    })
}

/// Reads ksmd's CPU time since boot: in nanoseconds if the kernel counts them (`schedstat`),
/// otherwise in hundredths of a second.
///
/// # Errors
/// [`ObserveError::NoThread`] if there is no such kernel thread, e.g. in a container that sees only
/// its own processes.
pub fn ksmd_time(sources: &Sources) -> Result<Duration, ObserveError> {
    let pid = find_ksmd(sources)?;
    if let Ok(text) = sources.read_of(pid, "schedstat")
        && let Some(nanoseconds) = text.split(' ').next().and_then(unsigned)
        && nanoseconds > 0
    {
        return Ok(Duration::from_nanos(nanoseconds));
    }
    let text = sources.read_of(pid, "stat")?;
    used(&text).ok_or_else(|| sources.unexpected("proc/PID/stat", &text))
}

/// Finds the process of ksmd by its name and its parent, kthreadd (process 2), which no user
/// program can have.
fn find_ksmd(sources: &Sources) -> Result<u32, ObserveError> {
    if let Some(pid) = sources.ksmd.get() {
        return Ok(*pid);
    }
    let is_ksmd = |pid: &u32| {
        let stat = sources.read_of(*pid, "stat").unwrap_or_default();
        let rest = stat.strip_prefix(&format!("{pid} (ksmd) "));
        rest.is_some_and(|rest| rest.split(' ').nth(1) == Some("2"))
    };
    let found = sources.processes()?.into_iter().find(is_ksmd);
    let pid = found.ok_or(ObserveError::NoThread { name: "ksmd" })?;
    Ok(*sources.ksmd.get_or_init(|| pid))
}

fn signed(pages: u64) -> i64 {
    i64::try_from(pages).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The files of Linux 4.14.
    fn old_kernel(root: &Path) {
        for (name, value) in [
            ("run", "1"),
            ("pages_to_scan", "100"),
            ("sleep_millisecs", "20"),
            ("pages_shared", "10"),
            ("pages_sharing", "90"),
            ("pages_unshared", "1000"),
            ("pages_volatile", "0"),
            ("full_scans", "7"),
        ] {
            write(root, &format!("{FOLDER}/{name}"), &format!("{value}\n"));
        }
    }

    #[test]
    fn profit_is_signed_and_computed_where_the_kernel_does_not_report_it() {
        let folder = tempfile::tempdir().unwrap();
        old_kernel(folder.path());
        let sources = Sources::at(folder.path());
        let old = ksm(&sources).unwrap();
        assert_eq!(old.counters.profit_bytes, 90 * 4096 - 1100 * 64);
        assert!(!old.counts_scanned && old.knobs.advisor.is_none());

        write(folder.path(), &format!("{FOLDER}/general_profit"), "-14680064\n");
        write(folder.path(), &format!("{FOLDER}/advisor_mode"), "none [scan-time]\n");
        let new = ksm(&sources).unwrap();
        assert_eq!(new.counters.profit_bytes, -(14 << 20));
        assert_eq!(new.knobs.advisor, Some(Advisor::ScanTime));
    }

    #[test]
    fn names_the_invalid_file() {
        let folder = tempfile::tempdir().unwrap();
        old_kernel(folder.path());
        write(folder.path(), &format!("{FOLDER}/advisor_mode"), "none [psychic]\n");
        let error = ksm(&Sources::at(folder.path())).unwrap_err();
        assert!(error.to_string().contains("ksm/advisor_mode"), "{error}");
    }

    #[test]
    fn ksmd_is_a_kernel_thread_and_no_program_of_that_name() {
        let folder = tempfile::tempdir().unwrap();
        let stat = |pid: u32, name: &str, parent: u32| {
            format!("{pid} ({name}) S {parent} 0 0 0 -1 2097216 0 0 0 0 150 25 0 0 25 5 1 0 27\n")
        };
        write(folder.path(), "proc/9/stat", &stat(9, "ksmd", 1));
        write(folder.path(), "proc/11/stat", &stat(11, "a (ksmd) S 2 b", 1));
        let sources = Sources::at(folder.path());
        assert!(matches!(ksmd_time(&sources).unwrap_err(), ObserveError::NoThread { .. }));

        write(folder.path(), "proc/37/stat", &stat(37, "ksmd", 2));
        assert_eq!(ksmd_time(&sources).unwrap(), Duration::from_millis(1750));
        write(folder.path(), "proc/37/schedstat", "1750123456 30709241 33\n");
        assert_eq!(ksmd_time(&sources).unwrap(), Duration::from_nanos(1_750_123_456));
    }

    proptest! {
        #[test]
        fn any_text_of_stat_gives_ticks_or_nothing(text in "(?s).{0,200}") {
            let _ = used(&text);
            let _ = Advisor::parse(&text);
        }
    }
}
