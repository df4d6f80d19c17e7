//! Limits on what is kept.

/// Limits on the number of runs kept, and on their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Maximum number of runs; the oldest are removed first, and the last one always stays.
    pub runs_max: u64,
    /// Maximum total size of all logs, in bytes.
    pub bytes_max: u64,
    /// Maximum size of one log, in bytes; the entry that ends the run may exceed it.
    pub run_bytes_max: u64,
    /// Maximum size of one plan as JSON, in bytes.
    pub plan_bytes_max: usize,
    /// Maximum size of one action as JSON, in bytes.
    pub part_bytes_max: usize,
    /// Maximum number of actions in one run.
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
    /// Returns the size of the largest log that is read, in bytes: above the limit, it has room for
    /// the entry that ends a run.
    pub(super) const fn log_bytes_max(&self) -> u64 {
        self.run_bytes_max.saturating_add(self.part_bytes_max as u64).saturating_add(1 << 10)
    }
}

/// Maximum length of a recorded error text in characters, and maximum number of errors per run.
pub(super) const ERROR_CHARS_MAX: usize = 1000;
pub(super) const ERRORS_MAX: usize = 100;
/// Maximum number of runs that one query returns.
pub(super) const LISTED_MAX: usize = 1000;
/// Maximum number of runs removed at once, so that lowering a limit does not block the caller until
/// all of them are gone.
pub(super) const PRUNED_MAX: usize = 64;
