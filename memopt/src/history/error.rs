//! Why something cannot be kept or read.

use std::io::ErrorKind;
use std::path::PathBuf;

use super::run::{RunId, State};

/// What is wrong with a history, or with what is to be kept in it.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// The file cannot be opened, read or written.
    #[error("cannot use the history {path}: {cause}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// There is no room for it.
    #[error("there is no room to write the history {path}: {cause}; free some space on its disk", path = path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// Another process has it.
    #[error("the history {path} is in use by another process: a host has one node", path = path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// The file is no history, or it was damaged.
    #[error(
        "the history {path} is damaged: {cause}; it stays where it is: move it away and a new one is begun",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// Another version of the program wrote it.
    #[error(
        "the history {path} has format {found}, and this program knows {known} alone: move it away and a new one is begun",
        path = path.display()
    )]
    OtherFormat {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: String,
        /// The one that is known.
        known: String,
    },
    /// It was given up after an earlier error.
    #[error("the history {path} is closed since an error: open it again", path = path.display())]
    Closed {
        /// The file.
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
    #[error("run {run} is {state}: nothing more can be put down for it")]
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
    /// It is no JSON of the wanted kind: another version wrote it, or the file is damaged.
    #[error("{what} of run {run} cannot be read: {cause}")]
    Unreadable {
        /// What.
        what: &'static str,
        /// The run.
        run: RunId,
        /// What serde says.
        cause: serde_json::Error,
    },
    /// The store says something that no other case covers.
    #[error("the history's store failed: {0}")]
    Store(String),
}

impl HistoryError {
    /// Whether the store cannot be used after it until it is opened again.
    pub(super) const fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::Io { .. }
                | Self::Full { .. }
                | Self::Damaged { .. }
                | Self::Closed { .. }
                | Self::Store(_)
        )
    }
}

/// What goes wrong inside a transaction: with the store, or with what is wanted of it.
pub(super) enum Fault {
    /// The store.
    Store(redb::Error),
    /// What is wanted.
    Wanted(HistoryError),
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Store(error.into())
    }
}

impl Fault {
    /// In words, for the file at `path`.
    pub(super) fn at(self, path: PathBuf) -> HistoryError {
        let error = match self {
            Self::Wanted(error) => return error,
            Self::Store(error) => error,
        };
        match error {
            redb::Error::Io(cause) => match cause.kind() {
                ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                    HistoryError::Full { path, cause }
                }
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof => {
                    HistoryError::Damaged { path, cause: cause.to_string() }
                }
                _ => HistoryError::Io { path, cause },
            },
            redb::Error::DatabaseAlreadyOpen => HistoryError::InUse { path },
            redb::Error::UpgradeRequired(found) => HistoryError::OtherFormat {
                path,
                found: format!("{found} of its store"),
                known: "a newer one".to_owned(),
            },
            redb::Error::Corrupted(cause) => HistoryError::Damaged { path, cause },
            redb::Error::PreviousIo | redb::Error::DatabaseClosed => HistoryError::Closed { path },
            redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::TableDoesNotExist(_)
            | redb::Error::RepairAborted
            | redb::Error::LockPoisoned(_) => {
                HistoryError::Damaged { path, cause: error.to_string() }
            }
            other => HistoryError::Store(other.to_string()),
        }
    }
}
