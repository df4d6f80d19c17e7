//! The destination's states, each named after what it waits for.

use std::time::Duration;

use crate::error::MigrationError;
use crate::protocol::{DestinationMessage, SavedState};

#[derive(Debug)]
pub(super) enum State {
    /// For the source to connect and greet.
    Waiting,
    /// For the description of the guest.
    Greeted,
    /// For the check of it.
    Checking,
    /// For the guest to be built.
    Creating,
    /// For the first record.
    Opening,
    /// For pages and state.
    Receiving(Received),
    /// For the state to be loaded.
    Loading { asked: Duration },
    /// For the record that all is here.
    Vouching { load: Duration },
    /// To be told.
    Ready,
    /// For the record that the guest is here.
    TakingOver { asked: Duration },
    /// For the guest to have what only one copy may have.
    Adopting { asked: Duration },
    /// For the guest to run.
    Resuming { asked: Duration },
    /// For the source to have heard, and a record that says so.
    Running { resume: Duration, is_recorded: bool },
    /// For the guest to be gone, and the record of that.
    Discarding(Discard),
    /// For the source to have heard that the copy is gone.
    Discarded,
    /// The guest was to run and does not; the source is told so whenever it asks.
    Failed { answer: DestinationMessage },
    /// For nothing.
    Settled,
}

/// What has come of the guest.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// The source has announced the switchover.
    pub(super) switching_over: bool,
    /// Which streams have ended.
    pub(super) ended: Vec<bool>,
    /// The saved state.
    pub(super) state: Option<SavedState>,
}

impl Received {
    pub(super) fn is_complete(&self) -> bool {
        self.state.is_some() && self.ended.iter().all(|&ended| ended)
    }
}

/// The end of a copy that will not run.
#[derive(Debug)]
pub(super) struct Discard {
    pub(super) error: MigrationError,
    /// What the source is told when the copy is gone.
    pub(super) farewell: DestinationMessage,
    /// The guest is being built or loaded: only when that is over can it be destroyed.
    pub(super) busy: bool,
}

impl State {
    /// Whether the copy may be thrown away without asking the source.
    pub(super) const fn is_before_ready(&self) -> bool {
        matches!(
            self,
            Self::Waiting
                | Self::Greeted
                | Self::Checking
                | Self::Creating
                | Self::Opening
                | Self::Receiving(_)
                | Self::Loading { .. }
        )
    }

    /// Whether the guest is being worked on.
    pub(super) const fn is_busy(&self) -> bool {
        matches!(self, Self::Creating | Self::Loading { .. })
    }

    /// What the destination was doing, for errors.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting for a greeting",
            Self::Greeted => "waiting for a guest's description",
            Self::Checking | Self::Creating | Self::Opening => "preparing the guest",
            Self::Receiving(_) => "receiving memory",
            Self::Loading { .. } | Self::Vouching { .. } => "loading the guest's state",
            Self::Ready => "waiting for the source's decision",
            Self::TakingOver { .. } | Self::Adopting { .. } | Self::Resuming { .. } => {
                "taking the guest over"
            }
            Self::Running { .. } | Self::Failed { .. } => "running the guest",
            Self::Discarding(_) | Self::Discarded | Self::Settled => "discarding the guest",
        }
    }
}
