//! What the contest needs of a system that migrates guests.

use std::time::Duration;

use anyhow::Result;

use super::settings::Variant;
use support::bench::console::Console;

/// What a system says about a migration, and what the migration cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer {
    /// From start to end, as the system itself counts.
    pub(crate) total: Duration,
    /// Bytes sent, as the system itself counts.
    pub(crate) wire_bytes: u64,
    /// CPU seconds at the source, without vCPUs.
    pub(crate) source_cpu_seconds: f64,
    /// CPU seconds at the destination, without vCPUs.
    pub(crate) destination_cpu_seconds: f64,
}

/// A system with one guest, which it can move between two processes.
pub(crate) trait Peer {
    /// The console of the guest where it runs now.
    fn console(&mut self) -> &mut Console;

    /// Makes the guest stand still.
    fn pause(&mut self) -> Result<()>;

    /// Makes it run again.
    fn resume(&mut self) -> Result<()>;

    /// Starts whatever the next migration arrives at.
    fn prepare(&mut self, variant: Variant) -> Result<()>;

    /// Migrates the guest; afterwards it runs at the destination.
    fn migrate(&mut self, variant: Variant) -> Result<Transfer>;

    /// Resident bytes of the guest's process beyond guest memory.
    fn overhead_bytes(&self) -> Result<u64>;
}
