//! The files behind the records: `guests/GUEST/UUID/ID.source.json` and `ID.destination.json`.
//!
//! What is in a guest's folder is of this guest alone: its process writes there, and nowhere else.
//! Earlier versions wrote all records into the folder that `guests` is in; they are still read there.

use std::ffi::OsStr;
use std::fs::{self, FileType};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use uuid::Uuid;

use super::Record;
use super::file::{RecordError, RecordFile, UNFINISHED, damaged, flush_folder_of, io, read};
use crate::protocol::MigrationId;
use crate::report::Role;

/// A file that is not finished at this age is not being written any more.
const UNFINISHED_AGE: Duration = Duration::from_secs(60);

/// The records of a host's guests, or of one of them.
#[derive(Debug, Clone)]
pub struct RecordStore {
    folder: PathBuf,
    /// Whose they are; all when there is none.
    guest: Option<String>,
}

impl RecordStore {
    /// Opens the folder of all guests' records (`STATE/migrations`), creating it when it is not there.
    ///
    /// # Errors
    /// When it cannot be created.
    pub fn open(folder: &Path) -> Result<Self, RecordError> {
        fs::create_dir_all(folder).map_err(|cause| io("create the folder of", folder, cause))?;
        Ok(Self { folder: folder.to_owned(), guest: None })
    }

    /// The records in the folder of all guests that are those of `guest`, a guest's name.
    pub fn of_guest(folder: &Path, guest: &str) -> Self {
        Self { folder: folder.to_owned(), guest: Some(guest.to_owned()) }
    }

    /// Where in the folder of all guests' records the guests have theirs, by name.
    pub fn places(folder: &Path) -> PathBuf {
        folder.join("guests")
    }

    /// Where in the folder of all guests' records those of one are.
    pub fn place(folder: &Path, guest: &str, uuid: Uuid) -> PathBuf {
        Self::places(folder).join(guest).join(uuid.to_string())
    }

    /// Makes that place; it is durable when this returns.
    ///
    /// # Errors
    /// When it cannot be created, or is a link: what is behind one is not read.
    pub fn create_place(folder: &Path, guest: &str, uuid: Uuid) -> Result<PathBuf, RecordError> {
        let places = Self::places(folder);
        let place = Self::place(folder, guest, uuid);
        for folder in [&places, &places.join(guest), &place] {
            regular_file::create_folder(folder)
                .map_err(|cause| io("create the folder of", folder, cause))?;
        }
        Ok(place)
    }

