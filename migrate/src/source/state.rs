//! The source's states, each named after what it waits for.

use std::time::Duration;

use crate::error::{Failure, MigrationError};
use crate::guest::GuestError;
use crate::protocol::Decision;
use crate::record::SourceState;
use crate::report::Outcome;

/// Longest wait for the answer to a commit before the connection is made anew.
const COMMIT_ANSWER: Duration = Duration::from_secs(10);
/// First pause before the connection is made anew; each further one is twice as long.
const REDIAL_FIRST: Duration = Duration::from_millis(100);
/// Longest pause before the connection is made anew.
const REDIAL_LAST: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) enum State {
    /// For the first connection.
    Connecting,
    /// For the first record.
    Opening,
    /// For the answer to `Hello`.
    Greeting,
    /// For the answer to `Prepare`.
    Describing,
    /// For streams and dirty log.
    Starting,
    /// For the dry run of the last step.
    Probing,
    /// For a round.
    Copying,
    /// For a time at which the switchover may be measured to be faster.
    Resting { until: Duration },
    /// For a record that is written again to see how long that takes now.
    Weighing,
    /// For the guest to stand.
    Pausing,
    /// For the last round, the flush of the disks, and the state.
    Finishing { round_sent: bool, flushed: bool, saved: bool },
    /// For the remainder; the destination may be faster.
    Ending { ready: bool },
    /// For `Ready`.
    AwaitingReady,
    /// For the record of the commit. From here on the guest is not the source's.
    Deciding,
    /// For the destination's answer to what was decided; the guest stands.
    Asking { decision: Decision, trouble: Option<MigrationError> },
    /// For the record that takes the guest back; whether the destination is then to be told, and
    /// what it was asked until an operator ordered this.
    Reclaiming { error: MigrationError, tell: bool, asked: Option<Decision> },
    /// For the guest to be back and the destination to be told.
    Unwinding(Unwind),
    /// For the operator.
    InDoubt,
    /// For the last record.
    Closing { outcome: Outcome, error: Option<MigrationError> },
    /// For nothing.
    Settled,
}

impl State {
    /// Whether the guest is the source's, and nobody has said otherwise.
    pub(super) const fn is_uncommitted(&self) -> bool {
        !matches!(
            self,
            Self::Deciding
                | Self::Asking { .. }
                | Self::Reclaiming { .. }
                | Self::Unwinding(_)
                | Self::InDoubt
                | Self::Closing { .. }
                | Self::Settled
        )
    }

    /// What the source was doing, for errors.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Opening => "writing its record",
            Self::Greeting => "agreeing on a version",
            Self::Describing => "having the guest prepared",
            Self::Starting => "starting to copy",
            Self::Probing | Self::Resting { .. } | Self::Weighing => "measuring the switchover",
            Self::Copying => "sending memory",
            Self::Pausing => "pausing the guest",
            Self::Finishing { .. } | Self::Ending { .. } => "sending the last pages and the state",
            Self::AwaitingReady => "waiting for the destination to be ready",
            Self::Deciding | Self::Asking { .. } => "handing the guest over",
            Self::Reclaiming { .. } | Self::Unwinding(_) => "taking the guest back",
            Self::InDoubt => "waiting for the operator",
            Self::Closing { .. } | Self::Settled => "closing the migration",
        }
    }
}

/// The way back to a guest that runs here.
#[derive(Debug)]
pub(super) struct Unwind {
    pub(super) error: MigrationError,
    pub(super) guest: GuestBack,
    pub(super) telling: Telling,
    /// The outcome was reported already.
    pub(super) reported: bool,
    /// The last record is being written.
    pub(super) recording: bool,
    /// The destination runs its copy: its operator has ordered that meanwhile.
    pub(super) runs_there: bool,
}

impl Unwind {
    /// One in which the guest is to be `guest`, and the destination is yet to be told.
    pub(super) const fn new(error: MigrationError, guest: GuestBack, telling: Telling) -> Self {
        Self { error, guest, telling, reported: false, recording: false, runs_there: false }
    }

    /// What is to be on disk in the end. While both copies may run, the record stays undecided:
    /// when this process has ended, the node asks the destination.
    pub(super) fn end(&self) -> SourceState {
        match (self.runs_there, &self.guest) {
            (false, _) => SourceState::Aborted,
            (true, GuestBack::Gone) => SourceState::Done,
            (true, _) => SourceState::Undecided,
        }
    }

    /// What an operator can do for the guest `name` when it did not go on, and runs nowhere else.
    pub(super) fn way_out(&self, name: &str) -> Option<String> {
        match (&self.guest, &self.error.failure) {
            (GuestBack::Stuck(_), Failure::Forced) => None,
            (GuestBack::Stuck(error), _) => Some(crate::report::resume_again(name, error)),
            _ => None,
        }
    }
}

/// How far the guest is on its way back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum GuestBack {
    /// It has been asked to pause; only then is known whether it is to go on.
    Pausing,
    /// It has been asked to go on.
    Resuming,
    /// It is as it was before the migration.
    Back,
    /// It could not go on and stays paused.
    Stuck(GuestError),
    /// It has ended.
    Gone,
}

/// Whether the destination knows that the migration is off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Telling {
    /// It does, or will find out by the loss of the connection.
    Told,
    /// It has been told and is to say that its copy is gone. It finds out by itself, too.
    Asked,
    /// It may be ready, and then waits to be told, however long: it is tried until it has been.
    Owed,
}

/// The connection, and when to make it anew.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) status: LinkStatus,
    /// Connections that failed in a row.
    pub(super) failures: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LinkStatus {
    /// There is one; with a time by which an answer must have come.
    Up { answer_by: Option<Duration> },
    /// There is none; with a time at which to make one.
    Down { redial_at: Option<Duration> },
    /// One is being made.
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

    /// An answer is expected on the connection that is up.
    pub(super) fn expect_answer(&mut self, now: Duration) {
        self.status = LinkStatus::Up { answer_by: Some(now + COMMIT_ANSWER) };
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
