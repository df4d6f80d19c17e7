//! The numbers of a policy, with their meanings and sources. Their values are in `numbers.rs`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::activity::Activity;
use super::actuator::Actuators;
use super::goal::Goal;
use super::preset::Preset;
use super::rule::GuestRule;
use crate::labels::Selector;

/// The operator's policy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// The preset that the policy starts from.
    pub preset: Preset,
    /// The goal, unless a schedule has its own.
    pub goal: Goal,
    /// The actuators that may be used at all.
    pub actuators: Actuators,
    /// When the host is short of memory.
    pub host: HostPolicy,
    /// How balloons move.
    pub balloon: BalloonPolicy,
    /// What counts as memory pressure in a guest.
    pub pressure: PressurePolicy,
    /// What is merged, and how much CPU time that may use.
    pub merge: MergePolicy,
    /// Which chunks become huge pages.
    pub huge: HugePolicy,
    /// The sizes of the hugetlb pools.
    pub pools: PoolPolicy,
    /// The guests that this applies to, from a schedule's `guests`: nothing is taken from other
    /// guests, and their pages stay as they are. The policy file has no such key.
    #[serde(default, skip_serializing_if = "Selector::is_everyone")]
    pub scope: Selector,
    /// Limits of single guests. If two rules that match a guest set the same field, the later one
    /// wins. A rule that may only restrict the guest ([`GuestRule::user`]) never loosens an earlier
    /// one.
    pub guests: Vec<GuestRule>,
}

/// `[host]`: when the host is short of memory. Shares are of `MemTotal`; for pressure, of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HostPolicy {
    /// `amber-below`: with less available than this share, balloons inflate whatever the goal says.
    /// MoM and ksmtuned act below 20 %.
    pub amber_below: f64,
    /// Below this share, steps are larger and reserves are taken too. MoM calls 5 % critical.
    pub red_below: f64,
    /// The host is red too if *all* tasks waited for memory for this share of the last 10 seconds
    /// (PSI full).
    pub red_stall: f64,
    /// How far beyond its bound the host must be before a level ends.
    pub hysteresis: f64,
    /// This share of what merging saves stays available, since guests can write to merged pages at
    /// any time.
    pub cow_reserve: f64,
}

/// `[balloon]`: how balloons move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BalloonPolicy {
    /// `reserve`: memory a guest gets on top of its demand, as a share of the demand. Hyper-V's
    /// buffer is 20 %; other systems have 15 to 25 %.
    pub reserve: f64,
    /// `reserve-min`: the smallest reserve, in bytes.
    pub reserve_min_bytes: u64,
    /// `floor`: no guest gets less than this share of its maximum. ESX takes 65 % at most; without
    /// a floor an idle guest would shrink for ever.
    pub floor: f64,
    /// `step`: a guest shrinks by at most this share of its current size per round. MoM takes 5 %.
    pub step: f64,
    /// The largest step, in bytes. Proxmox takes 100 MiB in 10 s; a balloon of 4 KiB pages moves
    /// about 1 GiB/s.
    pub step_max_bytes: u64,
    /// The factor for both step limits while the host is red.
    pub red_factor: u32,
    /// `dead-band-min`: a balloon does not move for differences below this, below 1 % of the
    /// guest's memory, or below 1 MiB, where its movement could not be detected.
    pub dead_band_min_bytes: u64,
    /// The time constant of the slow average of the demand.
    pub slow: Duration,
    /// How long nothing is taken from a guest after pressure; doubled each time, up to a factor of
    /// 8, if it is under pressure again within an hour.
    pub cooldown: Duration,
    /// `timeout`: lighter gives up on a balloon that should inflate and has not moved for this
    /// long. A guest that has sent no statistics for this long counts as under pressure, because it
    /// may be unable to. Three times the 10 s between two inspections.
    pub timeout: Duration,
}

/// `[pressure]`: a guest above any of these limits is under pressure. An OOM kill always counts,
/// and so does silence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PressurePolicy {
    /// Allocations per second that waited for memory.
    pub allocation_stalls_per_s: f64,
    /// Bytes per second that were reclaimed while an allocation waited.
    pub direct_reclaim_bytes_per_s: u64,
    /// `major-faults`: page faults per second that waited for a disk.
    pub major_faults_per_s: f64,
    /// Bytes per second that were swapped in or out.
    pub swapping_bytes_per_s: u64,
}

/// `[merge]`: what is merged. Shares of pages are of the 512 in a chunk of 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MergePolicy {
    /// A huge page is split if at least this share of it can be merged. Measured: for one page of
    /// 512, all huge pages are lost, and 14 MiB of each GiB on top; for half of the pages, 491 MiB
    /// of 1 GiB are saved.
    pub split_share: f64,
    /// A chunk without a huge page is merged from this share on. The kernel's records take 64 bytes
    /// per page, 1.6 %.
    pub join_share: f64,
    /// Merging of a chunk ends again below this share.
    pub leave_share: f64,
    /// A chunk is cold if at most this share of its pages was written between two scans.
    pub cold_written: f64,
    /// `activity`: how written pages are detected.
    pub activity: Activity,
    /// `cpu`: ksmd's share of one core while a window is open.
    pub cpu: f64,
    /// `cpu-time`: ksmd's CPU time in one run, at most. No more chunks are marked than it can scan.
    pub cpu_time: Duration,
    /// `pages-per-second`: pages that ksmd scans per second, at most. The kernel's default is
    /// 5,000; ksmtuned and MoM go up to 125,000.
    pub pages_per_s: u64,
    /// `window`: how long a window may last.
    pub window: Duration,
    /// `pause`: how long nothing is scanned after a window.
    pub pause: Duration,
    /// `gain-min`: merging a guest is skipped if it would gain less than this, in bytes.
    pub gain_min_bytes: u64,
}

/// `[huge]`: which chunks become huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HugePolicy {
    /// `present`: a chunk with a smaller share of its pages present does not become a huge page.
    /// Ingens needs 90 %: below that, memory bloats.
    pub present: f64,
    /// Chunks per guest and round, at most; each one means copying 2 MiB.
    pub chunks_max: u32,
}

/// `[pools]`: the hugetlb pools. They are resized only if `actuators` has `pool`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolPolicy {
    /// `free-min`: a pool with fewer free, unreserved bytes than this grows while the host is
    /// green.
    pub free_min_bytes: u64,
    /// `free-max`: free bytes beyond this return to the host when it needs memory.
    pub free_max_bytes: u64,
}
