//! The source's states, each named after what it waits for.

use std::time::Duration;

use crate::error::{Failure, MigrationError};
use crate::guest::GuestError;
use crate::protocol::Decision;
use crate::record::SourceState;
use crate::report::Outcome;

/// Longest wait for the answer to a commit before reconnecting.
const COMMIT_ANSWER: Duration = Duration::from_secs(10);
/// Longest wait, after reconnecting, for what the destination lacks or has: a list of pages has up
/// to [`crate::protocol::codec::PAGES_LIMIT`] bytes, and the link may be slow; frames are counted
/// once all that came over lost connections is applied, and a disk may be slow.
const LIST_ANSWER: Duration = Duration::from_secs(60);
/// First pause before reconnecting; each further one is twice as long.
const REDIAL_FIRST: Duration = Duration::from_millis(100);
/// Longest pause before reconnecting.
const REDIAL_LAST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) enum State {
    /// Waits for the first connection.
    Connecting,
    /// Waits for the first record.
    Opening,
    /// Waits for the answer to `Hello`.
    Greeting,
    /// Waits for the answer to `Prepare`.
    Describing,
    /// Waits for the data streams and the dirty log to start.
    Starting,
    /// Waits for the dry run of the switchover.
    Probing,
    /// Waits for a round to be sent.
    Copying,
    /// Waits to reach the destination again, or for its answer to `Continue`.
    Reconnecting,
    /// Waits before the switchover is measured again, in case it has become faster.
    Resting { until: Duration },
    /// Waits for a record that is written again to measure how long that takes now.
    MeasuringRecord,
    /// Post-copy: waits for the data streams to end, while the guest runs.
    Draining,
    /// Post-copy: waits for the destination to drop the pages that are to be fetched, while the
    /// guest runs.
    Clearing,
    /// Waits for the guest to pause.
    Pausing,
    /// Waits for the last round, the flush of the disks, and the state.
    Finishing { round_sent: bool, flushed: bool, saved: bool },
    /// Waits for the guest to run on here, for what was ordered for a hand-over that is called off,
    /// and for the destination to have forgotten it.
    Returning { round_sent: bool, saved: bool, resumed: bool, answered: bool },
    /// Waits for the remainder to be sent, or, for post-copy, to be collected; the destination may
    /// be `ready` earlier.
    Ending { ready: bool },
    /// Waits for `Ready`; or, for an early commit, for its record.
    AwaitingReady,
    /// Waits for the record of the commit. From here on the source does not own the guest.
    Deciding,
    /// Waits for the destination's answer to the decision; the guest is paused.
    Asking { decision: Decision, trouble: Option<MigrationError> },
    /// Post-copy: the guest runs at the destination. Waits until that has all of its memory, which
    /// is kept here, as is the paused guest.
    Serving,
    /// Waits for the record that takes the guest back; `notify` is whether the destination must
    /// then be notified, and `asked` the decision that it was asked about before an operator
    /// ordered this.
    Reclaiming { error: MigrationError, notify: bool, asked: Option<Decision> },
    /// Waits for the guest to be resumed and the destination to be told.
    Unwinding(Unwind),
    /// Waits for the operator.
    InDoubt,
    /// Waits for the last record.
    Closing { outcome: Outcome, error: Option<MigrationError> },
    /// Waits for nothing: the migration is over on this side.
    Settled,
}

impl State {
    /// Returns whether nothing is decided yet, neither the commit nor an abort: the source owns the
    /// guest.
    pub(super) const fn is_uncommitted(&self) -> bool {
        !matches!(
            self,
            Self::Deciding
                | Self::Asking { .. }
                | Self::Serving
                | Self::Reclaiming { .. }
                | Self::Unwinding(_)
                | Self::InDoubt
                | Self::Closing { .. }
                | Self::Settled
        )
    }

    /// Returns what the source is doing, for errors.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Opening => "writing its record",
            Self::Greeting => "agreeing on a version",
            Self::Describing => "having the guest prepared",
            Self::Starting => "starting to copy",
            Self::Probing | Self::Resting { .. } | Self::MeasuringRecord => {
                "measuring the switchover"
            }
            Self::Copying => "sending memory",
            Self::Reconnecting => "trying to reach the destination again",
            Self::Draining | Self::Clearing => "preparing post-copy",
            Self::Serving => "sending the rest of memory",
            Self::Pausing => "pausing the guest",
            Self::Finishing { .. } | Self::Ending { .. } => "sending the last pages and the state",
            Self::Returning { .. } => "calling the hand-over off",
            Self::AwaitingReady => "waiting to hand the guest over",
            Self::Deciding | Self::Asking { .. } => "handing the guest over",
            Self::Reclaiming { .. } | Self::Unwinding(_) => "taking the guest back",
            Self::InDoubt => "waiting for the operator",
            Self::Closing { .. } | Self::Settled => "closing the migration",
        }
    }
}

