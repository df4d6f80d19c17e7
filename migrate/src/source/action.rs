//! The actions of the source's state machine.

use crate::guest::Throttle;
use crate::memory::PageSet;
use crate::protocol::{Features, SourceMessage};
use crate::record::SourceState;
use crate::report::Report;

/// An action for the shell; actions are performed in the order given. Each action on the guest is
/// answered by one event, or by [`super::Event::GuestFailed`].
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Send this on the control stream. No answer; if the connection breaks, the shell reports
    /// [`super::Event::ConnectionLost`].
    Send(SourceMessage),
    /// Make this state durable in the source's record: [`super::Event::Recorded`] or
    /// [`super::Event::RecordFailed`]. At most one is outstanding.
    Record(SourceState),
    /// Open the data streams and start the dirty log; every page is then dirty.
    StartPrecopy(DataPath),
    /// Flush the disks, pause the guest, save its state, discard that, and resume the guest if it
    /// ran; report how long that took and the round-trip time.
    Probe,
    /// Send every dirty page, then collect the pages dirtied meanwhile.
    SendRound {
        /// Number of the round, from 1.
        round: u32,
    },
    /// There is a new connection: have the next round open new data streams on it. Pages that were
    /// sent on the lost ones, and are not in these first frames of each, are dirty again. No
    /// answer.
    ReopenStreams {
        /// For each data stream, how many frames the destination has applied since the migration
        /// began.
        applied: Vec<u64>,
    },
    /// Slow the guest down, or no longer. Comes again while it lasts: [`super::Event::Throttled`],
    /// or no answer, since a failure costs only time.
    Throttle(Throttle),
    /// Pause the guest: [`super::Event::Paused`] or [`super::Event::PauseFailed`].
    Pause,
    /// The guest is paused: flush what it has written to its disks. Runs in parallel with the last
    /// round and [`Action::SaveState`], and must not delay [`Action::ResumeGuest`], which may come
    /// before the answer.
    FlushDisks {
        /// Number of the hand-over, which the answer repeats: that of an earlier one may come late.
        attempt: u32,
    },
    /// The guest is paused: collect once more and send all dirty pages. Runs in parallel with
    /// [`Action::SaveState`], which is requested with it.
    SendFinalRound {
        /// Number of the round.
        round: u32,
    },
    /// Save the guest's state.
    SaveState,
    /// Saving the state may have dirtied memory: collect a last time, send those pages, and end
    /// every data stream.
    SendRemainder {
        /// Number of the round, as in the preceding `SendFinalRound`.
        round: u32,
    },
    /// For post-copy, while the guest runs: stop the round, end every data stream, collect and
    /// re-arm: [`super::Event::StreamsEnded`].
    EndStreams,
    /// For post-copy, while the guest is paused and its state saved: collect:
    /// [`super::Event::MissingCollected`].
    CollectMissing,
    /// Send these pages when the destination requests them, on the present connection. No answer.
    Serve {
        /// What the destination lacks: all that follows the guest, or, after a new connection, what
        /// the destination says.
        missing: PageSet,
    },
    /// The guest runs there: send the other pages too, in the background. It may come repeatedly.
    /// No answer: the destination says when it has all.
    ServeRest,
    /// Stop sending pages: the pages ordered before are no longer wanted. No answer.
    StopSending,
    /// The destination is about to run the guest: release what only one copy may hold. No answer:
    /// the destination waits for it.
    ReleaseGuest,
    /// Resume the guest: [`super::Event::Resumed`].
    ResumeGuest,
    /// Stop the dirty log. No answer: a failure costs only speed.
    StopDirtyLog,
    /// Make a new connection to the destination and open a control stream on it:
    /// [`super::Event::Connected`] or [`super::Event::ConnectionLost`].
    Reconnect,
    /// Close the connection once queued messages are sent; [`super::Event::ConnectionLost`] is not
    /// expected.
    Disconnect,
    /// The source no longer owns the guest: destroy it here. No answer.
    DropGuest,
    /// The outcome is known: store the report in the record and publish it. Comes once, with two
    /// exceptions: an outcome in doubt is followed by another when the doubt is resolved, and any
    /// outcome may be followed by one that says that an operator forced the destination to run the
    /// guest.
    Finished(Box<Report>),
    /// Nothing more is to be done or expected: drop the machine.
    Settled,
}

/// How pages are to be sent, as both sides have agreed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataPath {
    /// Number of data streams: chunk `c` is sent on stream `c % streams`.
    pub streams: u16,
    /// Features that both sides have.
    pub features: Features,
}
