//! The folder of a history: a log for each run, the schedules' last times, and a lock.

use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use regular_file::log::{Lines, Log};
use serde_json::value::RawValue;

use super::entry::{Beginning, Entry, Record, to_json};
use super::error::HistoryError;
use super::limits::Limits;
use super::run::RunId;

/// File name extension of a run's log.
const EXTENSION: &str = "log";

/// Error codes of a bad sector, a link to itself, and blocks that a file system found damaged: EIO,
/// ELOOP, EBADMSG, EUCLEAN.
const OF_ONE_FILE: [i32; 4] = [5, 40, 74, 117];
/// Run numbers stay below this: larger integers are not exact in every JSON implementation.
const ID_MAX: u64 = 1 << 53;

/// The folder of a history, used exclusively by this process.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    limits: Limits,
    /// Holds the lock while it is open.
    _lock: File,
}

/// A run in progress.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) record: Record,
    log: Log,
}

/// A run as found when a history is opened.
#[derive(Debug)]
pub(super) enum OnDisk {
    /// The run has ended.
    Over(Record),
    /// The run has no end in its log.
    LeftOpen(Live),
    /// Another version wrote the run, or its log is damaged.
    Unreadable,
}

impl Folder {
    /// Opens the folder at `path`, and creates it if there is none.
    ///
    /// # Errors
    /// If another process uses the folder, or the file system fails.
    pub(super) fn open(path: &Path, limits: Limits) -> Result<Self, HistoryError> {
        let failed = |cause| HistoryError::of(path, cause);
        regular_file::create_folder(path).map_err(failed)?;
        fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed)?;
        let lock = path.join("lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let lock = regular_file::open(&lock, &mut options);
        let lock = lock.map_err(|cause| HistoryError::of(path, cause))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { path: path.to_owned(), limits, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(HistoryError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(cause)) => Err(HistoryError::of(path, cause)),
        }
    }

    /// Path of the log with the last times of schedules.
    pub(super) fn ticks(&self) -> PathBuf {
        self.path.join("schedules.log")
    }

    /// Returns the runs that have a log.
    ///
    /// # Errors
    /// If the file system fails.
    pub(super) fn runs(&self) -> Result<Vec<RunId>, HistoryError> {
        let failed = |cause| HistoryError::of(&self.path, cause);
        let mut runs = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(EXTENSION)?.strip_suffix('.'));
            let id = id.and_then(|id| id.parse().ok()).filter(|id| (1..ID_MAX).contains(id));
            runs.extend(id.map(RunId).filter(|&run| *name == *log_name(run)));
        }
        Ok(runs)
    }

    /// Opens `run`, and returns it with the size of its log in bytes.
    ///
    /// # Errors
    /// If the file system fails in a way that does not concern this log alone.
    pub(super) fn open_run(&self, run: RunId) -> Result<(OnDisk, u64), HistoryError> {
        let path = self.log(run);
        let (log, lines) = match Log::open(&path, self.limits.log_bytes_max(), 0) {
            Ok(opened) => opened,
            // Its size is not counted: a file that no run has written, of any size, must not be the
            // reason to remove runs.
            Err(cause) if is_of_one_file(&cause) => return Ok((OnDisk::Unreadable, 0)),
            Err(cause) => return Err(HistoryError::of(&self.path, cause)),
        };
        let bytes = log.bytes();
        let found = match Record::replay(&lines) {
            Ok(record) if record.state.is_final() => OnDisk::Over(record),
            Ok(record) => OnDisk::LeftOpen(Live { record, log }),
            Err(_) => OnDisk::Unreadable,
        };
        Ok((found, bytes))
    }

    /// Reads a run that has ended.
    ///
    /// # Errors
    /// If its log cannot be read.
    pub(super) fn read_run(&self, run: RunId) -> Result<Record, HistoryError> {
        let lines = Lines::read(&self.log(run), self.limits.log_bytes_max());
        let record =
            lines.map_err(|error| error.to_string()).and_then(|lines| Record::replay(&lines));
        record.map_err(|cause| HistoryError::Unreadable { run, cause })
    }

    /// Creates the log of the run after `last`, or of the first run.
    ///
    /// # Errors
    /// If the entry is too large, the run numbers are used up, or the file system fails.
    pub(super) fn begin(
        &self,
        last: Option<RunId>,
        beginning: Beginning,
    ) -> Result<(RunId, Live), HistoryError> {
        let run = RunId(last.map_or(1, |last| last.0.saturating_add(1)));
        if run.0 >= ID_MAX {
            let max = format!("{} runs", ID_MAX - 1);
            return Err(HistoryError::TooLarge { what: "the number of a run", max });
        }
        let line = self.line(&Entry::Began(beginning.clone()), 0)?;
        let log = Log::create(&self.log(run), line.get().as_bytes(), 0);
        let log = log.map_err(|cause| HistoryError::of(&self.path, cause))?;
        Ok((run, Live { record: Record::new(beginning), log }))
    }

    /// Appends a line to the log of `run`.
    ///
    /// # Errors
    /// If the entry refers to an action that the run does not have, the run would become too large,
    /// or the file system fails.
    pub(super) fn add(
        &self,
        run: RunId,
        live: &mut Live,
        entry: Entry,
    ) -> Result<(), HistoryError> {
        let line = self.line(&entry, live.log.bytes())?;
        live.record.apply(entry).map_err(|index| HistoryError::NoSuchAction { run, index })?;
        let added = live.log.append(line.get().as_bytes());
        added.map_err(|cause| HistoryError::of(&self.path, cause))
    }

    /// Removes the log of `run`. Returns whether it is gone.
    pub(super) fn remove(&self, run: RunId) -> bool {
        let removed = fs::remove_file(self.log(run));
        removed.map_or_else(|error| error.kind() == ErrorKind::NotFound, |()| true)
    }

    /// Encodes an entry as a line of a run's log of `bytes` so far. The limit does not apply to the
    /// entry that ends the run.
    fn line(&self, entry: &Entry, bytes: u64) -> Result<Box<RawValue>, HistoryError> {
        let json = to_json("a line", entry, usize::MAX)?;
        let needed = bytes.saturating_add(json.get().len() as u64);
        let is_last = matches!(entry, Entry::Ended { .. } | Entry::Interrupted);
        if needed > self.limits.run_bytes_max && !is_last {
            let max = format!("{} bytes", self.limits.run_bytes_max);
            return Err(HistoryError::TooLarge { what: "a run", max });
        }
        Ok(json)
    }

    fn log(&self, run: RunId) -> PathBuf {
        self.path.join(log_name(run))
    }

    /// Returns the limits on what is kept.
    pub(super) const fn limits(&self) -> Limits {
        self.limits
    }
}

impl Live {
    /// Returns the size of its log in bytes.
    pub(super) const fn bytes(&self) -> u64 {
        self.log.bytes()
    }
}

/// Returns the file name of the log of `run`.
fn log_name(run: RunId) -> String {
    format!("{run}.{EXTENSION}")
}

/// Whether an error with one log says nothing about the other logs.
pub(super) fn is_of_one_file(cause: &io::Error) -> bool {
    let is_its_kind = matches!(
        cause.kind(),
        ErrorKind::FileTooLarge
            | ErrorKind::InvalidInput
            | ErrorKind::IsADirectory
            | ErrorKind::NotFound
            | ErrorKind::PermissionDenied
    );
    is_its_kind || cause.raw_os_error().is_some_and(|code| OF_ONE_FILE.contains(&code))
}
