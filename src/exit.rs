//! Exit codes: what a script learns from the program without reading its messages.

use std::fmt;
use std::process::ExitCode;

/// How a verb ended, as the shell sees it. 2 is clap's, for a wrong command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done,
    /// It failed.
    Failed,
    /// The guest is paused here, and nobody here knows whether the other host runs it.
    InDoubt,
    /// The guest found its memory damaged.
    Corrupt,
    /// Not known: a migration goes on, and is not watched any more.
    Unwatched,
    /// Somebody called it off.
    Cancelled,
}

impl Exit {
    /// The number for the shell.
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

/// An error that asks for another exit code than 1; `main` looks for it in the chain.
#[derive(Debug)]
pub(crate) struct ExitWith {
    /// The code to end with.
    pub(crate) exit: Exit,
    /// What happened.
    pub(crate) message: String,
}

impl fmt::Display for ExitWith {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ExitWith {}

/// The exit code that an error asks for.
pub(crate) fn of_error(error: &anyhow::Error) -> Exit {
    error.downcast_ref::<ExitWith>().map_or(Exit::Failed, |with| with.exit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn an_error_keeps_its_code_under_context() {
        let error = anyhow::Error::from(ExitWith {
            exit: Exit::Cancelled,
            message: "called off".to_owned(),
        });
        assert_eq!(
            of_error(&Err::<(), _>(error).context("cannot migrate").unwrap_err()),
            Exit::Cancelled
        );
        assert_eq!(of_error(&anyhow::anyhow!("no")), Exit::Failed);
    }
}
