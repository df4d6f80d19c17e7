//! The destination's states and what leads from one to the next.

use std::time::Duration;

use super::{Action, Event};
use crate::error::{CancelRefused, OperatorChoice, ResolveRefused};
use crate::phase::Phase;
use crate::progress::Progress;
use crate::protocol::{MigrationId, Offer};

/// What a destination must know before it starts.
#[derive(Debug, Clone)]
pub struct DestinationConfig {
    /// This migration.
    pub migration: MigrationId,
    /// What this side speaks: [`Offer::ours`].
    pub offer: Offer,
    /// Time for the source to appear, and after the guest was taken over, to say that it has heard.
    pub linger: Duration,
}

/// The destination's side of one migration.
#[derive(Debug)]
pub struct Destination {
    phase: Phase,
    progress: Progress,
}

impl Destination {
    /// A destination waiting for its source. `now` is the time since any fixed moment, of a clock
    /// that never goes back; all later calls must use the same clock.
    pub fn new(config: DestinationConfig, now: Duration) -> Self {
        let _ = now;
        Self { phase: Phase::Connect, progress: Progress::new(config.migration) }
    }

    /// Takes an event, returns what is to be done, in order.
    pub fn handle(&mut self, event: Event, now: Duration) -> Vec<Action> {
        let _ = (event, now);
        Vec::new()
    }

    /// When [`Event::Tick`] must be told, unless something else happens before.
    pub fn deadline(&self) -> Option<Duration> {
        None
    }

    /// Where the migration is.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How the migration is doing.
    pub fn progress(&self, now: Duration) -> Progress {
        let _ = now;
        self.progress.clone()
    }

    /// Whether [`Event::Cancel`] would be heeded now.
    ///
    /// # Errors
    /// Why not: the source may have decided already, or it is over.
    pub fn can_cancel(&self) -> Result<(), CancelRefused> {
        Ok(())
    }

    /// Whether [`Event::Resolve`] with this choice would be heeded now.
    ///
    /// # Errors
    /// Why not: the destination is not waiting for a source that is gone.
    pub fn can_resolve(&self, choice: OperatorChoice) -> Result<(), ResolveRefused> {
        let _ = choice;
        Ok(())
    }
}
