//! How much is kept.

/// How many runs are kept, and how large they may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Runs that are kept; the oldest go first, the last one stays.
    pub runs_max: u64,
    /// Bytes of all of their logs together.
    pub bytes_max: u64,
    /// Bytes of one log; what ends the run may be more.
    pub run_bytes_max: u64,
    /// Bytes of one plan as JSON.
    pub plan_bytes_max: usize,
    /// Bytes of one action as JSON.
    pub part_bytes_max: usize,
    /// Actions of one run.
    pub actions_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            runs_max: 10_000,
            bytes_max: 64 << 20,
            run_bytes_max: 16 << 20,
            plan_bytes_max: 4 << 20,
            part_bytes_max: 64 << 10,
            actions_max: 10_000,
        }
    }
}

impl Limits {
    /// The longest log that is read, in bytes. What ends a run always has room.
    pub(super) const fn log_bytes_max(&self) -> u64 {
        self.run_bytes_max.saturating_add(self.part_bytes_max as u64).saturating_add(1 << 10)
    }
}

/// The longest error text that is kept, in characters, and most of them of one run.
pub(super) const ERROR_CHARS_MAX: usize = 1000;
pub(super) const ERRORS_MAX: usize = 100;
/// Most runs that one query reads.
pub(super) const LISTED_MAX: usize = 1000;
/// Most runs that are thrown away at once: whoever lowers a limit does not wait for all of it.
pub(super) const PRUNED_MAX: usize = 64;
