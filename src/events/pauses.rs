//! Pauses between attempts.

use std::time::Duration;

use tokio::time::sleep;

/// First pause before a retry while a process is starting, which soon has what is missing; each
/// pause is twice the one before.
const PAUSE_MIN: Duration = Duration::from_millis(10);

/// The longest such pause.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Pauses between attempts, each longer than the one before.
#[derive(Debug)]
pub(super) struct Pauses(Duration);

impl Default for Pauses {
    fn default() -> Self {
        Self(PAUSE_MIN)
    }
}

impl Pauses {
    /// Returns the next pause.
    pub(super) fn next(&mut self) -> Duration {
        let longer = PAUSE_MAX.min(2 * self.0);
        std::mem::replace(&mut self.0, longer)
    }

    /// Waits for the next one.
    pub(super) async fn pause(&mut self) {
        sleep(self.next()).await;
    }
}
