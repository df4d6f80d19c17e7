//! The errors of the history.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::run::{RunId, State};

/// The reason why a history, or a record in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The history cannot be opened, read or written.
    #[error("cannot use the history {path}: {cause}", path = path.display())]
    Io {
        /// Folder of the history.
        path: PathBuf,
        /// The file system's error.
        cause: std::io::Error,
    },
    /// The disk is full, or a quota or a file size limit is reached.
    #[error("there is no room to write the history {path}: {cause}; free some space on its disk", path = path.display())]
    Full {
        /// Folder of the history.
        path: PathBuf,
        /// The file system's error.
        cause: std::io::Error,
    },
    /// Another process uses the history.
    #[error("the history {path} is in use by another process: a host has one node", path = path.display())]
    InUse {
        /// Folder of the history.
        path: PathBuf,
    },
    /// The last times of schedules cannot be read.
    #[error(
        "{path} is damaged: {cause}; it stays where it is: move it away and a new one is begun",
        path = path.display()
    )]
    Damaged {
        /// Path of the damaged file.
        path: PathBuf,
        /// What is wrong with the file.
        cause: String,
    },
    /// The history was closed after an earlier error.
    #[error("the history {path} is closed since an error: open it again", path = path.display())]
    Closed {
        /// Folder of the history.
        path: PathBuf,
    },
    /// The run does not exist, or was pruned.
    #[error("there is no run {0} in the history")]
    NoSuchRun(RunId),
    /// The run does not have this action.
    #[error("run {run} has no action {index}")]
    NoSuchAction {
        /// Number of the run.
        run: RunId,
        /// Index of the action, from 0.
        index: u32,
    },
    /// A run that has ended cannot be changed.
    #[error("run {run} is {state}: it cannot be changed")]
    Ended {
        /// Number of the run.
        run: RunId,
        /// The final state of the run.
        state: State,
    },
    /// A record exceeds a limit.
    #[error("{what} is too large for the history: more than {max}")]
    TooLarge {
        /// The kind of record that is too large.
        what: &'static str,
        /// The limit, with its unit.
        max: String,
    },
    /// A record cannot be written as JSON.
    #[error("{what} cannot be written as JSON: {cause}")]
    Unwritable {
        /// The kind of record.
        what: &'static str,
        /// The encoder's error.
        cause: serde_json::Error,
    },
    /// Another version wrote the run, or its log is damaged.
    #[error("run {run} cannot be read: {cause}")]
    Unreadable {
        /// Number of the run.
        run: RunId,
        /// What is wrong with its log.
        cause: String,
    },
}

impl HistoryError {
    /// Wraps a file system error of the history at `path`. It does not name the file, so that the
    /// same fault has the same text and is reported once.
    pub(super) fn of(path: &Path, cause: std::io::Error) -> Self {
        let path = path.to_owned();
        match cause.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                Self::Full { path, cause }
            }
            _ => Self::Io { path, cause },
        }
    }

    /// Whether the history has to be opened again after this error.
    pub(super) const fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Io { .. } | Self::Full { .. } | Self::Damaged { .. } | Self::Closed { .. }
        )
    }
}
