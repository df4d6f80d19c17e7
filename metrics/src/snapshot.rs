//! What one scrape sees: plain values that the program gathers, with no Prometheus in them.

use std::time::{Duration, SystemTime};

use migrate::Phase;
use migrate::progress::Role;

use crate::density::DensitySample;
use crate::labels::GuestState;

/// Everything on the page except what [`Counted`](crate::Counted) has accumulated.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// How long it took to gather this.
    pub scrape_duration: Duration,
    /// The guests that answered.
    pub guests: Vec<GuestSample>,
    /// The last migrations of guests that have left this host a short while ago.
    pub departed: Vec<DepartedSample>,
    /// How many guests live but did not answer in time.
    pub guests_unreachable: u64,
    /// Migrations whose outcome is not settled.
    pub migrations_in_doubt: u64,
    /// The host's memory; absent when it could not be read.
    pub host: Option<HostMemory>,
    /// What memory optimization has seen and is about to do.
    pub density: DensitySample,
}

/// Memory as admission counts it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// What the kernel can give without swapping.
    pub available_bytes: u64,
    /// What is left to the host.
    pub reserved_bytes: u64,
    /// What admitted guests have been promised and do not occupy yet.
    pub promised_bytes: u64,
}

/// One guest.
#[derive(Debug, Clone)]
pub struct GuestSample {
    /// Its name on this host.
    pub name: String,
    /// The identity that it keeps.
    pub uuid: String,
    /// What it is doing.
    pub state: GuestState,
    /// When its process started.
    pub started: SystemTime,
    /// The memory that it was given, in bytes.
    pub memory_bytes: u64,
    /// The vCPUs that it was given.
    pub vcpus: u64,
    /// RSS of its process in bytes, when it could be read.
    pub resident_bytes: Option<u64>,
    /// PSS of its process in bytes, when it could be read.
    pub proportional_bytes: Option<u64>,
    /// The longest stall that the guest has measured, when it reports one.
    pub longest_stall: Option<Duration>,
    /// Its network devices.
    pub networks: Vec<NetworkSample>,
    /// The migration that it is in, or the last one that this process has seen.
    pub migration: Option<MigrationSample>,
}

/// A network device of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSample {
    /// Its tap on this host.
    pub device: String,
    /// What the guest received.
    pub received: NetworkFlow,
    /// What it sent.
    pub transmitted: NetworkFlow,
}

/// Frames in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetworkFlow {
    /// Bytes of frames that got through.
    pub bytes: u64,
    /// Frames that got through.
    pub packets: u64,
    /// Frames that did not.
    pub drops: u64,
}

/// The migration that took a guest away. Its process has ended with it; without this, nobody would
/// ever see how it went.
#[derive(Debug, Clone)]
pub struct DepartedSample {
    /// The name that the guest had on this host.
    pub guest: String,
    /// How it went.
    pub migration: MigrationSample,
}

/// One migration of a guest, under way or just over. Absent values give no series.
#[derive(Debug, Clone)]
pub struct MigrationSample {
    /// Away from this host, or to it.
    pub direction: Role,
    /// The phase that it is in; absent when it is over.
    pub phase: Option<Phase>,
    /// Time spent in each phase that it has been in.
    pub phase_durations: Vec<(Phase, Duration)>,
    /// Time since it began, or its total.
    pub duration: Duration,
    /// Rounds over memory, the one under way included; only the source counts them.
    pub rounds: Option<u64>,
    /// Pages sent as they are, with their bytes.
    pub raw: Traffic,
    /// Pages sent compressed, with their bytes on the wire.
    pub lz4: Traffic,
    /// Pages sent as a bit each.
    pub zero_pages: u64,
    /// Pages not sent because the guest said that they are free; only the source counts them.
    pub hinted_pages: Option<u64>,
    /// Guest memory still to be sent in this round, in bytes.
    pub remaining_bytes: Option<u64>,
    /// Content of disks still to be sent in this round, in bytes; absent when none go along.
    pub disk_remaining_bytes: Option<u64>,
    /// Bytes on the wire for disks.
    pub disk_transferred_bytes: u64,
    /// Memory sent per second before compression, in bytes; zero pages do not count.
    pub transfer_rate: Option<f64>,
    /// Rate of dirtying, in bytes per second.
    pub dirty_rate: Option<f64>,
    /// How long the guest would stand still if it were switched over now.
    pub expected_downtime: Option<Duration>,
    /// How long it stood still, as this side saw it.
    pub downtime: Option<Duration>,
    /// How long it stood still, as the guest saw it.
    pub guest_downtime: Option<Duration>,
}

/// Pages and the bytes that carried them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Pages of 4096 bytes.
    pub pages: u64,
    /// Bytes of page data on the wire.
    pub bytes: u64,
}
