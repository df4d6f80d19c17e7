//! What the rest of the program holds of a running migration.

use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{CancelRefused, OperatorChoice, ResolveRefused};
use crate::progress::{Progress, Role};
use crate::protocol::MigrationId;
use crate::report::Report;
use crate::text::PeerText;

/// Asks of the program to a session.
#[derive(Debug)]
pub(super) enum Command {
    Cancel { by: PeerText, answer: oneshot::Sender<Result<(), CancelRefused>> },
    Resolve { choice: OperatorChoice, answer: oneshot::Sender<Result<(), ResolveRefused>> },
    GuestStopped { detail: PeerText },
}

/// What is left of a [`Command`] when whoever asked has been answered.
#[derive(Debug)]
pub(super) enum Ordered {
    Cancel { by: PeerText },
    Resolve(OperatorChoice),
    GuestStopped { detail: PeerText },
}

impl Command {
    /// Asks the machine whether it may be; returns what is to be done, if anything, and the answer,
    /// to be given once it is.
    pub(super) fn ask(
        self,
        can_cancel: impl FnOnce() -> Result<(), CancelRefused>,
        can_resolve: impl FnOnce(OperatorChoice) -> Result<(), ResolveRefused>,
    ) -> (Option<Ordered>, Answer) {
        match self {
            Self::Cancel { by, answer } => {
                let may = can_cancel();
                (may.is_ok().then_some(Ordered::Cancel { by }), Answer::Cancel(answer, may))
            }
            Self::Resolve { choice, answer } => {
                let may = can_resolve(choice);
                (may.is_ok().then_some(Ordered::Resolve(choice)), Answer::Resolve(answer, may))
            }
            Self::GuestStopped { detail } => {
                (Some(Ordered::GuestStopped { detail }), Answer::Nobody)
            }
        }
    }
}

/// What whoever gave a command waits for: by then, progress shows what it has changed.
#[derive(Debug)]
pub(super) enum Answer {
    Cancel(oneshot::Sender<Result<(), CancelRefused>>, Result<(), CancelRefused>),
    Resolve(oneshot::Sender<Result<(), ResolveRefused>>, Result<(), ResolveRefused>),
    Nobody,
}

impl Answer {
    pub(super) fn give(self) {
        // Who has gone meanwhile does not wait for it.
        match self {
            Self::Cancel(to, answer) => drop(to.send(answer)),
            Self::Resolve(to, answer) => drop(to.send(answer)),
            Self::Nobody => {}
        }
    }
}

/// A running migration, seen from the rest of the program. Dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Handle {
    migration: MigrationId,
    port: u16,
    commands: mpsc::UnboundedSender<Command>,
    progress: watch::Receiver<Progress>,
    report: watch::Receiver<Option<Report>>,
    over: watch::Receiver<bool>,
}

impl Handle {
    /// The migration.
    pub fn migration(&self) -> MigrationId {
        self.migration
    }

    /// UDP port on which a destination waits for its source; 0 at a source.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// How it is doing, renewed at each change and about ten times a second while pages are sent.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Calls the migration off in the name of `by`; the report tells what became of it.
    ///
    /// # Errors
    /// Why it cannot be called off any more.
    pub async fn cancel(&self, by: &str) -> Result<(), CancelRefused> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Cancel { by: by.into(), answer };
        self.commands.send(command).map_err(|_| CancelRefused::Over)?;
        answered.await.unwrap_or(Err(CancelRefused::Over))
    }

    /// Decides for a migration in doubt.
    ///
    /// # Errors
    /// Why there is nothing to decide.
    pub async fn resolve(&self, choice: OperatorChoice) -> Result<(), ResolveRefused> {
        let (answer, answered) = oneshot::channel();
        let command = Command::Resolve { choice, answer };
        self.commands.send(command).map_err(|_| ResolveRefused::Over)?;
        answered.await.unwrap_or(Err(ResolveRefused::Over))
    }

    /// Tells a source that its guest has ended by itself.
    pub fn guest_stopped(&self, detail: &str) {
        let _ = self.commands.send(Command::GuestStopped { detail: detail.into() });
    }

    /// The report as far as there is one; one in doubt is followed by another.
    pub fn report(&self) -> watch::Receiver<Option<Report>> {
        self.report.clone()
    }

    /// Waits until nothing of the migration is left, no task, socket or thread; returns the last
    /// report.
    pub async fn settled(&self) -> Option<Report> {
        let _ = self.over.clone().wait_for(|&over| over).await;
        self.report.borrow().clone()
    }
}

/// The session's ends of a [`Handle`].
#[derive(Debug)]
pub(super) struct Board {
    pub(super) commands: mpsc::UnboundedReceiver<Command>,
    pub(super) progress: watch::Sender<Progress>,
    pub(super) report: watch::Sender<Option<Report>>,
}

/// Makes a handle for this side of `migration` and the session's ends of it; the last one is set to
/// true at the end.
pub(super) fn handle(migration: MigrationId, role: Role) -> (Handle, Board, watch::Sender<bool>) {
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
    };
    (handle, Board { commands, progress, report }, over)
}

impl Handle {
    pub(super) fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }
}

#[cfg(test)]
impl Handle {
    /// Waits for the first report. None only when the session's thread was killed by a bug.
    pub(super) async fn reported(&self) -> Option<Report> {
        let mut report = self.report.clone();
        let found = report.wait_for(Option::is_some).await;
        found.ok().and_then(|report| report.clone())
    }

    /// Whether nothing of the migration is left; see [`Handle::settled`].
    pub(super) fn is_over(&self) -> bool {
        *self.over.borrow()
    }
}
