//! The interface of a running migration to the rest of the program.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{mpsc, oneshot, watch};

use crate::destination::Destination;
use crate::error::{
    CancelRefused, ChangeRefused, OperatorChoice, PostcopyRefused, RecoverRefused, ResolveRefused,
};
use crate::limits::LimitsChange;
use crate::progress::{Progress, Role};
use crate::protocol::MigrationId;
use crate::report::Report;
use crate::source::Source;
use crate::text::PeerText;

/// A request from the program to a session.
#[derive(Debug)]
pub(super) enum Command {
    Cancel { by: PeerText, answer: oneshot::Sender<Result<(), CancelRefused>> },
    Change { change: LimitsChange, answer: oneshot::Sender<Result<(), ChangeRefused>> },
    Postcopy { answer: oneshot::Sender<Result<(), PostcopyRefused>> },
    Recover { address: SocketAddr, answer: oneshot::Sender<Result<(), RecoverRefused>> },
    Resolve { choice: OperatorChoice, answer: oneshot::Sender<Result<(), ResolveRefused>> },
    GuestStopped { detail: PeerText },
}

/// What remains of a [`Command`] to do, apart from the answer.
#[derive(Debug)]
pub(super) enum PendingCommand {
    Cancel {
        by: PeerText,
    },
    Change(LimitsChange),
    Postcopy,
    /// Answered once the address is recorded.
    Recover {
        address: SocketAddr,
        answer: oneshot::Sender<Result<(), RecoverRefused>>,
    },
    Resolve(OperatorChoice),
    GuestStopped {
        detail: PeerText,
    },
}

/// The commands that a state machine accepts now.
pub(super) trait Commanded {
    fn can_cancel(&self) -> Result<(), CancelRefused>;
    fn can_change(&self, change: &LimitsChange) -> Result<(), ChangeRefused>;
    fn can_postcopy(&self) -> Result<(), PostcopyRefused>;
    fn can_recover(&self) -> Result<(), RecoverRefused>;
    fn can_resolve(&self, choice: OperatorChoice) -> Result<(), ResolveRefused>;
}

impl Commanded for Source {
    fn can_cancel(&self) -> Result<(), CancelRefused> {
        Self::can_cancel(self)
    }

    fn can_change(&self, change: &LimitsChange) -> Result<(), ChangeRefused> {
        Self::can_change(self, change)
    }

    fn can_postcopy(&self) -> Result<(), PostcopyRefused> {
        Self::can_postcopy(self)
    }

    fn can_recover(&self) -> Result<(), RecoverRefused> {
        Self::can_recover(self)
    }

    fn can_resolve(&self, choice: OperatorChoice) -> Result<(), ResolveRefused> {
        Self::can_resolve(self, choice)
    }
}

impl Commanded for Destination {
    fn can_cancel(&self) -> Result<(), CancelRefused> {
        Self::can_cancel(self)
    }

    fn can_change(&self, _: &LimitsChange) -> Result<(), ChangeRefused> {
        Err(ChangeRefused::NotHere)
    }

    fn can_postcopy(&self) -> Result<(), PostcopyRefused> {
        Err(PostcopyRefused::NotHere)
    }

    fn can_recover(&self) -> Result<(), RecoverRefused> {
        Err(RecoverRefused::NotHere)
    }

    fn can_resolve(&self, choice: OperatorChoice) -> Result<(), ResolveRefused> {
        Self::can_resolve(self, choice)
    }
}

impl Command {
    /// Asks the machine whether the command is allowed; returns what is to be done, if anything,
    /// and the answer, to be given after it is done.
    pub(super) fn ask(self, machine: &impl Commanded) -> (Option<PendingCommand>, Answer) {
        match self {
            Self::Cancel { by, answer } => {
                let may = machine.can_cancel();
                (may.is_ok().then_some(PendingCommand::Cancel { by }), Answer::Cancel(answer, may))
            }
            Self::Change { change, answer } => {
                let may = machine.can_change(&change);
                let pending = may.is_ok().then_some(PendingCommand::Change(change));
                (pending, Answer::Change(answer, may))
            }
            Self::Postcopy { answer } => {
                let may = machine.can_postcopy();
                (may.is_ok().then_some(PendingCommand::Postcopy), Answer::Postcopy(answer, may))
            }
            Self::Recover { address, answer } => match machine.can_recover() {
                Ok(()) => (Some(PendingCommand::Recover { address, answer }), Answer::Unneeded),
                Err(refused) => (None, Answer::Unrecovered(answer, refused)),
            },
            Self::Resolve { choice, answer } => {
                let may = machine.can_resolve(choice);
                (
                    may.is_ok().then_some(PendingCommand::Resolve(choice)),
                    Answer::Resolve(answer, may),
                )
            }
            Self::GuestStopped { detail } => {
                (Some(PendingCommand::GuestStopped { detail }), Answer::Unneeded)
            }
        }
    }
}

/// The answer to a command, given only once progress shows what the command has changed.
#[derive(Debug)]
pub(super) enum Answer {
    Cancel(oneshot::Sender<Result<(), CancelRefused>>, Result<(), CancelRefused>),
    Change(oneshot::Sender<Result<(), ChangeRefused>>, Result<(), ChangeRefused>),
    Postcopy(oneshot::Sender<Result<(), PostcopyRefused>>, Result<(), PostcopyRefused>),
    Unrecovered(oneshot::Sender<Result<(), RecoverRefused>>, RecoverRefused),
    Resolve(oneshot::Sender<Result<(), ResolveRefused>>, Result<(), ResolveRefused>),
    Unneeded,
}

