//! What a scrape shows of memory optimization: plain values that the program hands over.

use std::time::{Duration, SystemTime};

use super::labels::{Actuator, Finding, Hindrance, Level, MissedReason, PageSize, Vmm};

/// What memory optimization has seen and is about to do.
#[derive(Debug, Clone, Default)]
pub struct DensitySample {
    /// The last look at the host and all guests; absent before the first.
    pub look: Option<LookSample>,
    /// When that was, also when it is too old to be shown.
    pub looked: Option<SystemTime>,
    /// Whether a run is under way.
    pub is_running: bool,
    /// When the last run ended well.
    pub last_success: Option<SystemTime>,
    /// Whether lighter.toml is wrong.
    pub are_settings_wrong: bool,
    /// What is scheduled.
    pub schedules: Vec<ScheduleSample>,
}

/// One schedule.
#[derive(Debug, Clone, Default)]
pub struct ScheduleSample {
    /// Its name.
    pub name: String,
    /// When it is due next; absent for one that never is.
    pub next: Option<SystemTime>,
    /// How late its last run began; absent before it.
    pub lag: Option<Duration>,
    /// Runs that were due and begun.
    pub runs: u64,
    /// Times at which it did not run.
    pub missed: Vec<(MissedReason, u64)>,
}

/// One look.
#[derive(Debug, Clone)]
pub struct LookSample {
    /// The host.
    pub host: DensityHost,
    /// The guests.
    pub guests: Vec<DensityGuest>,
}

/// The host.
#[derive(Debug, Clone)]
pub struct DensityHost {
    /// How short of memory it is.
    pub level: Level,
    /// Its memory, in bytes.
    pub total_bytes: u64,
    /// Swap in use, in bytes.
    pub swap_used_bytes: u64,
    /// Pressure stall information; absent where the kernel gives none.
    pub pressure: Option<PressureSample>,
    /// Samepage merging; absent where the kernel has none.
    pub ksm: Option<KsmSample>,
    /// The hugetlb pools.
    pub pools: Vec<PoolSample>,
    /// The actuators of the host itself that are benched.
    pub benched: Vec<Actuator>,
}

/// Shares of the last ten seconds, 0 to 1.
#[derive(Debug, Clone, Copy)]
pub struct PressureSample {
    /// Something waited for memory.
    pub some: f64,
    /// Everything waited for memory.
    pub full: f64,
}

/// One hugetlb pool, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct PoolSample {
    /// The size of its pages.
    pub page_size: PageSize,
    /// What is in it.
    pub bytes: u64,
    /// What of it nobody has.
    pub free_bytes: u64,
    /// What of that is promised.
    pub reserved_bytes: u64,
}

/// What the kernel says of samepage merging. Counters count since the host booted.
#[derive(Debug, Clone, Copy, Default)]
pub struct KsmSample {
    /// Whether ksmd looks for equal pages.
    pub is_running: bool,
    /// Pages that are kept.
    pub shared_pages: u64,
    /// Pages that are saved.
    pub sharing_pages: u64,
    /// Pages without an equal.
    pub unshared_pages: u64,
    /// Pages that change too fast.
    pub volatile_pages: u64,
    /// Pages that map the page of zeros.
    pub zero_pages: u64,
    /// Pages looked at.
    pub scanned_pages: u64,
    /// Times that everything was looked at.
    pub full_scans: u64,
    /// What is saved less what records take. Signed.
    pub profit_bytes: i64,
    /// CPU time of ksmd; absent when its process cannot be found.
    pub cpu: Option<Duration>,
}

/// One guest, of whichever program. Sizes are bytes.
#[derive(Debug, Clone)]
pub struct DensityGuest {
    /// Its name.
    pub name: String,
    /// Who runs it.
    pub vmm: Vmm,
    /// Its RAM.
    pub memory_bytes: u64,
    /// RSS.
    pub resident_bytes: u64,
    /// PSS and pages of the pool.
    pub cost_bytes: u64,
    /// In transparent huge pages.
    pub huge_bytes: u64,
    /// Merged by the kernel; absent where it does not tell.
    pub merged_bytes: Option<u64>,
    /// What merging it saves. Signed; absent where the kernel does not tell.
    pub merge_profit_bytes: Option<i64>,
    /// Swapped out by the host.
    pub swapped_bytes: u64,
    /// What it is taken to need; absent while it has not said.
    pub demand_bytes: Option<u64>,
    /// Whether it keeps everything for having shown a want of memory.
    pub is_spared: bool,
    /// Why nothing may be done to it now.
    pub hindrance: Option<Hindrance>,
    /// The actuators that are not used for it.
    pub benched: Vec<Actuator>,
    /// What a look at its pages found; absent without one.
    pub survey: Option<SurveySample>,
    /// Its balloon; absent when it has none.
    pub balloon: Option<BalloonSample>,
}

/// What a look at a guest's pages found.
#[derive(Debug, Clone)]
pub struct SurveySample {
    /// How old that is.
    pub age: Duration,
    /// Bytes of each kind.
    pub found: Vec<(Finding, u64)>,
}

/// A guest's balloon.
#[derive(Debug, Clone, Default)]
pub struct BalloonSample {
    /// Whether a driver serves it.
    pub has_driver: bool,
    /// What the guest is asked to keep, in bytes.
    pub target_bytes: u64,
    /// What it keeps, in bytes.
    pub actual_bytes: u64,
    /// Whether it should inflate and does not move.
    pub is_stuck: bool,
    /// What it has reported as free since it was started, in bytes.
    pub reported_bytes_total: u64,
    /// What its driver says; absent while it says nothing.
    pub statistics: Option<StatisticsSample>,
}

/// What a balloon's driver says. Every value may be missing; counters count since the guest booted.
#[derive(Debug, Clone, Copy, Default)]
pub struct StatisticsSample {
    /// How old they were at the look.
    pub age: Duration,
    /// Memory that the guest sees, in bytes.
    pub total_bytes: Option<u64>,
    /// Memory that nobody uses, in bytes.
    pub free_bytes: Option<u64>,
    /// What new work could have, in bytes.
    pub available_bytes: Option<u64>,
    /// Page cache, in bytes.
    pub cache_bytes: Option<u64>,
    /// Swapped in, in bytes.
    pub swap_in_bytes: Option<u64>,
    /// Swapped out, in bytes.
    pub swap_out_bytes: Option<u64>,
    /// Page faults that waited for a disk.
    pub major_faults: Option<u64>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Allocations that waited for memory.
    pub allocation_stalls: Option<u64>,
    /// Memory reclaimed while somebody waited, in bytes.
    pub direct_reclaim_bytes: Option<u64>,
}
