//! The file of a record: a [`Log`] with [`ROOM_BYTES`] of room. Each line is a whole [`Record`] as
//! JSON; the last intact line is the current one.
//!
//! A change writes one line over padding and flushes data once, without changing the file's length
//! or its folder: a paused guest waits for it.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use regular_file::log::{Lines, Log};

use super::Record;

/// Length of a file of records, unless a single record needs more.
const ROOM_BYTES: usize = 16 << 10;
/// About the length of a record without a report.
const BLANK_BYTES: usize = 500;
/// Longest file that is read, in bytes.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 20;

/// Why a record could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// A file operation failed.
    #[error("cannot {operation} migration record {}: {cause}", path.display())]
    Io {
        /// The operation, such as `write`; completes the sentence "cannot ... migration record".
        operation: &'static str,
        /// Path of the file or folder.
        path: PathBuf,
        /// The file system's error.
        cause: std::io::Error,
    },
    /// The file is not a valid record.
    #[error("{} is not a migration record: {detail}", path.display())]
    Damaged {
        /// Path of the file that is not valid.
        path: PathBuf,
        /// What is wrong with the file.
        detail: String,
    },
}

impl RecordError {
    /// Returns the path of the file or folder that the error is about.
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
    /// Writes a file beside `path`, readable by its owner only (it holds a token), then renames it
    /// to `path`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn create(path: &Path, record: &Record) -> Result<Self, RecordError> {
        Self::create_with_room(path, record, ROOM_BYTES)
    }

    /// As [`Self::create`], without room for further lines.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn create_compact(path: &Path, record: &Record) -> Result<(), RecordError> {
        Self::create_with_room(path, record, 0).map(drop)
    }

    /// Writes a file as long as [`Self::create`] does, without a record.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn create_blank(path: &Path) -> Result<Self, RecordError> {
        Log::create(path, b"", ROOM_BYTES).map(Self).map_err(|cause| io("write", path, cause))
    }

    /// Writes a line as long as that of a record, without one.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write_blank(&mut self) -> Result<(), RecordError> {
        let line = [b' '; BLANK_BYTES];
        self.0.append(&line).map_err(|cause| io("write", self.0.path(), cause))
    }

    fn create_with_room(path: &Path, record: &Record, room: usize) -> Result<Self, RecordError> {
        let log = Log::create(path, &to_json(record, path)?, room);
        log.map(Self).map_err(|cause| io("write", path, cause))
    }

    /// Opens the file at `path`, for further writes.
    ///
    /// # Errors
    /// If it does not exist, or cannot be read.
    pub(super) fn open(path: &Path) -> Result<Self, RecordError> {
        let opened = Log::open(path, MAX_FILE_BYTES, ROOM_BYTES);
        let (log, lines) = opened.map_err(|cause| io("open", path, cause))?;
        last_intact(&lines).map_err(|detail| damaged(path, detail))?;
        Ok(Self(log))
    }

    /// Replaces the record; it is durable when this returns. Cheap: one write and one flush of
    /// data, without changing the folder, unless the record has outgrown its file.
    ///
    /// # Errors
    /// If it cannot be written; either the old or the new record may then be read.
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

/// Reads the record in the file at `path`; none if the file does not exist.
///
/// # Errors
/// If it exists and cannot be read.
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