impl Answer {
    pub(super) fn give(self) {
        // The receiver may have been dropped meanwhile.
        match self {
            Self::Cancel(to, answer) => drop(to.send(answer)),
            Self::Change(to, answer) => drop(to.send(answer)),
            Self::Postcopy(to, answer) => drop(to.send(answer)),
            Self::Unrecovered(to, refused) => drop(to.send(Err(refused))),
            Self::Resolve(to, answer) => drop(to.send(answer)),
            Self::Unneeded => {}
        }
    }
}

/// A running migration, seen from the rest of the program. Dropping it does not affect the
/// migration.
#[derive(Debug, Clone)]
pub struct Handle {
    migration: MigrationId,
    port: u16,
    commands: mpsc::UnboundedSender<Command>,
    progress: watch::Receiver<Progress>,
    report: watch::Receiver<Option<Report>>,
    over: watch::Receiver<bool>,
    has_committed: Arc<AtomicBool>,
}

impl Handle {
    /// Returns the migration.
    pub fn migration(&self) -> MigrationId {
        self.migration
    }

    /// Returns the UDP port on which a destination waits for its source; 0 at a source.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the progress, updated at each change and about ten times a second while pages are
    /// sent.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Cancels the migration on behalf of `by`; the report has the outcome.
    ///
    /// # Errors
    /// If it is too late to cancel.
    pub async fn cancel(&self, by: &str) -> Result<(), CancelRefused> {
        self.ask(|answer| Command::Cancel { by: by.into(), answer }, CancelRefused::Over).await
    }

    /// Changes the limits of a source.
    ///
    /// # Errors
    /// If it is too late, for what is to change, or this is not the source.
    pub async fn change(&self, change: LimitsChange) -> Result<(), ChangeRefused> {
        self.ask(|answer| Command::Change { change, answer }, ChangeRefused::Over).await
    }

    /// Hands the guest of a source over before its memory, as soon as the current step ends.
    ///
    /// # Errors
    /// If one of the sides cannot, it is too late, or this is not the source.
    pub async fn postcopy(&self) -> Result<(), PostcopyRefused> {
        self.ask(|answer| Command::Postcopy { answer }, PostcopyRefused::Over).await
    }

    /// Has a source look for its destination's node at another address once its record says so; the
    /// process that received the guest is at the same one.
    ///
    /// # Errors
    /// If there is nothing to be heard of the destination, this is not the source, or the record
    /// cannot be written: the former address stays then.
    pub async fn recover(&self, address: SocketAddr) -> Result<(), RecoverRefused> {
        self.ask(|answer| Command::Recover { address, answer }, RecoverRefused::Over).await
    }

    /// Decides for a migration in doubt.
    ///
    /// # Errors
    /// If there is nothing to decide.
    pub async fn resolve(&self, choice: OperatorChoice) -> Result<(), ResolveRefused> {
        self.ask(|answer| Command::Resolve { choice, answer }, ResolveRefused::Over).await
    }

    /// Has the driver carry out a command; returns its answer, or `over` if it has ended.
    async fn ask<E>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<(), E>>) -> Command,
        over: E,
    ) -> Result<(), E> {
        let (answer, answered) = oneshot::channel();
        // A command that cannot be sent is dropped, and its answer with it.
        let _ = self.commands.send(command(answer));
        answered.await.unwrap_or(Err(over))
    }

    /// Tells a source that its guest has ended on its own.
    pub fn guest_stopped(&self, detail: &str) {
        let _ = self.commands.send(Command::GuestStopped { detail: detail.into() });
    }

    /// Returns whether a source has told its destination to run the guest, or is about to: without
    /// that, the destination never does, whatever the record here says.
    pub fn has_committed(&self) -> bool {
        self.has_committed.load(Ordering::Acquire)
    }

    /// Returns the report once there is one; a report in doubt is followed by another.
    pub fn report(&self) -> watch::Receiver<Option<Report>> {
        self.report.clone()
    }

    /// Waits until no task, socket or thread of the migration is left; returns the last report.
    pub async fn settled(&self) -> Option<Report> {
        let _ = self.over.clone().wait_for(|&over| over).await;
        self.report.borrow().clone()
    }
}

/// The session's ends of the channels of a [`Handle`].
#[derive(Debug)]
pub(super) struct SessionChannels {
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) report: watch::Sender<Option<Report>>,
    pub(super) has_committed: Arc<AtomicBool>,
}

/// Creates a handle for this side of `migration` and the session's ends of its channels; the last
/// one is set to true at the end.
pub(super) fn handle(
    migration: MigrationId,
    role: Role,
) -> (Handle, SessionChannels, watch::Sender<bool>) {
    let (ask, commands) = mpsc::unbounded_channel();
    let (progress, progress_seen) = watch::channel(Progress::new(migration, role));
    let (report, report_seen) = watch::channel(None);
    let (over, over_seen) = watch::channel(false);
    let handle = Handle {
        migration,
        port: 0,
        commands: ask,
        progress: progress_seen,
        report: report_seen,
        over: over_seen,
        has_committed: Arc::default(),
    };
    let has_committed = Arc::clone(&handle.has_committed);
    (handle, SessionChannels { commands, progress, report, has_committed }, over)
}

impl Handle {
    pub(super) fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }
}

#[cfg(test)]
impl Handle {
    /// Waits for the first report; none only if a bug killed the session's thread.
    pub(super) async fn reported(&self) -> Option<Report> {
        let mut report = self.report.clone();
        let found = report.wait_for(Option::is_some).await;
        found.ok().and_then(|report| report.clone())
    }

    /// Returns whether nothing of the migration is left; see [`Handle::settled`].
    pub(super) fn is_over(&self) -> bool {
        *self.over.borrow()
    }
}
