//! The input of a plan: the host and its guests at one point in time, as plain numbers.
//!
//! Nothing here reads a file, queries a guest or reads the clock. [`crate::observe`] and the
//! program fill these types in; [`crate::plan`] reads them. They are serializable, so that a plan
//! can be stored together with its input. All sizes are bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The host and all known guests on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Situation {
    /// Seconds since the Unix epoch, by the host's clock: for display. Decisions use
    /// [`Self::uptime`].
    pub unix_seconds: u64,
    /// Time since the host booted, which cannot be set back.
    pub uptime: Duration,
    /// The host.
    pub host: Host,
    /// The guests, sorted by name, each once.
    pub guests: Vec<Guest>,
}

/// The host's memory, and how much of it is left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// `MemTotal`.
    pub total_bytes: u64,
    /// `MemAvailable`: what new work could use without swapping.
    pub available_bytes: u64,
    /// Swap in use.
    pub swap_used_bytes: u64,
    /// Pressure stall information of memory; absent where the kernel provides none (`psi=0`).
    pub pressure: Option<Pressure>,
    /// The kernel's samepage merging; absent where the kernel does not have it.
    pub ksm: Option<Ksm>,
    /// The hugetlb pools, by page size.
    pub pools: Vec<Pool>,
    /// The merge domain whose guests the kernel may merge now.
    pub merged_domain: Option<String>,
    /// Processes that belong to no guest here but whose pages the kernel could merge with those of
    /// a domain, for display. Searched for only when a guest is to be merged.
    #[serde(default, alias = "strangers")]
    pub other_processes: Vec<String>,
}

/// How much of the time work waited for memory (`/proc/pressure/memory`), each from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Pressure {
    /// Something waited, over the last 10 seconds.
    pub some_10s: f64,
    /// Everything waited, over the last 10 seconds.
    pub full_10s: f64,
    /// Something waited, over the last minute.
    pub some_60s: f64,
    /// Everything waited, over the last minute.
    pub full_60s: f64,
}

/// `/sys/kernel/mm/ksm`, and what ksmd has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ksm {
    /// 0: stopped; 1: running; 2: stopped and everything unmerged.
    pub run: u8,
    /// Pages that others share: the pages kept.
    pub pages_shared: u64,
    /// Pages that share them: the pages saved.
    pub pages_sharing: u64,
    /// Pages that were scanned and have no duplicate.
    pub pages_unshared: u64,
    /// Pages that change too fast to be merged. With `smart_scan`, skipped pages also count as
    /// such.
    pub pages_volatile: u64,
    /// Pages that map the zero page.
    pub zero_pages: u64,
    /// Pages scanned since boot.
    pub pages_scanned: u64,
    /// Number of times that all mergeable memory was scanned.
    pub full_scans: u64,
    /// What merging saves minus the memory of its own records. Signed.
    pub profit_bytes: i64,
    /// CPU time of ksmd since boot; absent when its process is not found.
    pub cpu: Option<Duration>,
}

/// One hugetlb pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pool {
    /// Size of its pages.
    pub page_bytes: u64,
    /// Pages in the pool.
    pub pages: u64,
    /// Pages that are not in use.
    pub free_pages: u64,
    /// Free pages that are reserved.
    pub reserved_pages: u64,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Guest {
    /// Name of the guest, unique on this host ([`crate::foreign::make_names_unique`]).
    pub name: String,
    /// The program that runs it.
    pub vmm: Vmm,
    /// The process that holds its memory.
    pub pid: u32,
    /// RAM that it was started with.
    pub memory_bytes: u64,
    /// Memory that it costs the host.
    pub cost: Cost,
    /// The kind of memory behind its RAM.
    pub backing: Backing,
    /// Its balloon; absent when it has none.
    pub balloon: Option<Balloon>,
    /// The merge domain it belongs to; absent when its pages are not shared with other guests.
    pub merge_domain: Option<String>,
    /// The domain whose guests were merged on this host when the guest arrived. For that reason its
    /// process allows none of its pages to be merged for as long as it lives.
    #[serde(default)]
    pub merged_instead: Option<String>,
    /// Whether the kernel may merge its pages now.
    pub is_mergeable: bool,
    /// Whether all of its memory is to be allocated at its start.
    #[serde(default)]
    pub is_preallocated: bool,
    /// What is worth merging in its RAM; absent when it was not surveyed.
    pub survey: Option<Survey>,
    /// Why no step may be executed on it now.
    pub hindrance: Option<Hindrance>,
    /// Time since it last began to boot, as far as its program tells; absent for a guest that was
    /// booted elsewhere: it came from another host, or from a file.
    #[serde(default)]
    pub since_boot: Option<Duration>,
    /// Labels that its operator has given it.
    pub labels: BTreeMap<String, String>,
    /// The user that owns its process; absent where that cannot be determined.
    #[serde(default)]
    pub user: Option<User>,
}

