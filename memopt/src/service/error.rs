//! Why the service does not do what it was asked.

use thiserror::Error;

use crate::history::RunId;
use crate::schedule::Trigger;

/// Why the service does not do what it was asked.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The host, or what runs its guests, cannot be inspected.
    #[error("{0}")]
    Inspect(String),
    /// The state that is needed to undo a step cannot be saved.
    #[error("{0}")]
    Unremembered(String),
    /// `lighter.toml` has been wrong since it was first read.
    #[error("{0}")]
    Settings(String),
    /// One run at a time.
    #[error("a run is under way ({running}): wait for its end, or `lighter density cancel`")]
    Busy {
        /// The other one.
        running: Trigger,
    },
    /// The scheduler has not said why not.
    #[error("no run can begin now: try again")]
    NotNow,
    /// It has ended, or there never was one.
    #[error("run {0} is not under way")]
    NotUnderWay(RunId),
    /// The history has none of this number.
    #[error("there is no run {0}")]
    NoSuchRun(RunId),
    /// The history's record of it cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// The history's folder cannot be used.
    #[error("no history is kept of runs: the node's log says why")]
    NoHistory,
    /// It panicked over the question, has ended, or takes too long.
    #[error("memory optimization does not answer: see the node's log")]
    Silent,
}
