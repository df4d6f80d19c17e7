//! What a plan is made from: the host and its guests at one moment, as plain numbers.
//!
//! Nothing here reads a file, asks a guest or knows the time of day. [`crate::observe`] and the
//! program fill these types in; [`crate::plan`] reads them. They are serializable, so that a plan
//! can be kept beside what it was made from. All sizes are bytes.

use std::collections::BTreeMap;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The host and all guests that are known on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Situation {
    /// Seconds since the Unix epoch, by the host's clock: for people. Laws reckon with
    /// [`Self::uptime`].
    pub unix_seconds: u64,
    /// Time since the host booted, which no one sets back.
    pub uptime: Duration,
    /// The host.
    pub host: Host,
    /// The guests, by name, each once.
    pub guests: Vec<Guest>,
}

/// What the host has left.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Host {
    /// `MemTotal`.
    pub total_bytes: u64,
    /// `MemAvailable`: what new work could have without swapping.
    pub available_bytes: u64,
    /// Swap that is in use.
    pub swap_used_bytes: u64,
    /// Pressure stall information of memory; absent where the kernel gives none (`psi=0`).
    pub pressure: Option<Pressure>,
    /// The kernel's samepage merging; absent where the kernel has none.
    pub ksm: Option<Ksm>,
    /// The hugetlb pools, by page size.
    pub pools: Vec<Pool>,
    /// The merge domain whose guests the kernel may merge at the moment.
    pub merged_domain: Option<String>,
    /// Processes of no guest here whose pages the kernel could merge with those of a domain, for
    /// people; looked for only where somebody is to be merged.
    #[serde(default)]
    pub strangers: Vec<String>,
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
    /// 0 stopped, 1 running, 2 stopped and everything unmerged.
    pub run: u8,
    /// Pages that others share: what is kept.
    pub pages_shared: u64,
    /// Pages that share them: what is saved.
    pub pages_sharing: u64,
    /// Pages that were looked at and have no equal.
    pub pages_unshared: u64,
    /// Pages that change too fast. With `smart_scan` skipped pages count as such too.
    pub pages_volatile: u64,
    /// Pages that map the zero page.
    pub zero_pages: u64,
    /// Pages looked at since boot.
    pub pages_scanned: u64,
    /// Times that all mergeable memory was looked at.
    pub full_scans: u64,
    /// What merging saves less what its own records take. Signed.
    pub profit_bytes: i64,
    /// CPU time of ksmd since boot; absent when its process cannot be found.
    pub cpu: Option<Duration>,
}

/// One hugetlb pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Pool {
    /// The size of its pages.
    pub page_bytes: u64,
    /// Pages in the pool.
    pub pages: u64,
    /// Pages that nobody has.
    pub free_pages: u64,
    /// Free pages that are promised.
    pub reserved_pages: u64,
}

/// One guest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Guest {
    /// Its name: one guest's only, on this host ([`crate::foreign::name_apart`]).
    pub name: String,
    /// Who runs it.
    pub vmm: Vmm,
    /// The process that holds its memory.
    pub pid: u32,
    /// Its RAM as it was started with.
    pub memory_bytes: u64,
    /// What it costs the host.
    pub cost: Cost,
    /// What its RAM is made of.
    pub backing: Backing,
    /// Its balloon; absent when it has none.
    pub balloon: Option<Balloon>,
    /// The merge domain it belongs to; absent when its pages are its own.
    pub merge_domain: Option<String>,
    /// The domain whose guests were merged on this host when it came, so that its process lets none
    /// of its pages be merged for as long as it lives.
    #[serde(default)]
    pub merged_instead: Option<String>,
    /// Whether the kernel may merge its pages now.
    pub is_mergeable: bool,
    /// Whether it is to have all of its memory from its start.
    #[serde(default)]
    pub is_preallocated: bool,
    /// What of its RAM is worth to merge, when that was looked at.
    pub survey: Option<Survey>,
    /// Why nothing may be done to it now.
    pub hindrance: Option<Hindrance>,
    /// What its operator has written beside it.
    pub labels: BTreeMap<String, String>,
    /// Whose process it is; absent where that cannot be told.
    #[serde(default)]
    pub user: Option<User>,
}