/// A user of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct User {
    /// Numeric user id.
    pub uid: u32,
    /// User name, if the host has one for this id.
    pub name: Option<String>,
}

impl User {
    /// Whether `text` is the user's name or id.
    #[must_use]
    pub fn is_called(&self, text: &str) -> bool {
        self.name.as_deref() == Some(text) || self.uid.to_string() == text
    }
}

impl Guest {
    /// Returns the name that the guest was started with. The user who starts a guest of another
    /// program chooses its name, and several guests of a host may have the same; [`Self::name`] is
    /// unique.
    #[must_use]
    pub fn claimed_name(&self) -> &str {
        let apart = || self.name.strip_suffix(&format!("@{}", self.pid));
        match self.vmm.is_named_by_operator() {
            true => &self.name,
            false => apart().unwrap_or(&self.name),
        }
    }

    /// Returns the bytes that `balloon`, which must be this guest's, leaves it: never more than its
    /// memory, whatever the balloon reports.
    #[must_use]
    pub(crate) fn has_bytes(&self, balloon: &Balloon) -> u64 {
        balloon.actual_bytes.min(self.memory_bytes)
    }

    /// Returns a guest of which nothing else is known.
    #[must_use]
    pub fn unknown(name: String, vmm: Vmm, pid: u32) -> Self {
        Self {
            name,
            vmm,
            pid,
            memory_bytes: 0,
            cost: Cost::default(),
            backing: Backing::Anonymous,
            balloon: None,
            merge_domain: None,
            merged_instead: None,
            is_mergeable: false,
            is_preallocated: false,
            survey: None,
            hindrance: None,
            since_boot: None,
            labels: BTreeMap::new(),
            user: None,
        }
    }
}

/// The program that runs a guest.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Vmm {
    /// This program.
    Lighter,
    /// QEMU, with or without libvirt; queried through QMP.
    Qemu,
    /// Cloud Hypervisor; queried through its HTTP API.
    CloudHypervisor,
}

impl Vmm {
    /// Whether the program merges, unmerges, drops and shares single chunks of a guest's memory on
    /// request. For other programs, the kernel may merge what they marked at the start, and a
    /// process other than the guest's own can make huge pages.
    #[must_use]
    pub const fn takes_chunks(self) -> bool {
        matches!(self, Self::Lighter)
    }

    /// Whether a guest's name and labels are set by its operator. Otherwise the user who started
    /// its process chose them, and a policy rule that does not also name the user may only restrict
    /// the guest.
    #[must_use]
    pub const fn is_named_by_operator(self) -> bool {
        matches!(self, Self::Lighter)
    }
}

/// The memory that a guest costs its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cost {
    /// RSS.
    pub resident_bytes: u64,
    /// PSS plus pages of the hugetlb pool: the sum over all guests is their total cost.
    pub proportional_bytes: u64,
    /// The part held in transparent huge pages.
    pub huge_bytes: u64,
    /// Bytes merged by the kernel; absent where the kernel does not report them.
    pub merged_bytes: Option<u64>,
    /// What merging saves in this process minus the memory of its records. Signed; pages shared
    /// between processes are counted too often.
    pub merge_profit_bytes: Option<i64>,
    /// Swapped out.
    pub swapped_bytes: u64,
}

/// The kind of memory behind a guest's RAM, which determines what can be done with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// Private anonymous memory: the kernel can merge it and use huge pages for it.
    Anonymous,
    /// A copy-on-write view of a template.
    Template,
    /// Pages of the hugetlb pool: never merged, and a balloon of 4 KiB pages returns nothing.
    HugePool,
    /// Shared memory (`memfd`, `MAP_SHARED`): never merged.
    Shared,
}

