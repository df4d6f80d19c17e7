//! Gets memory from the machine below this host before a run needs it.
//!
//! On a virtual host, freed memory soon returns to the underlying machine, and getting it back is
//! far slower than any migration. Touching and freeing as much as a destination will take, right
//! before a run, makes the run measure the programs only.

use std::hint::black_box;

const SPARE_MIB: u64 = 2048;
const PAGE_BYTES: usize = 4096;

/// Touches what a guest of `memory_mib` MiB takes, and 2 GiB more, and frees it.
pub(crate) fn preheat(memory_mib: u64) {
    let mut memory = vec![0u8; ((memory_mib + SPARE_MIB) << 20) as usize];
    for byte in memory.iter_mut().step_by(PAGE_BYTES) {
        *byte = 1;
    }
    black_box(&memory);
}
