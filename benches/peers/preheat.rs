//! Gets memory from the machine below this host before a run needs it.
//!
//! On a virtual host, freed memory soon returns to the underlying machine, and getting it back is
//! far slower than any migration. Taking and freeing more than a destination will take, right
//! before a run, makes the run measure the programs only.

use anyhow::Result;
use support::bench::program::{Run, lighter};

const SPARE_MIB: u64 = 2048;
const GUEST: &str = "preheat";

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
