//! The clock that a session's machine is given.

use std::time::Duration;

use tokio::time::Instant;

/// Time since the session began.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock(Instant);

impl Clock {
    pub(super) fn start() -> Self {
        Self(Instant::now())
    }

    pub(super) fn now(self) -> Duration {
        self.0.elapsed()
    }

    /// Waits until the clock shows `at`; for ever when there is no such time.
    pub(super) async fn reach(self, at: Option<Duration>) {
        match at.and_then(|at| self.0.checked_add(at)) {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

/// Milliseconds since 1970, for records.
pub(super) fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}
