//! The numbers of a policy, what they mean and where they come from. Their values are in
//! `numbers.rs`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::activity::Activity;
use super::actuator::Actuators;
use super::goal::Goal;
use super::preset::Preset;
use super::rule::GuestRule;
use crate::labels::Selector;

/// What the operator wants.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// What it begins from.
    pub preset: Preset,
    /// What is to be reached as long as no schedule says otherwise.
    pub goal: Goal,
    /// What may be used at all.
    pub actuators: Actuators,
    /// When the host is short.
    pub host: HostPolicy,
    /// How balloons move.
    pub balloon: BalloonPolicy,
    /// What counts as pain of a guest.
    pub pain: PainPolicy,
    /// What is merged.
    pub merge: MergePolicy,
    /// What is made huge.
    pub huge: HugePolicy,
    /// The hugetlb pools.
    pub pools: PoolPolicy,
    /// Whom it is for, a schedule's `guests`: nothing is taken from others, and their pages stay as
    /// they are. Its file has no such key.
    #[serde(default, skip_serializing_if = "Selector::is_everyone")]
    pub scope: Selector,
    /// Limits of single guests. Of two that match a guest, the later says what both say.
    pub guests: Vec<GuestRule>,
}

/// `[host]`: when the host is short. Shares are of `MemTotal`, and of time for the pressure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HostPolicy {
    /// `amber-below`: with less available than this, balloons shrink whatever the goal says. MoM
    /// and ksmtuned act below 20 %.
    pub amber_below: f64,
    /// With less than this, steps are longer and reserves are taken too. MoM calls 5 %
    /// critical.
    pub red_below: f64,
    /// Red too when *everything* waited for memory this much of the last 10 seconds
    /// (PSI full).
    pub red_stall: f64,
    /// How far beyond its bound the host has to be for a level to end.
    pub hysteresis: f64,
    /// This share of what merging saves stays available, since guests can write to
    /// merged pages at any moment.
    pub cow_reserve: f64,
}

/// `[balloon]`: how balloons move.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BalloonPolicy {
    /// `reserve`: what a guest gets on top of its demand, as a share of it. Hyper-V's buffer is 20
    /// %; peers have 15 to 25 %.
    pub reserve: f64,
    /// `reserve-min`: and no less than this.
    pub reserve_min_bytes: u64,
    /// `floor`: no guest gets less than this share of its maximum. ESX takes 65 % at most; without
    /// a floor an idle guest shrinks for ever.
    pub floor: f64,
    /// `step`: shrink by at most this share of what the guest has in one round. MoM takes 5 %.
    pub step: f64,
    /// And by no more than this. Proxmox takes 100 MiB in 10 s; a balloon of 4 KiB
    /// pages moves about 1 GiB/s.
    pub step_max_bytes: u64,
    /// By how much both steps are longer while the host is red.
    pub red_factor: u32,
    /// `dead-band-min`: smaller differences than this are left alone, and than a hundredth of the
    /// guest's memory, or than the 1 MiB in which nobody sees a balloon move.
    pub dead_band_min_bytes: u64,
    /// How long the slow average of the demand remembers.
    pub slow: Duration,
    /// How long a guest keeps everything after pain; doubled, up to 8 times, when it hurts again
    /// within an hour.
    pub cooldown: Duration,
    /// `timeout`: a balloon that should inflate and has not moved for so long is given up, and a
    /// guest that has said nothing for so long may be unable to. Three times the 10 s between two
    /// inspections.
    pub timeout: Duration,
}

/// `[pain]`: more than this is pain of a guest. An OOM kill always is, and so is silence.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PainPolicy {
    /// Allocations each second that waited for memory.
    pub allocation_stalls_per_s: f64,
    /// Bytes each second that were reclaimed while somebody waited.
    pub direct_reclaim_bytes_per_s: u64,
    /// `major-faults`: page faults each second that waited for a disk.
    pub major_faults_per_s: f64,
    /// Bytes each second that were swapped in or out.
    pub swapping_bytes_per_s: u64,
}

/// `[merge]`: what is merged. Shares of pages are of the 512 in a chunk of 2 MiB.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MergePolicy {
    /// A huge page is given up for at least this share of it. Measured: for one page
    /// of 512 all huge pages go, and 14 MiB of each GiB are lost on top; for half of them 491 MiB
    /// of 1 GiB come back.
    pub split_share: f64,
    /// A chunk without a huge page is merged from this share on. The kernel's records
    /// take 64 bytes a page, 1.6 %.
    pub join_share: f64,
    /// And is left alone again below this one.
    pub leave_share: f64,
    /// A chunk is cold when no more than this share of its pages was written
    /// between two looks.
    pub cold_written: f64,
    /// `activity`: how it is told what was written.
    pub activity: Activity,
    /// `cpu`: ksmd's share of one core while a window is open.
    pub cpu: f64,
    /// `cpu-time`: and its CPU time in a run, at most. No more is marked than it pays for.
    pub cpu_time: Duration,
    /// `pages-per-second`: and what it looks at, at most. The kernel's default is 5,000; ksmtuned
    /// and MoM go up to 125,000.
    pub pages_per_s: u64,
    /// `window`: how long it may last.
    pub window: Duration,
    /// `pause`: how long nothing is scanned after a window.
    pub pause: Duration,
    /// `gain-min`: a guest's merging that brings less is not worth a call.
    pub gain_min_bytes: u64,
}

/// `[huge]`: what is made huge.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HugePolicy {
    /// `present`: a chunk with fewer of its pages present is not filled up. Ingens needs 90 %:
    /// below it memory bloats.
    pub present: f64,
    /// So many for each guest and round, for each is 2 MiB to copy.
    pub chunks_max: u32,
}

/// `[pools]`: the hugetlb pools. Only sized where `actuators` has `pool`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolPolicy {
    /// `free-min`: a pool with less that is free and unpromised grows, while the host is green.
    pub free_min_bytes: u64,
    /// `free-max`: what is free beyond this goes back when the host wants memory.
    pub free_max_bytes: u64,
}
