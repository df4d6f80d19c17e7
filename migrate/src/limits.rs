//! What the operator allows a migration to cost.

use std::time::Duration;

/// Limits of one migration, for the source. The bandwidth limit is the shell's business: the
/// machine sees it as measured bandwidth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The guest is paused for the last round only when this is expected to last no longer.
    pub downtime: Duration,
    /// The migration is cancelled when it has not committed after this time; none: never.
    pub total: Option<Duration>,
    /// Longest wait for an answer to a greeting or a description of the guest.
    pub answer: Duration,
    /// The guest resumes on the source when the destination is not ready this long after the pause.
    pub switchover: Duration,
}

impl Default for Limits {
    /// 300 ms of downtime, an hour in all, 60 s for an answer, 30 s for a switchover.
    fn default() -> Self {
        Self {
            downtime: Duration::from_millis(300),
            total: Some(Duration::from_secs(3600)),
            answer: Duration::from_secs(60),
            switchover: Duration::from_secs(30),
        }
    }
}