/// A migration that is being undone: the guest resumes here.
#[derive(Debug)]
pub(super) struct Unwind {
    pub(super) error: MigrationError,
    pub(super) guest: GuestBack,
    pub(super) notice: PeerNotice,
    /// Whether the outcome was already reported.
    pub(super) reported: bool,
    /// Whether the last record is being written.
    pub(super) recording: bool,
    /// Whether the destination runs its copy, because its operator ordered that meanwhile.
    pub(super) runs_there: bool,
}

impl Unwind {
    /// Creates an unwind for a guest in the state `guest`; nothing is reported or recorded yet.
    pub(super) const fn new(error: MigrationError, guest: GuestBack, notice: PeerNotice) -> Self {
        Self { error, guest, notice, reported: false, recording: false, runs_there: false }
    }

    /// Returns the final state of the record. While both copies may run, it stays undecided: when
    /// this process has ended, the node asks the destination.
    pub(super) fn end(&self) -> SourceState {
        match (self.runs_there, &self.guest) {
            (false, _) => SourceState::Aborted,
            (true, GuestBack::Gone) => SourceState::Done,
            (true, _) => SourceState::Undecided,
        }
    }

    /// Returns what an operator can do for the guest `name` if it could not be resumed and runs
    /// nowhere else.
    pub(super) fn way_out(&self, name: &str) -> Option<String> {
        match (&self.guest, &self.error.failure) {
            (GuestBack::Stuck(_), Failure::Forced) => None,
            (GuestBack::Stuck(error), _) => Some(crate::report::resume_again(name, error)),
            _ => None,
        }
    }
}

/// The progress of bringing the guest back here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GuestBack {
    /// It was asked to pause; whether to resume it is known only afterwards.
    Pausing,
    /// It was asked to resume.
    Resuming,
    /// It is as it was before the migration.
    Back,
    /// It could not be resumed and stays paused.
    Stuck(GuestError),
    /// It has ended.
    Gone,
}

/// Whether the destination knows that the migration is aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PeerNotice {
    /// It knows, or will notice the loss of the connection.
    Done,
    /// It was told, and must confirm that its copy is gone. It also finds out without that.
    Asked,
    /// It may keep a copy that can be of no use, and waits for this side for a while: as long as
    /// that, this side tries to tell it.
    OwedUntil(Duration),
    /// It may be ready, and then waits for the decision without limit: this side retries until it
    /// has been told.
    Owed,
}

/// The connection, and when to reconnect.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) status: LinkStatus,
    /// Connections that failed in a row.
    pub(super) failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkStatus {
    /// It is up; with the deadline for an answer, if one is expected.
    Up { answer_by: Option<Duration> },
    /// It is down; with the time of the next attempt, if there is to be one.
    Down { redial_at: Option<Duration> },
    /// An attempt is under way.
    Dialing,
}

impl Link {
    pub(super) fn new() -> Self {
        Self { status: LinkStatus::Dialing, failures: 0 }
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self.status, LinkStatus::Up { .. })
    }

    pub(super) fn up(&mut self) {
        self.status = LinkStatus::Up { answer_by: None };
    }

    pub(super) fn down(&mut self) {
        self.status = LinkStatus::Down { redial_at: None };
    }

    /// Sets the deadline for an answer on the current connection.
    pub(super) fn expect_answer(&mut self, now: Duration) {
        self.status = LinkStatus::Up { answer_by: Some(now + COMMIT_ANSWER) };
    }

    /// Sets the deadline for the destination to say what it lacks or has, on the current
    /// connection.
    pub(super) fn expect_list(&mut self, now: Duration) {
        self.status = LinkStatus::Up { answer_by: Some(now + LIST_ANSWER) };
    }

    /// Plans the next attempt, unless one is under way.
    pub(super) fn plan_redial(&mut self, now: Duration) {
        if self.status == LinkStatus::Dialing {
            return;
        }
        let pause = REDIAL_FIRST.saturating_mul(1 << self.failures.min(16)).min(REDIAL_LAST);
        self.failures = self.failures.saturating_add(1);
        self.status = LinkStatus::Down { redial_at: Some(now + pause) };
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        match self.status {
            LinkStatus::Up { answer_by } => answer_by,
            LinkStatus::Down { redial_at } => redial_at,
            LinkStatus::Dialing => None,
        }
    }
}
