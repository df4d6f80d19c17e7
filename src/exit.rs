//! Exit codes: what a script learns about the outcome without parsing messages.

use std::fmt;
use std::process::{ExitCode, ExitStatus};

/// How a command ended, as the shell sees it. Exit code 2 is clap's, for a wrong command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command succeeded.
    Done,
    /// The command failed.
    Failed,
    /// The guest is paused here, and this host does not know whether the other host runs it.
    InDoubt,
    /// The guest found its memory damaged.
    Corrupt,
    /// The outcome is unknown: a migration continues and is no longer followed.
    Unwatched,
    /// A user cancelled it.
    Cancelled,
}

impl Exit {
    /// Returns how a process of this program ended; one that a signal ended has failed.
    pub(crate) fn of(status: ExitStatus) -> Self {
        let all = [Self::Done, Self::InDoubt, Self::Corrupt, Self::Unwatched, Self::Cancelled];
        let is_it = |exit: &Self| status.code() == Some(i32::from(exit.code()));
        all.into_iter().find(is_it).unwrap_or(Self::Failed)
    }

    /// Returns the exit code for the shell.
    pub(crate) fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::InDoubt => 3,
            Self::Corrupt => 4,
            Self::Unwatched => 5,
            Self::Cancelled => 130,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

/// An error with an exit code other than 1; `main` searches the error chain for it.
#[derive(Debug)]
pub(crate) struct ExitWith {
    /// The exit code.
    pub(crate) exit: Exit,
    /// What failed, as the user reads it.
    pub(crate) message: String,
}

impl fmt::Display for ExitWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ExitWith {}

/// Returns the exit code for an error.
pub(crate) fn of_error(error: &anyhow::Error) -> Exit {
    error.downcast_ref::<ExitWith>().map_or(Exit::Failed, |with| with.exit)
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use anyhow::Context;

    use super::*;

    #[test]
    fn the_exit_code_of_a_process_says_how_it_ended() {
        let exit = |code: i32| Exit::of(ExitStatus::from_raw(code << 8));
        assert_eq!(
            [0, 1, 4, 130].map(exit),
            [Exit::Done, Exit::Failed, Exit::Corrupt, Exit::Cancelled]
        );
        assert_eq!(Exit::of(ExitStatus::from_raw(9)), Exit::Failed);
    }

    #[test]
    fn an_error_keeps_its_code_under_context() {
        let error = anyhow::Error::from(ExitWith {
            exit: Exit::Cancelled,
            message: "cancelled".to_owned(),
        });
        assert_eq!(
            of_error(&Err::<(), _>(error).context("cannot migrate").unwrap_err()),
            Exit::Cancelled
        );
        assert_eq!(of_error(&anyhow::anyhow!("no")), Exit::Failed);
    }
}
