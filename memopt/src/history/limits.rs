//! How much is kept.

/// How many runs are kept, and how large they may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Runs that are kept; the oldest go first.
    pub runs_max: u64,
    /// Bytes of all of them together. The file is larger, by what the store needs to find them.
    pub bytes_max: u64,
    /// Bytes of one run.
    pub run_bytes_max: u64,
    /// Bytes of one plan as JSON.
    pub plan_bytes_max: usize,
    /// Bytes of one action, or of an outcome, as JSON.
    pub part_bytes_max: usize,
    /// Actions of one run.
    pub actions_max: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            runs_max: 10_000,
            bytes_max: 64 << 20,
            run_bytes_max: 8 << 20,
            plan_bytes_max: 4 << 20,
            part_bytes_max: 64 << 10,
            actions_max: 10_000,
        }
    }
}

impl Limits {
    /// The largest file that is taken for a history, in bytes. A file grows in powers of two and
    /// keeps room for what is replaced.
    pub(super) const fn file_bytes_max(&self) -> u64 {
        self.bytes_max.saturating_add(self.run_bytes_max).saturating_mul(8).saturating_add(64 << 20)
    }
}

/// The longest error text that is kept, in characters, and most of them of one run.
pub(super) const ERROR_CHARS_MAX: usize = 1000;
pub(super) const ERRORS_MAX: usize = 100;
/// Most schedules of which the last time is remembered.
pub(super) const TICKS_MAX: u64 = 256;
/// Most runs that one query reads.
pub(super) const LISTED_MAX: usize = 1000;
