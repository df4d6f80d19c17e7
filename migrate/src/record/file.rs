//! The file of a record: a [`Log`] with [`ROOM_BYTES`] of room. Each line is a whole [`Record`] as
//! JSON, and the last line that is intact counts.
//!
//! A change is one line written over padding and one flush of data, with no change of length or
//! folder: this is on the way of a paused guest.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use regular_file::log::{Lines, Log};

use super::Record;

/// Length of a file of records, unless one record alone needs more.
const ROOM_BYTES: usize = 16 << 10;
/// Longest file that is read.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 20;

/// A record that could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file system said no.
    #[error("cannot {operation} migration record {}: {cause}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On what file.
        path: PathBuf,
        /// What the file system said.
        cause: std::io::Error,
    },
    /// The file is no record.
    #[error("{} is no migration record: {detail}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
}

impl RecordError {
    /// The file or folder that it is about.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. } | Self::Damaged { path, .. } => path,
        }
    }
}

/// An open record of one side of one migration.
#[derive(Debug)]
pub struct RecordFile(Log);

impl RecordFile {
    /// Writes a file beside `path`, readable by its owner alone (it holds a token), and moves it
    /// there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn create(path: &Path, record: &Record) -> Result<Self, RecordError> {
        Self::create_with_room(path, record, ROOM_BYTES)
    }

    /// As [`Self::create`], without room for further lines.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn create_compact(path: &Path, record: &Record) -> Result<(), RecordError> {
        Self::create_with_room(path, record, 0).map(drop)
    }

    fn create_with_room(path: &Path, record: &Record, room: usize) -> Result<Self, RecordError> {
        let log = Log::create(path, &to_json(record, path)?, room);
        log.map(Self).map_err(|cause| io("write", path, cause))
    }

    /// Opens the file at `path`, to go on with it.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub(super) fn open(path: &Path) -> Result<Self, RecordError> {
        let opened = Log::open(path, MAX_FILE_BYTES, ROOM_BYTES);
        let (log, lines) = opened.map_err(|cause| io("open", path, cause))?;
        last_intact(&lines).map_err(|detail| damaged(path, detail))?;
        Ok(Self(log))
    }

    /// Replaces the record; it is durable when this returns. Cheap: one write and one flush of
    /// data, no change of the folder, unless the record has outgrown its file.
    ///
    /// # Errors
    /// When it cannot be written; whether the old or the new one will be read then is not known.
    pub fn write(&mut self, record: &Record) -> Result<(), RecordError> {
        let json = to_json(record, self.0.path())?;
        self.0.append(&json).map_err(|cause| io("write", self.0.path(), cause))
    }
}

pub(super) fn io(operation: &'static str, path: &Path, cause: std::io::Error) -> RecordError {
    RecordError::Io { operation, path: path.to_owned(), cause }
}

pub(super) fn damaged(path: &Path, detail: String) -> RecordError {
    RecordError::Damaged { path: path.to_owned(), detail }
}

fn to_json(record: &Record, path: &Path) -> Result<Vec<u8>, RecordError> {
    serde_json::to_vec(record).map_err(|error| damaged(path, error.to_string()))
}

pub(super) fn flush_folder_of(path: &Path) -> Result<(), RecordError> {
    regular_file::sync_folder_of(path).map_err(|cause| io("flush the folder of", path, cause))
}

/// The record in the file at `path`; none when there is no such file.
///
/// # Errors
/// When it is there and cannot be read.
pub(super) fn read(path: &Path) -> Result<Option<Record>, RecordError> {
    let lines = match Lines::read(path, MAX_FILE_BYTES) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        lines => lines.map_err(|cause| io("read", path, cause))?,
    };
    last_intact(&lines).map(Some).map_err(|detail| damaged(path, detail))
}

fn last_intact(lines: &Lines) -> Result<Record, String> {
    let mut error = "it holds no record".to_owned();
    for line in lines.iter().rev() {
        match line.map(serde_json::from_slice) {
            Ok(Ok(record)) => return Ok(record),
            Ok(Err(detail)) => error = detail.to_string(),
            Err(detail) => detail.clone_into(&mut error),
        }
    }
    Err(error)
}
