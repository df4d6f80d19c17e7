//! The files behind the records.
//!
//! A record is a file of JSON lines, padded with spaces to [`FILE_BYTES`]: each line is a whole
//! [`Record`] behind its checksum, and the last line that is intact counts. A new file is written
//! beside its place, flushed, moved into place and its folder flushed. After that, a change is one
//! line written over padding and one flush of data, with no change of length or folder: this is on
//! the way of a paused guest. A crash while a line is written leaves a line that is not intact, and
//! the one before counts.

use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use xxhash_rust::xxh3::xxh3_64;

use super::Record;
use crate::protocol::MigrationId;
use crate::report::Role;

/// Length of a file of records, unless one record alone needs more.
const FILE_BYTES: usize = 16 << 10;
/// What the file of a record ends in until it is whole.
const UNFINISHED: &str = "new";
/// At this age, nobody writes it any more.
const UNFINISHED_AGE: Duration = Duration::from_secs(60);
/// Longest file that is read.
const MAX_FILE_BYTES: u64 = 1 << 20;
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

/// The folder of records.
#[derive(Debug, Clone)]
pub struct RecordStore {
    folder: PathBuf,
}

/// An open record of one side of one migration.
#[derive(Debug)]
pub struct RecordFile {
    folder: PathBuf,
    path: PathBuf,
    file: File,
    /// Where the next line goes, and where the padding ends.
    next: usize,
    length: usize,
}

impl RecordStore {
    /// Opens the folder (`STATE/migrations`), creating it when it is not there.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn open(folder: &Path) -> Result<Self, RecordError> {
        fs::create_dir_all(folder).map_err(|cause| io("create the folder of", folder, cause))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Where the record of one side of a migration is: source and destination may share a folder.
    pub fn path(&self, migration: MigrationId, role: Role) -> PathBuf {
        self.folder.join(format!("{migration}.{}.json", role.name()))
    }

    /// Writes a record for the first time; it is durable when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(&self, record: &Record) -> Result<RecordFile, RecordError> {
        write_whole(&self.folder, &self.path(record.migration, record.role()), record)
    }

    /// Opens a record of a process that is gone, to go on with it.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn reopen(&self, migration: MigrationId, role: Role) -> Result<RecordFile, RecordError> {
        let path = self.path(migration, role);
        let open = regular_file::open(&path, OpenOptions::new().read(true).write(true));
        let mut file = open.map_err(|cause| io("open", &path, cause))?;
        let bytes = read_bounded(&mut file, &path)?;
        let (_, next) = last_intact(&bytes).map_err(|detail| damaged(&path, detail))?;
        let length = bytes.len();
        Ok(RecordFile { folder: self.folder.clone(), path, file, next, length })
    }

    /// Reads a record; none when there is none.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(&self, migration: MigrationId, role: Role) -> Result<Option<Record>, RecordError> {
        read(&self.path(migration, role))
    }

    /// All records that can be read, newest first, and what is wrong with the others.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub fn list(&self) -> Result<(Vec<Record>, Vec<RecordError>), RecordError> {
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        let entries =
            fs::read_dir(&self.folder).map_err(|cause| io("list", &self.folder, cause))?;
        for entry in entries {
            let path = entry.map_err(|cause| io("list", &self.folder, cause))?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => records.extend(record),
                Err(error) => errors.push(error),
            }
        }
        records.sort_by_key(|record| std::cmp::Reverse(record.started_unix_ms));
        Ok((records, errors))
    }

    /// Now, in milliseconds since 1970; but later than every record, for the order of records is that
    /// of their times, and a clock can be set back.
    pub fn moment(&self) -> u64 {
        let records = self.list().map(|(records, _damaged)| records).unwrap_or_default();
        let times = records.iter().map(|record| record.updated_unix_ms.max(record.started_unix_ms));
        unix_ms().max(times.max().map_or(0, |last| last.saturating_add(1)))
    }

    /// Removes a record; harmless when there is none.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, migration: MigrationId, role: Role) -> Result<(), RecordError> {
        let path = self.path(migration, role);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() != ErrorKind::NotFound => Err(io("remove", &path, cause)),
            _ => flush_folder(&self.folder),
        }
    }

    /// Removes files of records whose writing a crash or a power cut has ended at `now`, if not
    /// within the last minute: it may be under way.
    ///
    /// # Errors
    /// When the folder cannot be listed, or one is there and cannot be removed.
    pub fn remove_unfinished(&self, now: SystemTime) -> Result<(), RecordError> {
        let entries =
            fs::read_dir(&self.folder).map_err(|cause| io("list", &self.folder, cause))?;
        for entry in entries {
            let entry = entry.map_err(|cause| io("list", &self.folder, cause))?;
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != UNFINISHED) {
                continue;
            }
            let written = entry.metadata().and_then(|file| file.modified());
            let age = written.map(|written| now.duration_since(written).unwrap_or_default());
            match age {
                Ok(age) if age < UNFINISHED_AGE => {}
                Err(cause) if cause.kind() == ErrorKind::NotFound => {}
                _ => fs::remove_file(&path).map_err(|cause| io("remove", &path, cause))?,
            }
        }
        Ok(())
    }
}

