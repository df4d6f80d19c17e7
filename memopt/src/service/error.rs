//! The errors of the service.

use thiserror::Error;

use crate::history::RunId;
use crate::schedule::Trigger;

/// The reason why the service refused or failed a request.
#[derive(Debug, Error)]
pub enum ServiceError {
    /// The host or a hypervisor cannot be inspected.
    #[error("{0}")]
    Inspect(String),
    /// The state that is needed to undo a step cannot be saved.
    #[error("{0}")]
    Unremembered(String),
    /// `lighter.toml` is invalid and was never valid since the service started, or the goal of a
    /// schedule is invalid.
    #[error("{0}")]
    Settings(String),
    /// Another run is in progress; there is only one at a time.
    #[error("a run is under way ({running}): wait for its end, or `lighter density cancel`")]
    Busy {
        /// What started the other run.
        running: Trigger,
    },
    /// The scheduler did not start the run and gave no reason.
    #[error("no run can begin now: try again")]
    NotNow,
    /// The run has ended, or never existed.
    #[error("run {0} is not under way")]
    NotUnderWay(RunId),
    /// The history has no run with this number.
    #[error("there is no run {0}")]
    NoSuchRun(RunId),
    /// The record of the run cannot be read.
    #[error("{0}")]
    Unreadable(String),
    /// The history's folder cannot be used.
    #[error("no history is kept of runs: the node's log says why")]
    NoHistory,
    /// The service panicked during the request, has ended, or took too long.
    #[error("memory optimization does not answer: see the node's log")]
    Silent,
}
