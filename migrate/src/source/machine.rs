//! The source's states and what leads from one to the next.

use std::time::Duration;

use super::{Action, Event};
use crate::error::{CancelRefused, OperatorChoice, ResolveRefused};
use crate::guest::GuestDescription;
use crate::limits::Limits;
use crate::phase::Phase;
use crate::progress::Progress;
use crate::protocol::{MigrationId, Offer};

/// What a source must know before it starts.
#[derive(Debug, Clone)]
pub struct SourceConfig {
    /// This migration.
    pub migration: MigrationId,
    /// The guest, as its `describe` gave it.
    pub guest: GuestDescription,
    /// What this side speaks: [`Offer::ours`].
    pub offer: Offer,
    /// Data streams to use, 1 to [`crate::protocol::MAX_STREAMS`].
    pub streams: u16,
    /// What the operator allows.
    pub limits: Limits,
}

/// The source's side of one migration.
#[derive(Debug)]
pub struct Source {
    phase: Phase,
    progress: Progress,
}

impl Source {
    /// A source about to connect. `now` is the time since any fixed moment, of a clock that never
    /// goes back; all later calls must use the same clock.
    pub fn new(config: SourceConfig, now: Duration) -> Self {
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
    /// Why not: the destination has been told to run the guest, or it is over already.
    pub fn can_cancel(&self) -> Result<(), CancelRefused> {
        Ok(())
    }

    /// Whether [`Event::Resolve`] with this choice would be heeded now.
    ///
    /// # Errors
    /// Why not: the migration is not in doubt.
    pub fn can_resolve(&self, choice: OperatorChoice) -> Result<(), ResolveRefused> {
        let _ = choice;
        Ok(())
    }
}
