//! The progress of a migration, for display, polling and metrics.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::AddAssign;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::decisions::{DecidedAt, DecisionKind};
use crate::phase::{Phase, PhaseTime};
use crate::protocol::MigrationId;
use crate::stall::OnStall;
use crate::waits::PageWaits;

/// The side of a migration that reports.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The side that the guest leaves.
    Source,
    /// The side that receives the guest.
    Destination,
}

impl Role {
    /// Returns the name of the role.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// Data sent (or received) over the data streams since the migration began. Pages count once for
/// each time they were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Transfer {
    /// Bytes of frames, headers included, before encryption.
    pub wire_bytes: u64,
    /// Number of frames.
    pub frames: u64,
    /// Zero pages of memory.
    pub zero_pages: u64,
    /// Pages of memory sent uncompressed.
    pub raw_pages: u64,
    /// Pages of memory sent compressed.
    pub lz4_pages: u64,
    /// Bytes on the wire for the compressed pages.
    pub lz4_bytes: u64,
    /// Pages of disks that had content, compressed or not. Of the fields above, they count only in
    /// `wire_bytes` and `frames`.
    #[serde(default)]
    pub disk_pages: u64,
    /// Zero pages of disks, including those that were not even sent.
    #[serde(default)]
    pub disk_zero_pages: u64,
    /// Bytes on the wire for disks, headers included: a part of `wire_bytes`.
    #[serde(default)]
    pub disk_wire_bytes: u64,
    /// Pages of memory that were not sent because the guest reported them free and has not written
    /// them since; they count in none of the fields above. Only the source counts them.
    #[serde(default)]
    pub hinted_pages: u64,
}

impl AddAssign for Transfer {
    fn add_assign(&mut self, other: Self) {
        self.wire_bytes += other.wire_bytes;
        self.frames += other.frames;
        self.zero_pages += other.zero_pages;
        self.raw_pages += other.raw_pages;
        self.lz4_pages += other.lz4_pages;
        self.lz4_bytes += other.lz4_bytes;
        self.disk_pages += other.disk_pages;
        self.disk_zero_pages += other.disk_zero_pages;
        self.disk_wire_bytes += other.disk_wire_bytes;
        self.hinted_pages += other.hinted_pages;
    }
}

impl Transfer {
    /// Returns the pages of all encodings, of memory and of disks.
    pub const fn pages(&self) -> u64 {
        self.all_zero_pages() + self.content_pages()
    }

    /// Returns the pages with content, of memory and of disks.
    pub const fn content_pages(&self) -> u64 {
        self.raw_pages + self.lz4_pages + self.disk_pages
    }

    /// Returns the zero pages, of memory and of disks.
    pub const fn all_zero_pages(&self) -> u64 {
        self.zero_pages + self.disk_zero_pages
    }

    /// Returns the pages of disks, zero or not.
    pub const fn all_disk_pages(&self) -> u64 {
        self.disk_pages + self.disk_zero_pages
    }

    /// Returns the same traffic, counted for a disk instead of memory.
    #[must_use]
    pub(crate) const fn of_disk(self) -> Self {
        Self {
            wire_bytes: self.wire_bytes,
            frames: self.frames,
            zero_pages: 0,
            raw_pages: 0,
            lz4_pages: 0,
            lz4_bytes: 0,
            disk_pages: self.content_pages(),
            disk_zero_pages: self.all_zero_pages(),
            disk_wire_bytes: self.wire_bytes,
            hinted_pages: 0,
        }
    }
}

/// One of several links that a migration uses at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LinkProgress {
    /// Address of the destination on this link.
    pub address: IpAddr,
    /// Bytes of frames handed to this link, before encryption. What another link had to repeat
    /// counts on both.
    pub wire_bytes: u64,
    /// Why the link is not used any more, or could not be used; none for one that works.
    #[serde(default)]
    pub lost: Option<String>,
}