impl RecordFile {
    /// Writes the record anew; it is durable when this returns. Cheap: one write and one flush of
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
            *self = write_whole(&self.folder, &self.path, record)?;
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

fn io(operation: &'static str, path: &Path, cause: std::io::Error) -> RecordError {
    RecordError::Io { operation, path: path.to_owned(), cause }
}

fn damaged(path: &Path, detail: String) -> RecordError {
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

/// Writes a file beside `path`, readable by its owner alone (it holds a token), and moves it there.
fn write_whole(folder: &Path, path: &Path, record: &Record) -> Result<RecordFile, RecordError> {
    let mut bytes = to_line(record, path)?;
    let next = bytes.len();
    bytes.resize(next.max(FILE_BYTES), b' ');
    let beside = path.with_extension(UNFINISHED);
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).read(true).write(true).mode(0o600);
    let file =
        regular_file::open(&beside, &mut options).map_err(|cause| io("create", &beside, cause))?;
    file.write_all_at(&bytes, 0).map_err(|cause| io("write", &beside, cause))?;
    file.sync_all().map_err(|cause| io("flush", &beside, cause))?;
    fs::rename(&beside, path).map_err(|cause| io("move into place", path, cause))?;
    flush_folder(folder)?;
    let (folder, path, length) = (folder.to_owned(), path.to_owned(), bytes.len());
    Ok(RecordFile { folder, path, file, next, length })
}

fn flush_folder(folder: &Path) -> Result<(), RecordError> {
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(|cause| io("flush the folder of", folder, cause))
}

fn read(path: &Path) -> Result<Option<Record>, RecordError> {
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

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use super::*;
    use crate::protocol::Token;
    use crate::record::{DestinationState, Side, SourceState};

    fn source_record(state: SourceState) -> Record {
        let address = ([127, 0, 0, 1], 4950).into();
        Record {
            migration: MigrationId(Uuid::from_u128(7)),
            guest: "web-1".to_owned(),
            guest_uuid: Uuid::from_u128(1),
            pid: 42,
            started_unix_ms: 1,
            updated_unix_ms: 2,
            side: Side::Source {
                state,
                destination: "host-b".to_owned(),
                server_name: "host-b".to_owned(),
                node_address: address,
                process_address: address,
                token: Token([7; 32]),
            },
            report: None,
        }
    }

    #[test]
    fn what_a_crash_left_unfinished_goes_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let store = RecordStore::open(folder.path()).unwrap();
        drop(store.create(&source_record(SourceState::Undecided)).unwrap());
        let unfinished = folder.path().join("x.source.new");
        fs::write(&unfinished, "half a re").unwrap();
        let now = SystemTime::now();
        store.remove_unfinished(now).unwrap();
        assert!(unfinished.exists(), "it may be under way");
        store.remove_unfinished(now + UNFINISHED_AGE * 2).unwrap();
        assert!(!unfinished.exists());
        assert_eq!(store.list().unwrap().0.len(), 1);
    }

