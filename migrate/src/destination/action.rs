//! What a destination wants done.

use crate::guest::GuestDescription;
use crate::protocol::{DestinationMessage, Features};
use crate::record::DestinationState;
use crate::report::Report;

/// Something to do, in the order given.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send this on the control stream. Not answered.
    Send(DestinationMessage),
    /// Check that this host can run the guest, creating nothing: [`super::Event::Checked`].
    Check(Box<GuestDescription>),
    /// Build the guest: [`super::Event::Created`].
    Create(Box<GuestDescription>),
    /// The guest is built: apply what comes on the data streams.
    AcceptPages {
        /// Number of data streams: chunk `c` may only come on stream `c % streams`.
        streams: u16,
        /// Features that both sides have.
        features: Features,
    },
    /// Load the guest's state: [`super::Event::Loaded`]. Memory and disks are complete.
    LoadState(Vec<u8>),
    /// Make this state durable in the destination's record: [`super::Event::Recorded`] or
    /// [`super::Event::RecordFailed`]. At most one is outstanding.
    Record(DestinationState),
    /// Make the guest this host's, with its disks and what else only one copy may have:
    /// [`super::Event::Adopted`].
    AdoptGuest,
    /// Let the guest run, which has been adopted: [`super::Event::Resumed`].
    ResumeGuest,
    /// Stop applying pages, destroy the guest if there is one, free its memory. Not answered.
    Discard,
    /// Close the connection, after what was sent. The source may still come back, unless
    /// [`Action::Settled`] follows.
    Disconnect,
    /// The outcome is known: store the report in the record and show it. Comes exactly once.
    Finished(Box<Report>),
    /// Nothing more is to be said to the source: stop listening, drop the machine. A guest that
    /// runs runs on.
    Settled,
}
