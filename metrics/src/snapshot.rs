//! The data of one scrape: plain values that the program gathers, independent of Prometheus.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use migrate::Phase;
use migrate::decisions::DecisionKind;
use migrate::progress::Role;
use migrate::waits::PageWaits;

use crate::density::DensitySample;
use crate::labels::GuestState;

/// Everything on the page except what [`Counted`](crate::Counted) has accumulated.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// How long it took to gather this snapshot.
    pub scrape_duration: Duration,
    /// The guests that answered.
    pub guests: Vec<GuestSample>,
    /// The last migrations of guests that left this host recently.
    pub departed: Vec<DepartedSample>,
    /// The number of guests that are alive but did not answer in time.
    pub guests_unreachable: u64,
    /// Migrations whose outcome is not settled.
    pub migrations_in_doubt: u64,
    /// When the certificate of the host expires, if it is known.
    pub certificate_expiry: Option<SystemTime>,
    /// The host's memory; absent if it could not be read.
    pub host: Option<HostMemory>,
    /// The state of memory optimization.
    pub density: DensitySample,
}

/// The host's memory as admission counts it, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostMemory {
    /// Memory that the kernel can provide without swapping.
    pub available_bytes: u64,
    /// Memory that admission leaves to the host.
    pub reserved_bytes: u64,
    /// Memory promised to admitted guests that they do not occupy yet.
    pub promised_bytes: u64,
}

/// One guest of this node.
#[derive(Debug, Clone)]
pub struct GuestSample {
    /// The guest's name on this host.
    pub name: String,
    /// The guest's identity, the same on every host.
    pub uuid: String,
    /// The guest's state.
    pub state: GuestState,
    /// When the guest's process started.
    pub started: SystemTime,
    /// The guest's memory, in bytes.
    pub memory_bytes: u64,
    /// The number of the guest's vCPUs.
    pub vcpus: u64,
    /// RSS of the guest's process in bytes, if it could be read.
    pub resident_bytes: Option<u64>,
    /// PSS of the guest's process in bytes, if it could be read.
    pub proportional_bytes: Option<u64>,
    /// The longest stall that the guest has measured, if it reports one.
    pub longest_stall: Option<Duration>,
    /// The guest's network devices.
    pub networks: Vec<NetworkSample>,
    /// The current migration, or the last one that this process has seen.
    pub migration: Option<MigrationSample>,
}

/// A network device of a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkSample {
    /// The device's tap on this host.
    pub device: String,
    /// Frames that the guest received.
    pub received: NetworkFlow,
    /// Frames that the guest sent.
    pub transmitted: NetworkFlow,
}

/// Frames in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetworkFlow {
    /// Bytes of the delivered frames.
    pub bytes: u64,
    /// Frames that were delivered.
    pub packets: u64,
    /// Frames that were dropped.
    pub drops: u64,
}

/// The migration that took a guest away. The guest's process ended with it, so without this its
/// result would never be visible.
#[derive(Debug, Clone)]
pub struct DepartedSample {
    /// The name that the guest had on this host.
    pub guest: String,
    /// The migration's result.
    pub migration: MigrationSample,
}

/// One migration of a guest, current or recently ended. Absent values give no series.
#[derive(Debug, Clone)]
pub struct MigrationSample {
    /// Away from this host, or to it.
    pub direction: Role,
    /// The current phase; absent once the migration is over.
    pub phase: Option<Phase>,
    /// Time spent in each phase so far.
    pub phase_durations: Vec<(Phase, Duration)>,
    /// Time since the migration began, or its total.
    pub duration: Duration,
    /// Rounds over memory and copied disks, including the current one; only the source counts them.
    pub rounds: Option<u64>,
    /// Pages sent uncompressed, with their bytes.
    pub raw: Traffic,
    /// Pages sent compressed, with their bytes on the wire.
    pub lz4: Traffic,
    /// Pages sent as one bit each.
    pub zero_pages: u64,
    /// Pages not sent because the guest reported them free; only the source counts them.
    pub hinted_pages: Option<u64>,
    /// Links in use and links that are lost; absent unless several are used at once.
    pub links: Option<(u64, u64)>,
    /// Guest memory still to be sent in this round, in bytes.
    pub remaining_bytes: Option<u64>,
    /// Disk content still to be sent in this round, in bytes; absent if no disks are copied.
    pub disk_remaining_bytes: Option<u64>,
    /// Bytes on the wire for disks.
    pub disk_transferred_bytes: u64,
    /// Memory and disks sent per second before compression, in bytes; zero pages do not count.
    pub transfer_rate: Option<f64>,
    /// The dirty rate of memory and copied disks, in bytes per second.
    pub dirty_rate: Option<f64>,
    /// The expected downtime if the guest were switched over now.
    pub expected_downtime: Option<Duration>,
    /// Largest share of the time, 0 to 1, that a vCPU of the guest is made to rest.
    pub throttle: Option<f64>,
    /// How many decisions of each kind there were; only the source makes any.
    pub decisions: Option<BTreeMap<DecisionKind, u64>>,
    /// The guest's downtime, as measured by this host.
    pub downtime: Option<Duration>,
    /// The guest's downtime, as measured by the guest.
    pub guest_downtime: Option<Duration>,
    /// How long the guest waits for pages that follow it; only its destination measures that.
    pub page_waits: Option<PageWaits>,
}

/// Pages, and the bytes that carried them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Traffic {
    /// Pages of 4096 bytes.
    pub pages: u64,
    /// Bytes of page data on the wire.
    pub bytes: u64,
}
