//! The interface of a system that migrates guests.

use std::time::Duration;

use anyhow::Result;

use super::settings::Variant;
use support::bench::console::Console;

/// A system's own figures of a migration, and what the migration cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// Time from start to end, as the system itself reports it.
    pub(crate) total: Duration,
    /// Bytes sent, as the system itself reports them.
    pub(crate) wire_bytes: u64,
    /// CPU seconds at the source, without vCPUs.
    pub(crate) source_cpu_seconds: f64,
    /// CPU seconds at the destination, without vCPUs.
    pub(crate) destination_cpu_seconds: f64,
}

/// A system with one guest, which it can migrate between two processes.
pub(crate) trait Peer {
    /// The console of the guest where it currently runs.
    fn console(&mut self) -> &mut Console;

    /// Pauses the guest.
    fn pause(&mut self) -> Result<()>;

    /// Resumes the guest.
    fn resume(&mut self) -> Result<()>;

    /// Starts the destination of the next migration, if the system needs that.
    fn prepare(&mut self, variant: Variant) -> Result<()>;

    /// Migrates the guest; afterwards it runs at the destination.
    fn migrate(&mut self, variant: Variant) -> Result<Transfer>;

    /// Resident bytes of the guest's process beyond guest memory.
    fn overhead_bytes(&self) -> Result<u64>;
}