/// A user of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct User {
    /// His number.
    pub uid: u32,
    /// His name, if the host has one for him.
    pub name: Option<String>,
}

impl User {
    /// Whether `text` is his name or his number.
    #[must_use]
    pub fn is_called(&self, text: &str) -> bool {
        self.name.as_deref() == Some(text) || self.uid.to_string() == text
    }
}

impl Guest {
    /// The name that it was started with. That of a guest of another program is the choice of the
    /// user who started it, and several guests of a host may have the same: [`Self::name`] is one
    /// guest's only.
    #[must_use]
    pub fn claimed_name(&self) -> &str {
        let apart = || self.name.strip_suffix(&format!("@{}", self.pid));
        match self.vmm.is_named_by_operator() {
            true => &self.name,
            false => apart().unwrap_or(&self.name),
        }
    }

    /// What `balloon`, which is its own, leaves it, in bytes: whatever is told, never more than its
    /// memory.
    #[must_use]
    pub(crate) fn has_bytes(&self, balloon: &Balloon) -> u64 {
        balloon.actual_bytes.min(self.memory_bytes)
    }

    /// A guest of which nothing more is known.
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
            labels: BTreeMap::new(),
            user: None,
        }
    }
}

/// Who runs a guest.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "kebab-case")]
pub enum Vmm {
    /// This program.
    Lighter,
    /// QEMU, with or without libvirt; asked through QMP.
    Qemu,
    /// Cloud Hypervisor; asked through its HTTP API.
    CloudHypervisor,
}

impl Vmm {
    /// Whether it merges, takes apart, drops and shares single chunks of a guest's memory when it
    /// is told to. With others the kernel may merge what they have marked at the start, and anybody
    /// may make huge pages.
    #[must_use]
    pub const fn takes_chunks(self) -> bool {
        matches!(self, Self::Lighter)
    }

    /// Whether a guest's name and labels are its operator's. Otherwise they are the choice of
    /// whoever started its process, and what is said of the name is not believed where that would
    /// give the guest something.
    #[must_use]
    pub const fn is_named_by_operator(self) -> bool {
        matches!(self, Self::Lighter)
    }
}

/// What a guest costs its host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cost {
    /// RSS.
    pub resident_bytes: u64,
    /// PSS and pages of the hugetlb pool: the sum over all guests is what they cost together.
    pub proportional_bytes: u64,
    /// The part that transparent huge pages hold.
    pub huge_bytes: u64,
    /// Merged by the kernel; absent where it does not tell.
    pub merged_bytes: Option<u64>,
    /// What merging this process saves less what the records of it take; signed, and over-counted
    /// between processes.
    pub merge_profit_bytes: Option<i64>,
    /// Swapped out.
    pub swapped_bytes: u64,
}

/// What a guest's RAM is made of: what can be done with it depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Backing {
    /// Private anonymous memory: the kernel can merge it and make huge pages of it.
    Anonymous,
    /// A copy-on-write view of a template.
    Template,
    /// Pages of the hugetlb pool: never merged; a balloon of 4 KiB pages gives nothing back.
    HugePool,
    /// Shared memory (`memfd`, `MAP_SHARED`): never merged.
    Shared,
}

