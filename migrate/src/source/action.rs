//! What a source wants done.

use crate::protocol::{Features, SourceMessage};
use crate::record::SourceState;
use crate::report::Report;

/// Something to do, in the order given. Actions on the guest are answered by one event each, or by
/// [`super::Event::GuestFailed`].
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send this on the control stream. Not answered; when it cannot be sent, the shell tells
    /// [`super::Event::ConnectionLost`].
    Send(SourceMessage),
    /// Make this state durable in the source's record; [`super::Event::Recorded`] or
    /// [`super::Event::RecordFailed`]. At most one is outstanding.
    Record(SourceState),
    /// Open the data streams and start the dirty log; every page is dirty then.
    StartPrecopy(DataPath),
    /// Pause the guest, save its state, throw it away, let the guest go on as it did; tell how long
    /// that took and the round-trip time.
    Probe,
    /// Send every page that is dirty, then collect what has become dirty meanwhile.
    SendRound {
        /// Number of the round, from 1.
        round: u32,
    },
    /// Stop the guest: [`super::Event::Paused`] or [`super::Event::PauseFailed`].
    Pause,
    /// The guest stands: make durable what it has written to its disks. Runs beside the last round
    /// and [`Action::SaveState`], and must not hold up [`Action::ResumeGuest`], which may come
    /// before the answer.
    FlushDisks,
    /// The guest stands: collect once more and send all that is dirty. Runs beside
    /// [`Action::SaveState`], which is asked for with it.
    SendFinalRound {
        /// Number of the round.
        round: u32,
    },
    /// Save the guest's state.
    SaveState,
    /// Saving the state may have dirtied memory: collect a last time, send what there is, and end
    /// every data stream.
    SendRemainder {
        /// Number of the round, as in the `SendFinalRound` before.
        round: u32,
    },
    /// Stop sending pages: what was asked for is not wanted any more. Not answered.
    StopSending,
    /// The guest is about to go on at the destination: give up what only one copy may have. Not
    /// answered: the destination waits for it.
    ReleaseGuest,
    /// Let the guest go on: [`super::Event::Resumed`].
    ResumeGuest,
    /// Stop the dirty log. Not answered: a failure costs speed, nothing else.
    StopDirtyLog,
    /// Make a new connection to the destination and open a control stream on it:
    /// [`super::Event::Connected`] or [`super::Event::ConnectionLost`].
    Reconnect,
    /// Close the connection, after what was sent; [`super::Event::ConnectionLost`] is not expected.
    Disconnect,
    /// The guest is not this side's any more: destroy it here. Not answered.
    DropGuest,
    /// The outcome is known: store the report in the record and show it. Comes once; an outcome in
    /// doubt is followed by another when the doubt is settled, and any by one that says that an
    /// operator has forced the destination to run the guest.
    Finished(Box<Report>),
    /// Nothing more is to be done or expected: drop the machine.
    Settled,
}

/// How pages are to be sent: what both sides have agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataPath {
    /// Number of data streams: chunk `c` travels on stream `c % streams`.
    pub streams: u16,
    /// Features that both sides have.
    pub features: Features,
}