    /// Writes a record for the first time; it is durable when this returns.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn create(&self, record: &Record) -> Result<RecordFile, RecordError> {
        let place = Self::create_place(&self.folder, &record.guest, record.guest_uuid)?;
        RecordFile::create(&place.join(file_name(record.migration, record.role())), record)
    }

    /// Opens this record, of a process that is gone, to go on with it.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn reopen(&self, record: &Record) -> Result<RecordFile, RecordError> {
        RecordFile::open(&self.path_of(record))
    }

    /// Reads a record; none when there is none. A guest's process may write any migration's id: of
    /// records with the same, this is one that `is_it`, or if none is, any.
    ///
    /// # Errors
    /// When it is there and cannot be read.
    pub fn read(
        &self,
        migration: MigrationId,
        role: Role,
        is_it: impl Fn(&Record) -> bool,
    ) -> Result<Option<Record>, RecordError> {
        let (name, mut other) = (file_name(migration, role), Ok(None));
        for folder in self.folders()? {
            match folder.read(&name) {
                Ok(None) => {}
                Ok(Some(record)) if is_it(&record) => return Ok(Some(record)),
                Ok(found) => other = Ok(found),
                // It may be in another folder.
                Err(error) if matches!(other, Ok(None)) => other = Err(error),
                Err(_) => {}
            }
        }
        other
    }

    /// All records that can be read, newest first, and what is wrong with the others.
    ///
    /// # Errors
    /// When a folder cannot be listed.
    pub fn list(&self) -> Result<(Vec<Record>, Vec<RecordError>), RecordError> {
        let (mut records, mut errors) = (Vec::new(), Vec::new());
        for folder in self.folders()? {
            for name in folder.files("json")? {
                match folder.read(&name) {
                    Ok(record) => records.extend(record),
                    Err(error) => errors.push(error),
                }
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

    /// Removes this record; harmless when there is none.
    ///
    /// # Errors
    /// When it is there and cannot be removed.
    pub fn remove(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path_of(record);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(io("remove", &path, cause)),
            Ok(()) => flush_folder_of(&path),
        }
    }

    /// Removes files of records whose writing a crash or a power cut has ended at `now`, if not
    /// within the last minute: it may be under way.
    ///
    /// # Errors
    /// When the folder cannot be listed, or one is there and cannot be removed.
    pub fn remove_unfinished(&self, now: SystemTime) -> Result<(), RecordError> {
        for folder in self.folders()? {
            for name in folder.files(UNFINISHED)? {
                let path = folder.path.join(name);
                let written = fs::symlink_metadata(&path).and_then(|file| file.modified());
                let age = written.map(|written| now.duration_since(written).unwrap_or_default());
                match age {
                    Ok(age) if age < UNFINISHED_AGE => {}
                    Err(cause) if cause.kind() == ErrorKind::NotFound => {}
                    _ => fs::remove_file(&path).map_err(|cause| io("remove", &path, cause))?,
                }
            }
        }
        Ok(())
    }

    /// Where this record is, or would be.
    fn path_of(&self, record: &Record) -> PathBuf {
        let name = file_name(record.migration, record.role());
        let of_all = self.folder.join(&name);
        match of_all.exists() {
            true => of_all,
            false => Self::place(&self.folder, &record.guest, record.guest_uuid).join(name),
        }
    }

    /// The folders that records are in.
    fn folders(&self) -> Result<Vec<Folder>, RecordError> {
        let places = Self::places(&self.folder);
        let (mut found, guests) = match &self.guest {
            Some(guest) => (Vec::new(), vec![guest.clone()]),
            None => (
                vec![Folder { path: self.folder.clone(), owner: None }],
                names_in(&places, FileType::is_dir)?,
            ),
        };
        for guest in guests {
            let of_guest = places.join(&guest);
            for uuid in names_in(&of_guest, FileType::is_dir)? {
                let path = of_guest.join(&uuid);
                found.push(Folder { path, owner: Some((guest.clone(), uuid)) });
            }
        }
        Ok(found)
    }
}

/// A folder with records.
struct Folder {
    path: PathBuf,
    /// Name and UUID of the guest whose process writes there; none for that of all guests.
    owner: Option<(String, String)>,
}

impl Folder {
    /// The names of its files that end in `.extension`.
    fn files(&self, extension: &str) -> Result<Vec<String>, RecordError> {
        let mut names = names_in(&self.path, |_| true)?;
        let extension = Some(OsStr::new(extension));
        names.retain(|name| Path::new(name).extension() == extension);
        Ok(names)
    }

    /// The record in the file `name`; none when there is no such file.
    fn read(&self, name: &str) -> Result<Option<Record>, RecordError> {
        let path = self.path.join(name);
        let record = read(&path)?;
        match (&record, &self.owner) {
            (Some(record), Some((guest, uuid)))
                if record.guest != *guest || record.guest_uuid.to_string() != *uuid =>
            {
                Err(damaged(&path, format!("it is about {}, another guest", record.guest)))
            }
            _ => Ok(record),
        }
    }
}

/// The name of the file with the record of one side of a migration: source and destination may share
/// a folder.
fn file_name(migration: MigrationId, role: Role) -> String {
    format!("{migration}.{}.json", role.name())
}

/// What is in `folder` and of a `kind`, by name; nothing when it is gone. Names that are no text are
/// none of ours.
fn names_in(folder: &Path, kind: impl Fn(&FileType) -> bool) -> Result<Vec<String>, RecordError> {
    let cannot = |cause| io("list", folder, cause);
    let entries = match fs::read_dir(folder) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(cannot)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(cannot)?;
        if kind(&entry.file_type().map_err(cannot)?) {
            names.extend(entry.file_name().into_string());
        }
    }
    Ok(names)
}

/// Milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use uuid::Uuid;

    use super::super::file::MAX_FILE_BYTES;
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

    fn empty_store() -> (tempfile::TempDir, RecordStore) {
        let folder = tempfile::tempdir().unwrap();
        let store = RecordStore::open(folder.path()).unwrap();
        (folder, store)
    }

    fn read_source(
        store: &RecordStore,
        migration: MigrationId,
    ) -> Result<Option<Record>, RecordError> {
        store.read(migration, Role::Source, |_| true)
    }

    #[test]
    fn what_a_crash_left_unfinished_goes_and_nothing_else() {
        let (_folder, store) = empty_store();
        drop(store.create(&source_record(SourceState::Undecided)).unwrap());
        let unfinished = path(&store).with_file_name("x.source.new");
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
        let (_folder, store) = empty_store();
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

    /// Where the record of a source is.
    fn path(store: &RecordStore) -> PathBuf {
        store.path_of(&source_record(SourceState::Undecided))
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
            assert_eq!(read_source(&store, id()).unwrap(), Some(record));
        }

        drop(file);
        let mut again = store.reopen(&source_record(SourceState::Done)).unwrap();
        again.write(&source_record(SourceState::Done)).unwrap();
        let read = read_source(&store, id()).unwrap().unwrap();
        assert_eq!(state_of(&read), SourceState::Done);
    }

    #[test]
    fn a_line_torn_by_a_crash_leaves_the_one_before() {
        let (_folder, store) = empty_store();
        let mut file = store.create(&source_record(SourceState::Undecided)).unwrap();
        file.write(&source_record(SourceState::Committed)).unwrap();
        let path = path(&store);
        let whole = fs::read(&path).unwrap();
        let used = whole.iter().rposition(|&byte| byte == b'\n').unwrap() + 1;
        let first = whole.iter().position(|&byte| byte == b'\n').unwrap() + 1;

        for cut in first..used {
            for torn in [first..cut, cut..used] {
                let mut bytes = whole.clone();
                bytes[torn.clone()].fill(b' ');
                fs::write(&path, &bytes).unwrap();
                let read = read_source(&store, id()).unwrap().unwrap();
                let intact = torn.is_empty();
                assert_eq!(state_of(&read) == SourceState::Committed, intact, "{torn:?}");
            }
        }
        let mut again = store.reopen(&source_record(SourceState::Done)).unwrap();
        again.write(&source_record(SourceState::Aborted)).unwrap();
        let read = read_source(&store, id()).unwrap().unwrap();
        assert_eq!(state_of(&read), SourceState::Aborted);
    }

    #[test]
    fn both_sides_share_a_folder_and_strangers_cannot_read_it() {
        let (_folder, store) = empty_store();
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
        fs::write(path(&store).with_file_name("rubbish.json"), "{}").unwrap();

        let (records, errors) = store.list().unwrap();

        assert_eq!(records, [destination, source]);
        assert_eq!(errors.len(), 1);
        let mode = fs::metadata(path(&store)).unwrap().permissions().mode();
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
        let (_folder, store) = empty_store();
        let path = path(&store);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        fs::create_dir(path.with_file_name("folder.json")).unwrap();

        let errors = [
            read_source(&store, id()).unwrap_err().to_string(),
            store.reopen(&source_record(SourceState::Done)).unwrap_err().to_string(),
        ];
        let (records, faults) = store.list().unwrap();

        for error in errors {
            assert!(error.ends_with("it is a pipe, not a file"), "{error}");
        }
        assert_eq!((records.len(), faults.len()), (0, 2));
        fs::remove_file(&path).unwrap();
        fs::write(&path, vec![b' '; MAX_FILE_BYTES as usize + 1]).unwrap();
        let large = read_source(&store, id()).unwrap_err().to_string();
        assert!(large.contains("it is too large"), "{large}");
    }

    #[test]
    fn a_guests_records_are_in_its_folder_and_tell_of_no_other_guest() {
        let (folder, store) = empty_store();
        let own = source_record(SourceState::Done);
        store.create(&own).unwrap();
        let (guest, migration) = ("db".to_owned(), MigrationId(Uuid::from_u128(8)));
        let other = Record { guest, migration, started_unix_ms: 5, ..own.clone() };
        store.create(&other).unwrap();
        assert_eq!(store.list().unwrap().0, [other.clone(), own.clone()]);
        let of_guest = RecordStore::of_guest(folder.path(), "web-1");
        assert_eq!(of_guest.list().unwrap().0, std::slice::from_ref(&own));
        assert_eq!(read_source(&of_guest, other.migration).unwrap(), None);

        let uuid = Uuid::from_u128(2);
        for place in [("db", own.guest_uuid), ("web-1", uuid)] {
            let foreign = RecordStore::create_place(folder.path(), place.0, place.1).unwrap();
            let foreign = foreign.join(file_name(own.migration, Role::Source));
            fs::copy(path(&store), &foreign).unwrap();
            let (records, faults) = store.list().unwrap();
            assert_eq!(records, [other.clone(), own.clone()], "{place:?}");
            assert!(faults[0].to_string().contains("another guest"), "{faults:?}");
            assert_eq!(read_source(&store, own.migration).unwrap(), Some(own.clone()));
            fs::remove_file(foreign).unwrap();
        }
    }

    #[test]
    fn another_guest_with_the_id_of_a_migration_does_not_hide_its_record() {
        let (_folder, store) = empty_store();
        let own = source_record(SourceState::Committed);
        store.create(&own).unwrap();
        for guest in ["a", "z"] {
            store.create(&Record { guest: guest.to_owned(), ..own.clone() }).unwrap();
        }
        for guest in ["a", "web-1", "z"] {
            let read = store.read(id(), Role::Source, |it| it.guest == guest).unwrap().unwrap();
            assert_eq!(read.guest, guest);
        }
        assert!(store.read(id(), Role::Source, |_| false).unwrap().is_some(), "any is told of");
        let place = RecordStore::place(store.folder.as_path(), "web-1", own.guest_uuid);
        fs::write(place.join(file_name(id(), Role::Source)), "rubbish").unwrap();
        assert!(store.read(id(), Role::Source, |it| it.guest == "z").unwrap().is_some());
    }

    #[test]
    fn a_place_behind_a_link_is_refused_for_it_is_not_read() {
        let (folder, store) = empty_store();
        let own = source_record(SourceState::Done);
        store.create(&own).unwrap();
        let place = RecordStore::places(folder.path()).join(&own.guest);
        fs::rename(&place, folder.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("../elsewhere", &place).unwrap();
        let refused = store.create(&own).unwrap_err().to_string();
        assert!(refused.ends_with("not a folder"), "{refused}");
    }

    #[test]
    fn records_of_earlier_versions_are_read_and_written_where_they_are() {
        let (folder, store) = empty_store();
        let record = source_record(SourceState::Committed);
        store.create(&record).unwrap();
        let flat = folder.path().join(file_name(record.migration, Role::Source));
        fs::rename(path(&store), &flat).unwrap();

        assert_eq!(store.list().unwrap().0, std::slice::from_ref(&record));
        let done = source_record(SourceState::Done);
        store.reopen(&record).unwrap().write(&done).unwrap();
        assert_eq!(read_source(&store, record.migration).unwrap(), Some(done.clone()));
        store.remove(&done).unwrap();
        assert!(!flat.exists());
    }

    #[test]
    fn what_is_not_there_is_none_and_removing_it_is_harmless() {
        let (_folder, store) = empty_store();
        assert_eq!(read_source(&store, id()).unwrap(), None);
        store.remove(&source_record(SourceState::Done)).unwrap();
        store.create(&source_record(SourceState::Done)).unwrap();
        store.remove(&source_record(SourceState::Done)).unwrap();
        assert_eq!(read_source(&store, id()).unwrap(), None);
        assert!(store.reopen(&source_record(SourceState::Done)).is_err());
    }
}