    #[test]
    fn what_is_recorded_after_a_clock_was_set_back_is_later_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let store = RecordStore::open(folder.path()).unwrap();
        let now = store.moment();
        assert!(now.abs_diff(unix_ms()) < 60_000);
        let ahead = now + 8 * 3_600_000;
        let record = Record { updated_unix_ms: ahead, ..source_record(SourceState::Done) };
        drop(store.create(&record).unwrap());
        assert_eq!(store.moment(), ahead + 1);
    }

    fn state_of(record: &Record) -> SourceState {
        match record.side {
            Side::Source { state, .. } => state,
            Side::Destination { .. } => panic!("not a source's record"),
        }
    }

    fn id() -> MigrationId {
        source_record(SourceState::Undecided).migration
    }

    #[test]
    fn the_last_of_many_writes_counts_also_past_the_end_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let store = RecordStore::open(&folder.path().join("migrations")).unwrap();
        let mut file = store.create(&source_record(SourceState::Undecided)).unwrap();

        for turn in 0..100_u64 {
            let mut record = source_record(SourceState::Committed);
            record.updated_unix_ms = turn;
            file.write(&record).unwrap();
            assert_eq!(store.read(id(), Role::Source).unwrap(), Some(record));
        }

        drop(file);
        let mut again = store.reopen(id(), Role::Source).unwrap();
        again.write(&source_record(SourceState::Done)).unwrap();
        let read = store.read(id(), Role::Source).unwrap().unwrap();
        assert_eq!(state_of(&read), SourceState::Done);
    }

    #[test]
    fn a_line_torn_by_a_crash_leaves_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let store = RecordStore::open(folder.path()).unwrap();
        let mut file = store.create(&source_record(SourceState::Undecided)).unwrap();
        file.write(&source_record(SourceState::Committed)).unwrap();
        let path = store.path(id(), Role::Source);
        let whole = fs::read(&path).unwrap();
        let used = whole.iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;

        for cut in first..used {
            for torn in [first..cut, cut..used] {
                let mut bytes = whole.clone();
                bytes[torn.clone()].fill(b' ');
                fs::write(&path, &bytes).unwrap();
                let read = store.read(id(), Role::Source).unwrap().unwrap();
                let intact = torn.is_empty();
                assert_eq!(state_of(&read) == SourceState::Committed, intact, "{torn:?}");
            }
        }
        let mut again = store.reopen(id(), Role::Source).unwrap();
        again.write(&source_record(SourceState::Aborted)).unwrap();
        let read = store.read(id(), Role::Source).unwrap().unwrap();
        assert_eq!(state_of(&read), SourceState::Aborted);
    }

    #[test]
    fn both_sides_share_a_folder_and_strangers_cannot_read_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = RecordStore::open(folder.path()).unwrap();
        let source = source_record(SourceState::Undecided);
        let destination = Record {
            side: Side::Destination {
                state: DestinationState::Ready,
                source_address: ([127, 0, 0, 1], 9).into(),
                source_name: Some("host-a".to_owned()),
                source_node_port: std::num::NonZeroU16::new(4950),
                port: 5000,
                token: Token([7; 32]),
            },
            started_unix_ms: 5,
            ..source.clone()
        };
        store.create(&source).unwrap();
        store.create(&destination).unwrap();
        fs::write(folder.path().join("rubbish.json"), "{}").unwrap();

        let (records, errors) = store.list().unwrap();

        assert_eq!(records, [destination, source]);
        assert_eq!(errors.len(), 1);
        let mode = fs::metadata(store.path(id(), Role::Source)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_record_is_read_of_a_lighter_that_kept_less_of_the_source() {
        let side = Side::Destination {
            state: DestinationState::Ready,
            source_address: ([127, 0, 0, 1], 9).into(),
            source_name: None,
            source_node_port: None,
            port: 5000,
            token: Token([7; 32]),
        };
        let text = format!(
            r#"{{"role": "destination", "state": "ready", "source_address": "127.0.0.1:9", "port": 5000, "token": {}}}"#,
            serde_json::to_string(&Token([7; 32])).unwrap()
        );
        assert_eq!(serde_json::from_str::<Side>(&text).unwrap(), side);
        let written = serde_json::to_string(&side).unwrap();
        assert!(!written.contains("source_n"), "{written}");
    }

    #[test]
    fn what_is_no_file_is_a_fault_and_hangs_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let store = RecordStore::open(folder.path()).unwrap();
        let path = store.path(id(), Role::Source);
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        fs::create_dir(folder.path().join("folder.json")).unwrap();

        let errors = [
            store.read(id(), Role::Source).unwrap_err().to_string(),
            store.reopen(id(), Role::Source).unwrap_err().to_string(),
        ];
        let (records, faults) = store.list().unwrap();

        for error in errors {
            assert!(error.ends_with("it is a pipe, not a file"), "{error}");
        }
        assert_eq!((records.len(), faults.len()), (0, 2));
        fs::remove_file(&path).unwrap();
        fs::write(&path, vec![b' '; MAX_FILE_BYTES as usize + 1]).unwrap();
        let large = store.read(id(), Role::Source).unwrap_err().to_string();
        assert!(large.contains("it is too large"), "{large}");
    }

    #[test]
    fn what_is_not_there_is_none_and_removing_it_is_harmless() {
        let folder = tempfile::tempdir().unwrap();
        let store = RecordStore::open(folder.path()).unwrap();
        assert_eq!(store.read(id(), Role::Source).unwrap(), None);
        store.remove(id(), Role::Source).unwrap();
        store.create(&source_record(SourceState::Done)).unwrap();
        store.remove(id(), Role::Source).unwrap();
        assert_eq!(store.read(id(), Role::Source).unwrap(), None);
        assert!(store.reopen(id(), Role::Source).is_err());
    }
}
