//! The interface of a system that migrates guests.

use std::time::Duration;

use anyhow::Result;

use super::settings::{Mode, OnStall, Variant};
use support::bench::console::Console;

/// Limit of the downtime in milliseconds, the default of both QEMU and lighter.
const DOWNTIME_LIMIT_MS: u64 = 300;
/// The limit of guests that are handed over before their memory: so short that none arrives with
/// all of it before it is handed over, unless it writes nothing.
const POSTCOPY_DOWNTIME_LIMIT_MS: u64 = 1;

/// How a guest is migrated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Course {
    /// The system and its transport.
    pub(crate) variant: Variant,
    /// The kind of migration.
    pub(crate) mode: Mode,
    /// What lighter does if it stalls.
    pub(crate) on_stall: OnStall,
    /// The time after which it is called off.
    pub(crate) patience: Duration,
    /// How many ways there are to the other host.
    pub(crate) ways: usize,
}

impl Course {
    /// Limit of the downtime, in milliseconds.
    pub(crate) const fn downtime_limit_ms(&self) -> u64 {
        match self.mode {
            Mode::Precopy | Mode::Estimate => DOWNTIME_LIMIT_MS,
            Mode::Postcopy => POSTCOPY_DOWNTIME_LIMIT_MS,
        }
    }
}

/// A system's own figures of a migration, and what the migration cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// Time from start to end, as the system itself reports it.
    pub(crate) total: Duration,
    /// The downtime that the system itself reports.
    pub(crate) downtime: Duration,
    /// Time from the pause at the source until the vCPUs run at the destination, according to the
    /// system's processes.
    pub(crate) pause: Duration,
    /// Bytes sent, as the system itself reports them.
    pub(crate) wire_bytes: u64,
    /// CPU seconds at the source, without vCPUs.
    pub(crate) source_cpu_seconds: f64,
    /// CPU seconds at the destination, without vCPUs.
    pub(crate) destination_cpu_seconds: f64,
    /// Whether the guest ran at the destination before all of its memory was there.
    pub(crate) is_postcopy: bool,
    /// What an estimate said before.
    pub(crate) estimate: Option<Estimated>,
}

/// The figures of an estimate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Estimated {
    /// Seconds from start to end.
    pub(crate) total_seconds: f64,
    /// Seconds without the guest.
    pub(crate) downtime_seconds: f64,
    /// Bytes sent.
    pub(crate) wire_bytes: f64,
}

/// A system with one guest, which it can migrate between two processes.
pub(crate) trait Peer {
    /// Which of the two places the guest is at.
    fn here(&self) -> usize;

    /// The console of the guest where it currently runs.
    fn console(&mut self) -> &mut Console;

    /// Pauses the guest.
    fn pause(&mut self) -> Result<()>;

    /// Resumes the guest.
    fn resume(&mut self) -> Result<()>;

    /// Does what precedes a migration and is not measured: starts a destination, makes an estimate.
    fn prepare(&mut self, course: &Course) -> Result<()>;

    /// Migrates the guest; afterwards it runs at the destination, or at the source if it had not
    /// arrived in time: then there are no figures.
    fn migrate(&mut self, course: &Course) -> Result<Option<Transfer>>;

    /// Resident bytes of the guest's process beyond guest memory.
    fn overhead_bytes(&self) -> Result<u64>;
}
