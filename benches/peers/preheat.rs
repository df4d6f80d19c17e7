//! Gets memory from the machine below this host before a run needs it, and keeps it.
//!
//! On a virtual host, freed memory soon returns to the underlying machine. Getting it back is far
//! slower than any migration, and both stop this host's CPUs for tens of milliseconds at a time.
//! Taking and freeing more than a destination will take, right before a run, and returning none
//! meanwhile, makes the run measure the programs only.

use std::fs;

use anyhow::{Context, Result};
use support::bench::program::{Run, lighter};

const SPARE_MIB: u64 = 2048;
const GUEST: &str = "preheat";

/// The order of the smallest free blocks that a virtual host with free page reporting returns.
const REPORTED_ORDER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";
/// Larger than any block.
const NONE_REPORTED: &str = "11";

/// While this lives, the host returns no freed memory to the machine below it.
pub(crate) struct KeptMemory {
    /// What the setting was; none on a kernel without it.
    before: Option<String>,
}

impl KeptMemory {
    /// Keeps freed memory from now on.
    ///
    /// # Errors
    /// If the kernel has the setting, and this process may not change it.
    pub(crate) fn begin() -> Result<Self> {
        let before = fs::read_to_string(REPORTED_ORDER).ok();
        if before.is_some() {
            fs::write(REPORTED_ORDER, NONE_REPORTED)
                .with_context(|| format!("cannot set {REPORTED_ORDER}: run this as root"))?;
        }
        Ok(Self { before })
    }
}

impl Drop for KeptMemory {
    fn drop(&mut self) {
        if let Some(before) = &self.before
            && let Err(error) = fs::write(REPORTED_ORDER, before)
        {
            eprintln!("cannot restore {REPORTED_ORDER} to {}: {error}", before.trim());
        }
    }
}

/// Has a guest take `memory_mib` MiB, and 2 GiB more, at its start, and ends it. Its memory is of
/// huge pages, as that of both systems' destinations: those come from other parts of the free
/// memory than small ones.
///
/// # Errors
/// If there is too little memory.
pub(crate) fn preheat(memory_mib: u64) -> Result<()> {
    let state = tempfile::tempdir()?;
    let memory = format!("{}M", memory_mib + SPARE_MIB);
    lighter(state.path())
        .args(["run", "--name", GUEST, "--detach", "--memory", &memory, "--prealloc"])
        .args(["--dirty-rate", "0"])
        .run()?;
    lighter(state.path()).args(["destroy", GUEST]).run().map(drop)
}
