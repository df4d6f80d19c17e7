//! Counts events in spans of time, for limits on their rate.

use std::time::Duration;

use tokio::time::Instant;

/// The events since the current span of time began.
#[derive(Debug)]
pub(crate) struct Window {
    since: Instant,
    events: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self { since: Instant::now(), events: 0 }
    }
}

impl Window {
    /// Counts an event; returns how many there were in the current `span`.
    pub(crate) fn count(&mut self, span: Duration) -> u32 {
        if self.is_over(span) {
            *self = Self::default();
        }
        self.events = self.events.saturating_add(1);
        self.events
    }

    /// Whether `span` has passed since the current one began.
    pub(crate) fn is_over(&self, span: Duration) -> bool {
        self.since.elapsed() >= span
    }

    /// When the current span began.
    pub(super) fn since(&self) -> Instant {
        self.since
    }
}
