//! The actions of the destination's state machine.

use crate::guest::GuestDescription;
use crate::memory::PageSet;
use crate::protocol::{DestinationMessage, Features};
use crate::record::DestinationState;
use crate::report::Report;

/// An action for the shell; actions are performed in the order given.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send this on the control stream. No answer.
    Send(DestinationMessage),
    /// Check that this host can run the guest, without creating anything:
    /// [`super::Event::Checked`].
    Check(Box<GuestDescription>),
    /// Build the guest: [`super::Event::Created`].
    Create(Box<GuestDescription>),
    /// The guest is built: apply the pages that arrive on the data streams.
    AcceptPages {
        /// Number of data streams: chunk `c` may only arrive on stream `c % streams`.
        streams: u16,
        /// Features that both sides have.
        features: Features,
    },
    /// The source goes on with a new connection: wait until what came over the lost ones is
    /// applied, and count it: [`super::Event::Counted`]. Then data streams may come again.
    CountFrames,
    /// Load the guest's state: [`super::Event::Loaded`]. Memory and disks are complete.
    LoadState(Vec<u8>),
    /// For post-copy: drop these pages, which are missing from now on: [`super::Event::Cleared`].
    Clear(PageSet),
    /// For post-copy: drop these pages too, and fetch what is missing from now on, before
    /// [`Action::LoadState`], which follows and reports a failure: [`super::Event::Fetched`].
    Fetch(PageSet),
    /// The source has a new connection: tell it what is missing
    /// ([`DestinationMessage::Missing`]), and request again what is waited for. No answer.
    ReportMissing,
    /// The copy is discarded while its state is being loaded: let what waits for a missing page
    /// continue, with zeros. No answer.
    AbandonMissing,
    /// Memory that is missing will never come: pause the guest, and fetch no more. No answer.
    StopFetching,
    /// Make this state durable in the destination's record: [`super::Event::Recorded`] or
    /// [`super::Event::RecordFailed`]. At most one is outstanding.
    Record(DestinationState),
    /// Make this host the owner of the guest, with its disks and whatever else only one copy may
    /// hold: [`super::Event::Adopted`].
    AdoptGuest,
    /// Start the guest, which has been adopted: [`super::Event::Resumed`].
    ResumeGuest,
    /// Stop applying pages, destroy the guest if there is one, free its memory. No answer.
    Discard,
    /// Close the connection once queued messages are sent. The source may still reconnect, unless
    /// [`Action::Settled`] follows.
    Disconnect,
    /// The outcome is known: store the report in the record and publish it. Comes exactly once.
    Finished(Box<Report>),
    /// The source needs no further answers: stop listening and drop the machine. A guest that runs
    /// keeps running.
    Settled,
}
