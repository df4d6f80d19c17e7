//! The destination's states, each named after what it waits for.

use std::time::Duration;

use crate::error::MigrationError;
use crate::memory::PageSet;
use crate::protocol::{DestinationMessage, SavedState};
use crate::text::PeerText;

#[derive(Debug)]
pub(super) enum State {
    /// Waits for the source to connect and greet.
    Waiting,
    /// Waits for the description of the guest.
    Greeted,
    /// Waits for the check of the description.
    Checking,
    /// Waits for the guest to be built.
    Creating,
    /// Waits for the first record.
    Opening,
    /// Waits for pages and state.
    Receiving(Received),
    /// Waits for the guest's state to be loaded.
    Loading { asked: Duration },
    /// Waits for the record that everything has been received.
    RecordingReady { load: Duration },
    /// Waits for the source's decision.
    Ready,
    /// Waits for the record that the destination owns the guest.
    TakingOver { asked: Duration },
    /// Waits for the locks and networks that only one copy of the guest may hold.
    Adopting { asked: Duration },
    /// Waits for the guest to run.
    Resuming { asked: Duration },
    /// Post-copy: the guest runs. Waits for the rest of its memory.
    Fetching { resume: Duration },
    /// Waits for the record that the guest, which has run here, cannot continue.
    Stranded { answer: DestinationMessage },
    /// Waits for the source's `Finish`, and the record that the guest runs.
    Running { resume: Duration, is_recorded: bool },
    /// Waits for the guest to be destroyed, and the record of that.
    Discarding(Discard),
    /// Waits for the source to hear that the copy is gone.
    Discarded,
    /// The guest was to run and does not; the source hears this whenever it asks.
    Failed { answer: DestinationMessage },
    /// Waits for nothing: the migration is over on this side.
    Settled,
}

/// What has been received of the guest.
#[derive(Debug, Default)]
pub(super) struct Received {
    /// The source has announced the switchover.
    pub(super) switching_over: bool,
    /// Which streams have ended.
    pub(super) ended: Vec<bool>,
    /// The saved state.
    pub(super) state: Option<SavedState>,
    pub(super) missing: Missing,
    /// Why the source is out of reach, if it is.
    pub(super) lost: Option<PeerText>,
    /// How many counts of frames have been asked for and not come.
    pub(super) counts_owed: u32,
}

/// What the source has said about memory that is to follow the guest.
#[derive(Debug, Default)]
pub(super) enum Missing {
    /// Nothing: all of it comes before the guest.
    #[default]
    None,
    /// These pages are dropped once all data streams have ended.
    Announced(PageSet),
    /// They are being dropped.
    Clearing,
    /// They are dropped, and the source knows.
    Cleared,
    /// The guest is paused, and has written these pages meanwhile.
    Final(PageSet),
}

impl Received {
    pub(super) fn is_complete(&self) -> bool {
        let is_known = matches!(self.missing, Missing::None | Missing::Final(_));
        self.state.is_some() && is_known && self.is_drained()
    }

    /// Returns whether rounds may go on over another connection: nothing of the guest but memory
    /// that it may still write has been sent.
    pub(super) fn may_continue(&self) -> bool {
        matches!(self.missing, Missing::None) && !self.ended.contains(&true)
    }

    /// Returns whether no more pages come on the data streams.
    pub(super) fn is_drained(&self) -> bool {
        self.ended.iter().all(|&ended| ended)
    }
}

/// A copy that is being discarded.
#[derive(Debug)]
pub(super) struct Discard {
    pub(super) error: MigrationError,
    /// Message to the source once it is recorded that the copy will never run; none once that is
    /// sent.
    pub(super) farewell: Option<DestinationMessage>,
    /// The guest is being built or loaded, and can be destroyed only afterwards.
    pub(super) busy: bool,
    /// It is recorded that the copy will never run.
    pub(super) is_recorded: bool,
}

impl State {
    /// Returns whether this side is not ready yet.
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

    /// Returns whether a call that builds or loads the guest is under way.
    pub(super) const fn is_busy(&self) -> bool {
        match self {
            Self::Creating | Self::Loading { .. } => true,
            Self::Receiving(received) => matches!(received.missing, Missing::Clearing),
            _ => false,
        }
    }

    /// Returns what the destination is doing, for errors.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting for a greeting",
            Self::Greeted => "waiting for a guest's description",
            Self::Checking | Self::Creating | Self::Opening => "preparing the guest",
            Self::Receiving(_) => "receiving memory",
            Self::Loading { .. } | Self::RecordingReady { .. } => "loading the guest's state",
            Self::Ready => "waiting for the source's decision",
            Self::TakingOver { .. } | Self::Adopting { .. } | Self::Resuming { .. } => {
                "taking the guest over"
            }
            Self::Running { .. }
            | Self::Fetching { .. }
            | Self::Stranded { .. }
            | Self::Failed { .. } => "running the guest",
            Self::Discarding(_) | Self::Discarded | Self::Settled => "discarding the guest",
        }
    }
}