/// A guest's balloon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Balloon {
    /// Whether a driver in the guest serves it.
    pub has_driver: bool,
    /// Memory that the guest is asked to keep.
    pub target_bytes: u64,
    /// Whether a step set the target rather than an operator; absent where the guest's monitor does
    /// not remember it, and only [`crate::ledger::Ledger`] may know.
    #[serde(default)]
    pub is_set_by_steps: Option<bool>,
    /// Memory that the guest keeps: its RAM less what is in the balloon.
    pub actual_bytes: u64,
    /// Whether the guest reports pages that it frees, so that the host gets them back without
    /// asking.
    pub reports_free_pages: bool,
    /// Bytes reported and returned to the host since the guest was started; zero where they are not
    /// counted.
    pub reported_bytes_total: u64,
    /// The guest's own report of its memory. Not trusted: a guest that lies may only harm itself.
    pub statistics: Option<Statistics>,
}

/// What a guest's balloon driver reports. Every value may be missing. Counters count since the
/// guest booted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Statistics {
    /// Age of this report.
    pub age: Duration,
    /// Total memory as seen by the guest (`MEMTOT`).
    pub total_bytes: Option<u64>,
    /// Unused memory (`MEMFREE`).
    pub free_bytes: Option<u64>,
    /// What new work in the guest could use without swapping (`AVAIL`).
    pub available_bytes: Option<u64>,
    /// Page cache (`CACHES`).
    pub caches_bytes: Option<u64>,
    /// Swapped in.
    pub swap_in_bytes: Option<u64>,
    /// Swapped out.
    pub swap_out_bytes: Option<u64>,
    /// Page faults that waited for a disk.
    pub major_faults: Option<u64>,
    /// Processes killed because memory ran out (Linux 6.12).
    pub oom_kills: Option<u64>,
    /// Allocations that waited for memory (Linux 6.12).
    pub allocation_stalls: Option<u64>,
    /// Memory reclaimed while a process waited for it (Linux 6.12).
    pub direct_reclaim_bytes: Option<u64>,
}

/// The result of sampling a guest's RAM, in chunks of 2 MiB.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Survey {
    /// Age of the survey.
    pub age: Duration,
    /// Share of the RAM that was sampled, 0 to 1.
    pub sampled: f64,
    /// How many pages share one content, averaged over the duplicates: 2 or more, or 0 when
    /// unknown. Of `n` equal pages, merging saves `n - 1`.
    #[serde(default)]
    pub copies: f64,
    /// The sampled chunks, in order of their address.
    pub chunks: Vec<Chunk>,
}

impl Survey {
    /// An older survey is ignored.
    const AGE_MAX: Duration = Duration::from_secs(1800);

    /// Whether the survey is recent enough to base decisions on.
    #[must_use]
    pub fn is_recent(&self) -> bool {
        self.age <= Self::AGE_MAX
    }
}

/// One chunk of 2 MiB of a guest's RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// Guest physical address divided by 2 MiB.
    pub index: u32,
    /// 4 KiB pages that are present (0 to 512).
    pub present_pages: u16,
    /// Of the present pages, those that contain only zeroes.
    pub zero_pages: u16,
    /// Of the present pages, those with a duplicate elsewhere in the merge domain, zero pages not
    /// included.
    pub duplicate_pages: u16,
    /// Private pages equal to the guest's template at the same address.
    #[serde(default)]
    pub template_pages: u16,
    /// Pages written between the two samples.
    pub written_pages: u16,
    /// Whether a huge page holds it.
    pub is_huge: bool,
    /// Whether the kernel may merge it.
    pub is_mergeable: bool,
    /// Whether merging has mapped one host page at several addresses of it. That cannot be undone
    /// from outside: the kernel makes no huge page of such a chunk (`MADV_COLLAPSE` returns
    /// `EAGAIN` every time).
    #[serde(default)]
    pub has_twins: bool,
}

/// The reason why no step is executed on a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Hindrance {
    /// It is migrating to another host, or arriving from one.
    Migrating,
    /// Its vCPUs are stopped: its balloon does not move.
    Paused,
    /// It is being saved to a file.
    Saving,
    /// Its process does not answer.
    Unreachable,
    /// It belongs to another program, and the operator allows such guests only to be observed.
    Watched,
    /// It has a device of the host, which reaches all of its memory.
    Pinned,
}