/// A guest's balloon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Balloon {
    /// Whether a driver serves it.
    pub has_driver: bool,
    /// What the guest is asked to keep.
    pub target_bytes: u64,
    /// Whether steps have set that, and not an operator; absent where the guest's monitor does not
    /// remember it, and only [`crate::ledger::Ledger`] may know.
    #[serde(default)]
    pub is_set_by_steps: Option<bool>,
    /// What it keeps: its RAM less what is in the balloon.
    pub actual_bytes: u64,
    /// Whether the guest reports pages that it frees, so that they come back without being asked
    /// for.
    pub reports_free_pages: bool,
    /// Reported and given back to the host since it was started; zero where nobody counts it.
    pub reported_bytes_total: u64,
    /// What the guest says of its memory. Not to be trusted: a guest that lies may only hurt
    /// itself.
    pub statistics: Option<Statistics>,
}

/// What a guest's balloon driver says. Every value may be missing. Counters count since the guest
/// booted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Statistics {
    /// How old these are.
    pub age: Duration,
    /// Memory that the guest sees in all (`MEMTOT`).
    pub total_bytes: Option<u64>,
    /// Memory that nobody uses (`MEMFREE`).
    pub free_bytes: Option<u64>,
    /// What new work in the guest could have without swapping (`AVAIL`).
    pub available_bytes: Option<u64>,
    /// Page cache (`CACHES`).
    pub caches_bytes: Option<u64>,
    /// Swapped in.
    pub swap_in_bytes: Option<u64>,
    /// Swapped out.
    pub swap_out_bytes: Option<u64>,
    /// Page faults that waited for a disk.
    pub major_faults: Option<u64>,
    /// Processes killed for want of memory (Linux 6.12).
    pub oom_kills: Option<u64>,
    /// Allocations that waited for memory (Linux 6.12).
    pub allocation_stalls: Option<u64>,
    /// Memory that was reclaimed while somebody waited for it (Linux 6.12).
    pub direct_reclaim_bytes: Option<u64>,
}

/// What a look at samples of a guest's RAM found, in chunks of 2 MiB.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Survey {
    /// How old it is.
    pub age: Duration,
    /// Share of the RAM that was looked at, 0 to 1.
    pub sampled: f64,
    /// How many pages share one content, on the average over the duplicates: 2 or more, or 0 when
    /// that is not known. Of `n` equal pages, merging saves `n - 1`.
    #[serde(default)]
    pub copies: f64,
    /// The chunks that were looked at, in order of their address.
    pub chunks: Vec<Chunk>,
}

impl Survey {
    /// What was found longer ago decides nothing.
    const AGE_MAX: Duration = Duration::from_secs(1800);

    /// Whether it may decide anything.
    #[must_use]
    pub fn is_recent(&self) -> bool {
        self.age <= Self::AGE_MAX
    }
}

/// One chunk of 2 MiB of a guest's RAM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Chunk {
    /// Guest physical address over 2 MiB.
    pub index: u32,
    /// Pages of 4 KiB that are there (0 to 512).
    pub present_pages: u16,
    /// Of them, pages of zeroes.
    pub zero_pages: u16,
    /// Of them, pages with an equal elsewhere in the merge domain, the zeroes not among them.
    pub duplicate_pages: u16,
    /// Private pages that equal what the guest's template has in the same place.
    #[serde(default)]
    pub template_pages: u16,
    /// Pages written between the two looks.
    pub written_pages: u16,
    /// Whether a huge page holds it.
    pub is_huge: bool,
    /// Whether the kernel may merge it.
    pub is_mergeable: bool,
    /// Whether merging has put one page of the host at several places of it, which cannot be taken
    /// apart from outside: the kernel makes no huge page of it (`MADV_COLLAPSE` ends with `EAGAIN`,
    /// however often it is asked).
    #[serde(default)]
    pub has_twins: bool,
}

/// Why a guest is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Hindrance {
    /// It is on its way to another host, or arriving.
    Migrating,
    /// Its vCPUs are stopped: its balloon does not move.
    Paused,
    /// It is being written to a file.
    Saving,
    /// Its process does not answer.
    Unreachable,
    /// It is another program's, and the operator wants such guests to be looked at only.
    Watched,
}
