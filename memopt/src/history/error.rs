//! Why something cannot be kept or read.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::run::{RunId, State};

/// What is wrong with a history, or with what is to be kept in it.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// It cannot be opened, read or written.
    #[error("cannot use the history {path}: {cause}", path = path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The disk has no room.
    #[error("there is no room to write the history {path}: {cause}; free some space on its disk", path = path.display())]
    Full {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// Another process has it.
    #[error("the history {path} is in use by another process: a host has one node", path = path.display())]
    InUse {
        /// The folder.
        path: PathBuf,
    },
    /// The last times of schedules cannot be read.
    #[error(
        "{path} is damaged: {cause}; it stays where it is: move it away and a new one is begun",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// It was given up after an earlier error.
    #[error("the history {path} is closed since an error: open it again", path = path.display())]
    Closed {
        /// The folder.
        path: PathBuf,
    },
    /// There is no such run, or not any more.
    #[error("there is no run {0} in the history")]
    NoSuchRun(RunId),
    /// There is no such action in a run.
    #[error("run {run} has no action {index}")]
    NoSuchAction {
        /// The run.
        run: RunId,
        /// The action, from 0.
        index: u32,
    },
    /// A run that has ended cannot be added to.
    #[error("run {run} is {state}: it cannot be changed")]
    Ended {
        /// The run.
        run: RunId,
        /// How it ended.
        state: State,
    },
    /// Too much for one run.
    #[error("{what} is too large for the history: more than {max}")]
    TooLarge {
        /// What.
        what: &'static str,
        /// The limit, with its unit.
        max: String,
    },
    /// It cannot be written as JSON.
    #[error("{what} cannot be put down as JSON: {cause}")]
    Unwritable {
        /// What.
        what: &'static str,
        /// What serde says.
        cause: serde_json::Error,
    },
    /// Another version wrote it, or its log is damaged.
    #[error("run {run} cannot be read: {cause}")]
    Unreadable {
        /// The run.
        run: RunId,
        /// What is wrong with it.
        cause: String,
    },
}

impl HistoryError {
    /// What the system says of the history at `path`. Not of which file in it: the same fault has
    /// the same text, so that it is said once.
    pub(super) fn of(path: &Path, cause: std::io::Error) -> Self {
        let path = path.to_owned();
        match cause.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::Full { path, cause }
            }
            _ => Self::Io { path, cause },
        }
    }

    /// Whether the history cannot be used after it until it is opened again.
    pub(super) const fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Io { .. } | Self::Full { .. } | Self::Damaged { .. } | Self::Closed { .. }
        )
    }
}
