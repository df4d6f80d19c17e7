//! The file of a record: JSON lines, padded with spaces to [`FILE_BYTES`]. Each line is a whole
//! [`Record`] behind its checksum, and the last line that is intact counts.
//!
//! A new file is written beside its place, flushed, moved into place and its folder flushed. After
//! that, a change is one line written over padding and one flush of data, with no change of length
//! or folder: this is on the way of a paused guest. A crash while a line is written leaves a line
//! that is not intact, and the one before counts.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::Record;

/// Length of a file of records, unless one record alone needs more.
const FILE_BYTES: usize = 16 << 10;
/// What the file of a record ends in until it is whole.
pub(super) const UNFINISHED: &str = "new";
/// Longest file that is read.
pub(super) const MAX_FILE_BYTES: u64 = 1 << 20;
/// Hex digits of a line's checksum, and the space after it.
const SUM_BYTES: usize = 17;

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
pub struct RecordFile {
    path: PathBuf,
    file: File,
    /// Where the next line goes, and where the padding ends.
    next: usize,
    length: usize,
}

impl RecordFile {
    /// Writes a file beside `path`, readable by its owner alone (it holds a token), and moves it
    /// there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn create(path: &Path, record: &Record) -> Result<Self, RecordError> {
        Self::create_padded(path, record, FILE_BYTES)
    }

    /// As [`Self::create`], without room for further lines.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn create_compact(path: &Path, record: &Record) -> Result<(), RecordError> {
        Self::create_padded(path, record, 0).map(drop)
    }

    fn create_padded(path: &Path, record: &Record, padded: usize) -> Result<Self, RecordError> {
        let mut bytes = to_line(record, path)?;
        let next = bytes.len();
        bytes.resize(next.max(padded), b' ');
        let beside = path.with_extension(UNFINISHED);
        let mut options = OpenOptions::new();
        options.create(true).truncate(true).read(true).write(true).mode(0o600);
        let file = regular_file::open(&beside, &mut options)
            .map_err(|cause| io("create", &beside, cause))?;
        file.write_all_at(&bytes, 0).map_err(|cause| io("write", &beside, cause))?;
        file.sync_all().map_err(|cause| io("flush", &beside, cause))?;
        fs::rename(&beside, path).map_err(|cause| io("move into place", path, cause))?;
        flush_folder_of(path)?;
        Ok(Self { path: path.to_owned(), file, next, length: bytes.len() })
    }

    /// Opens the file at `path`, to go on with it.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub(super) fn open(path: &Path) -> Result<Self, RecordError> {
        let open = regular_file::open(path, OpenOptions::new().read(true).write(true));
        let mut file = open.map_err(|cause| io("open", path, cause))?;
        let bytes = read_bounded(&mut file, path)?;
        let (_, next) = last_intact(&bytes).map_err(|detail| damaged(path, detail))?;
        Ok(Self { path: path.to_owned(), file, next, length: bytes.len() })
    }

    /// Replaces the record; it is durable when this returns. Cheap: one write and one flush of
    /// data, no change of the folder, unless the record has outgrown its file.
    ///
    /// # Errors
    /// When it cannot be written; whether the old or the new one will be read then is not known.
    pub fn write(&mut self, record: &Record) -> Result<(), RecordError> {
        // A line that a crash has torn may lack its end: begin with one.
        let mut line = vec![b'\n'];
        line.extend(to_line(record, &self.path)?);
        if self.next + line.len() > self.length {
            // If that fails half-way, `file` may be in its place no more: never write to it again.
            self.length = 0;
            *self = Self::create(&self.path, record)?;
            return Ok(());
        }
        let path = &self.path;
        self.file
            .write_all_at(&line, self.next as u64)
            .map_err(|cause| io("write", path, cause))?;
        // Whatever becomes of the flush, the line may be there: never write over it.
        self.next += line.len();
        self.file.sync_data().map_err(|cause| io("flush", path, cause))
    }
}

pub(super) fn io(operation: &'static str, path: &Path, cause: std::io::Error) -> RecordError {
    RecordError::Io { operation, path: path.to_owned(), cause }
}

pub(super) fn damaged(path: &Path, detail: String) -> RecordError {
    RecordError::Damaged { path: path.to_owned(), detail }
}

/// Checksum, record, end of line.
fn to_line(record: &Record, path: &Path) -> Result<Vec<u8>, RecordError> {
    let json = serde_json::to_vec(record).map_err(|error| damaged(path, error.to_string()))?;
    let mut line = format!("{:016x} ", xxh3_64(&json)).into_bytes();
    line.extend_from_slice(&json);
    line.push(b'\n');
    Ok(line)
}

pub(super) fn flush_folder_of(path: &Path) -> Result<(), RecordError> {
    regular_file::sync_folder_of(path).map_err(|cause| io("flush the folder of", path, cause))
}

/// The record in the file at `path`; none when there is no such file.
///
/// # Errors
/// When it is there and cannot be read.
pub(super) fn read(path: &Path) -> Result<Option<Record>, RecordError> {
    let mut file = match regular_file::open(path, OpenOptions::new().read(true)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|cause| io("open", path, cause))?,
    };
    let bytes = read_bounded(&mut file, path)?;
    last_intact(&bytes).map(|(record, _)| Some(record)).map_err(|detail| damaged(path, detail))
}

fn read_bounded(file: &mut File, path: &Path) -> Result<Vec<u8>, RecordError> {
    regular_file::read_opened(file, MAX_FILE_BYTES).map_err(|cause| io("read", path, cause))
}

/// The last intact record, and where the next line goes: behind everything that is not padding.
fn last_intact(bytes: &[u8]) -> Result<(Record, usize), String> {
    let used = bytes.iter().rposition(|&byte| byte != b' ').map_or(0, |last| last + 1);
    let lines = bytes[..used].split_inclusive(|&byte| byte == b'\n');
    let mut error = "it holds no record".to_owned();
    for line in lines.rev() {
        match from_line(line) {
            Ok(record) => return Ok((record, used)),
            Err(detail) => error = detail,
        }
    }
    Err(error)
}

fn from_line(line: &[u8]) -> Result<Record, String> {
    let line = line.strip_suffix(b"\n").ok_or("a line without end")?;
    let (sum, json) = line.split_at_checked(SUM_BYTES).ok_or("a line too short")?;
    if sum != format!("{:016x} ", xxh3_64(json)).as_bytes() {
        return Err("a line with a wrong checksum".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}