/// A snapshot of a running migration. Base units: seconds, bytes, pages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Progress {
    /// The migration.
    pub migration: MigrationId,
    /// The side that reports.
    pub role: Role,
    /// The current phase.
    pub phase: Phase,
    /// How long each phase has lasted so far, in their order; the last one is still under way.
    #[serde(default)]
    pub phases: Vec<PhaseTime>,
    /// Time since the migration began.
    pub elapsed_seconds: f64,
    /// Number of the current round; 0 before the first.
    pub round: u32,
    /// Size of guest memory.
    pub memory_bytes: u64,
    /// Dirty memory still to be sent, as last counted.
    pub remaining_bytes: u64,
    /// Size of the disks that are copied.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Disk content still to be sent, as last counted.
    #[serde(default)]
    pub disk_remaining_bytes: u64,
    /// Data transferred so far.
    pub transfer: Transfer,
    /// The links, if there are several. Only the source reports them.
    #[serde(default)]
    pub links: Vec<LinkProgress>,
    /// Memory and disk content sent per second, from the last rounds; zero pages do not count.
    pub bandwidth_bytes_per_second: f64,
    /// Pages of memory and of copied disks that the guest dirties per second, over the last 200 ms
    /// of samples of its dirty log.
    pub dirty_pages_per_second: f64,
    /// Expected downtime if the guest were paused now; none before the first round has ended.
    pub expected_downtime_seconds: Option<f64>,
    /// The downtime limit.
    pub downtime_limit_seconds: f64,
    /// False if further rounds do not bring the expected downtime below its limit: the guest
    /// dirties memory too fast, or its pause takes too long even without dirty memory.
    pub converging: bool,
    /// What is done if the migration stalls. Only the source reports it.
    #[serde(default)]
    pub on_stall: Option<OnStall>,
    /// How much the guest is slowed down: the largest share of the time that one of its vCPUs
    /// rests.
    #[serde(default)]
    pub throttle_percent: u8,
    /// How many of its vCPUs rest for a share of the time: those that write, as far as is known.
    #[serde(default)]
    pub throttled_vcpus: u16,
    /// What the source has decided so far, in that order; at most
    /// [`crate::decisions::MAX_DECISIONS_LISTED`]. Only the source reports it.
    #[serde(default)]
    pub decisions: Vec<DecidedAt>,
    /// How many decisions of each kind there were.
    #[serde(default)]
    pub decision_counts: BTreeMap<DecisionKind, u64>,
    /// Why a stalled migration goes on with rounds, although its guest was to be handed over before
    /// its memory then.
    #[serde(default)]
    pub postcopy_refused: Option<String>,
    /// How long the guest has waited for pages that follow it. Only the destination reports it.
    #[serde(default)]
    pub page_waits: Option<PageWaits>,
    /// Why the other side is out of reach; set while a connection that was lost in rounds is not
    /// replaced.
    #[serde(default)]
    pub disconnected: Option<String>,
    /// What the operator can do; set if this side cannot tell whether the other one runs the guest
    /// or will run it.
    pub in_doubt: Option<String>,
}

impl Progress {
    /// Returns why it is unknown which host has the guest, and the way out. A guest whose memory
    /// follows it runs at the destination, even if that is out of reach.
    pub fn doubt(&self) -> Option<&str> {
        self.in_doubt.as_deref().filter(|_| self.phase != Phase::Postcopy)
    }

    /// Returns the decisions after the first `known` ones, as far as they are listed.
    pub fn decisions_after(&self, known: u64) -> &[DecidedAt] {
        let all: u64 = self.decision_counts.values().sum();
        let new = usize::try_from(all.saturating_sub(known)).unwrap_or(usize::MAX);
        &self.decisions[self.decisions.len().saturating_sub(new)..]
    }

    /// Creates the progress of a migration that has not begun.
    pub fn new(migration: MigrationId, role: Role) -> Self {
        Self {
            migration,
            role,
            phase: Phase::Connect,
            phases: vec![PhaseTime { phase: Phase::Connect, seconds: 0.0 }],
            elapsed_seconds: 0.0,
            round: 0,
            memory_bytes: 0,
            remaining_bytes: 0,
            disk_bytes: 0,
            disk_remaining_bytes: 0,
            transfer: Transfer::default(),
            links: Vec::new(),
            bandwidth_bytes_per_second: 0.0,
            dirty_pages_per_second: 0.0,
            expected_downtime_seconds: None,
            downtime_limit_seconds: 0.0,
            converging: true,
            on_stall: None,
            throttle_percent: 0,
            throttled_vcpus: 0,
            decisions: Vec::new(),
            decision_counts: BTreeMap::new(),
            postcopy_refused: None,
            page_waits: None,
            disconnected: None,
            in_doubt: None,
        }
    }
}
