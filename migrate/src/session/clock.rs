//! The clock of a session's state machine.

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

    /// Waits until the clock shows `at`; forever if there is no such time.
    pub(super) async fn reach(self, at: Option<Duration>) {
        match at.and_then(|at| self.0.checked_add(at)) {
            Some(at) => tokio::time::sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}
