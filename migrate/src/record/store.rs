//! The files behind the records: `guests/GUEST/UUID/ID.source.json` and `ID.destination.json`.
//!
//! Each guest has its own folder, the only one that its process writes to. Earlier versions wrote
//! all records into the parent folder of `guests`; they are still read there. `past/UUID.json`,
//! which only the node writes, is the archived last record of a guest that was here;
//! `UUID.offered.json` is that of a later offer that was not taken.

use std::ffi::OsStr;
use std::fs::{self, FileType};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use regular_file::UNFINISHED;
use uuid::Uuid;

use super::file::{RecordError, RecordFile, damaged, flush_folder_of, io, read};
use super::{Record, Side};
use crate::progress::Role;
use crate::protocol::{MigrationId, Token};

/// Age at which a file that is not finished is no longer being written.
const UNFINISHED_AGE: Duration = Duration::from_secs(60);

/// Most files and bytes that are read in a guest's folder: a day with a migration every ten
/// seconds.
const FILES_MAX: usize = 16 << 10;
const BYTES_MAX: u64 = 256 << 20;

/// A file like a record that is written only to time that. Dropping it removes the file.
#[derive(Debug)]
pub struct Rehearsal {
    path: PathBuf,
    file: RecordFile,
    /// How long it took to make the new file durable.
    pub create: Duration,
}

impl Rehearsal {
    /// Changes the file as a change of a record does; returns how long that took.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn change(&mut self) -> Result<Duration, RecordError> {
        let began = Instant::now();
        self.file.write_blank()?;
        Ok(began.elapsed())
    }
}

impl Drop for Rehearsal {
    fn drop(&mut self) {
        // If it stays, it is removed like one that a crash has left unfinished.
        let _ = fs::remove_file(&self.path);
    }
}

/// The records of a host's guests, or of one of them.
#[derive(Debug, Clone)]
pub struct RecordStore {
    folder: PathBuf,
    /// The guest that they belong to; none for all guests.
    guest: Option<String>,
}

impl RecordStore {
    /// Opens the folder of all guests' records (`STATE/migrations`), and creates it if it does not
    /// exist.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn open(folder: &Path) -> Result<Self, RecordError> {
        fs::create_dir_all(folder).map_err(|cause| io("create the folder of", folder, cause))?;
        Ok(Self { folder: folder.to_owned(), guest: None })
    }

    /// Returns the records of `guest`, a guest's name, within the folder of all guests.
    pub fn of_guest(folder: &Path, guest: &str) -> Self {
        Self { folder: folder.to_owned(), guest: Some(guest.to_owned()) }
    }

    /// Returns the parent folder of the guests' own folders, within the folder of all records.
    pub fn places(folder: &Path) -> PathBuf {
        folder.join("guests")
    }

    /// Returns the folder of one guest's records, within the folder of all records.
    pub fn place(folder: &Path, guest: &str, uuid: Uuid) -> PathBuf {
        Self::places(folder).join(guest).join(uuid.to_string())
    }

    /// Creates the folder of one guest's records; it is durable when this returns.
    ///
    /// # Errors
    /// If it cannot be created, or is a symbolic link: links are not followed when reading.
    pub fn create_place(folder: &Path, guest: &str, uuid: Uuid) -> Result<(), RecordError> {
        Self::way_to_place(folder, guest, uuid).iter().try_for_each(|folder| {
            regular_file::create_folder(folder)
                .map_err(|cause| io("create the folder of", folder, cause))
        })
    }

    /// Returns the parent folders of a guest's folder, and the folder itself.
    fn way_to_place(folder: &Path, guest: &str, uuid: Uuid) -> [PathBuf; 3] {
        let places = Self::places(folder);
        let of_guest = places.join(guest);
        [places, of_guest, Self::place(folder, guest, uuid)]
    }

    /// Writes a record for the first time; it is durable when this returns.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn create(&self, record: &Record) -> Result<RecordFile, RecordError> {
        let name = file_name(record.migration, record.role());
        let place = self.ready_place(&record.guest, record.guest_uuid)?;
        RecordFile::create(&place.join(name), record)
    }

    /// Writes a file like a new record of this guest.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn rehearse(&self, guest: &str, uuid: Uuid) -> Result<Rehearsal, RecordError> {
        let name = Path::new("rehearsal").with_extension(UNFINISHED);
        let path = self.ready_place(guest, uuid)?.join(name);
        let began = Instant::now();
        let file = RecordFile::create_blank(&path)?;
        Ok(Rehearsal { path, file, create: began.elapsed() })
    }

    /// Returns the folder of one guest's records, and creates it if it does not exist.
    fn ready_place(&self, guest: &str, uuid: Uuid) -> Result<PathBuf, RecordError> {
        let is_folder = |path: &PathBuf| path.symlink_metadata().is_ok_and(|it| it.is_dir());
        // A guest's process cannot create its folder: its node has done so.
        if !Self::way_to_place(&self.folder, guest, uuid).iter().all(is_folder) {
            Self::create_place(&self.folder, guest, uuid)?;
        }
        Ok(Self::place(&self.folder, guest, uuid))
    }

    /// Opens the record of a process that is gone, for further writes.
    ///
    /// # Errors
    /// If it does not exist, or cannot be read.
    pub fn reopen(&self, record: &Record) -> Result<RecordFile, RecordError> {
        RecordFile::open(&self.path_of(record))
    }

    /// Reads a record; none if it does not exist. Since a guest's process may write the id of any
    /// migration, several records may match: this returns one for which `is_it` is true, or else
    /// any.
    ///
    /// # Errors
    /// If it exists and cannot be read.
    pub fn read(
        &self,
        migration: MigrationId,
        role: Role,
        is_it: impl Fn(&Record) -> bool,
    ) -> Result<Option<Record>, RecordError> {
        let (name, mut other) = (file_name(migration, role), Ok(None));
        let (folders, faults) = self.folders()?;
        if let Some(fault) = faults.into_iter().next() {
            other = Err(fault);
        }
        for folder in folders {
            match folder.read(&name) {
                Ok(None) => {}
                Ok(Some(record)) if is_it(&record) => return Ok(Some(record)),
                Ok(found) => other = Ok(found),
                // The record may be in another folder.
                Err(error) if matches!(other, Ok(None)) => other = Err(error),
                Err(_) => {}
            }
        }
        other
    }

    /// Returns all records that can be read, newest first, and the errors of the others: a guest's
    /// process may damage the records in its own folder.
    ///
    /// # Errors
    /// If the folder of all guests' records cannot be listed.
    pub fn list(&self) -> Result<(Vec<Record>, Vec<RecordError>), RecordError> {
        let mut records = Vec::new();
        let (folders, mut errors) = self.folders()?;
        for folder in folders {
            let names = folder.files("json").or_else(|error| match folder.owner {
                None => Err(error),
                Some(_) => {
                    errors.push(error);
                    Ok(Vec::new())
                }
            })?;
            for name in names {
                match folder.read(&name) {
                    Ok(record) => records.extend(record),
                    Err(error) => errors.push(error),
                }
            }
        }
        records.sort_by_key(|record| std::cmp::Reverse(record.started_unix_ms));
        Ok((records, errors))
    }

    /// Returns all records of the guest `uuid` and of guests called `name`, including retired ones,
    /// newest first.
    ///
    /// # Errors
    /// As [`Self::list`]; or if one that may be theirs cannot be read, since it may be the newest.
    pub fn of(&self, name: &str, uuid: Option<Uuid>) -> Result<Vec<Record>, RecordError> {
        let (mut records, damaged) = self.list()?;
        let of_name = Self::places(&self.folder).join(name);
        let of_uuid = uuid.map(|uuid| uuid.to_string());
        let may_be_its = |error: &RecordError| {
            let folder = error.path().parent().and_then(|folder| folder.file_name()?.to_str());
            error.path().starts_with(&of_name) || (folder.is_some() && folder == of_uuid.as_deref())
        };
        if let Some(error) = damaged.into_iter().find(may_be_its) {
            return Err(error);
        }
        if let Some(uuid) = uuid {
            records.extend(self.retired(uuid)?);
        }
        records.retain(|it| it.guest == name || Some(it.guest_uuid) == uuid);
        records.sort_by_key(|record| std::cmp::Reverse(record.started_unix_ms));
        Ok(records)
    }

    /// Returns the current time, in milliseconds since 1970, but later than every record: records
    /// are ordered by their times, and a clock can be set back.
    pub fn timestamp(&self) -> u64 {
        let records = self.list().map(|(records, _damaged)| records).unwrap_or_default();
        let times = records.iter().map(|record| record.updated_unix_ms.max(record.started_unix_ms));
        unix_ms().max(times.max().map_or(0, |last| last.saturating_add(1)))
    }

    /// Removes this record; harmless if it does not exist.
    ///
    /// # Errors
    /// If it exists and cannot be removed.
    pub fn remove(&self, record: &Record) -> Result<(), RecordError> {
        let path = self.path_of(record);
        match fs::remove_file(&path) {
            Err(cause) if cause.kind() == ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(io("remove", &path, cause)),
            Ok(()) => flush_folder_of(&path),
        }
    }

    /// Removes this record from those that [`Self::list`] returns, and keeps it for [`Self::of`],
    /// without its report and token; not kept if it says nothing about where its guest went.
    ///
    /// # Errors
    /// If it cannot be kept, in which case it stays; or if it cannot be removed.
    pub fn retire(&self, record: &Record) -> Result<(), RecordError> {
        let (uuid, had_guest) = (record.guest_uuid, record.had_guest());
        let path = self.past_of(uuid, had_guest);
        let is_latest =
            read(&path)?.is_none_or(|kept| kept.started_unix_ms <= record.started_unix_ms);
        // A host that never had the guest keeps no refused offers.
        let is_kept = had_guest || self.past_of(uuid, true).exists();
        if is_latest && is_kept {
            let past = self.past();
            regular_file::create_folder(&past)
                .map_err(|cause| io("create the folder of", &past, cause))?;
            RecordFile::create_compact(&path, &compact(record))?;
        }
        self.remove(record)
    }

    /// Returns the records of the guest `uuid` that [`Self::retire`] has kept: the last one of this
    /// host having it, and the last one of an offer not taken.
    ///
    /// # Errors
    /// If one exists and cannot be read, or is another guest's.
    fn retired(&self, uuid: Uuid) -> Result<Vec<Record>, RecordError> {
        let mut kept = Vec::new();
        for had_guest in [true, false] {
            let path = self.past_of(uuid, had_guest);
            match read(&path)? {
                Some(record) if record.guest_uuid != uuid => {
                    let what = format!("it is about {}, another guest", record.guest_uuid);
                    return Err(damaged(&path, what));
                }
                record => kept.extend(record),
            }
        }
        Ok(kept)
    }

    fn past(&self) -> PathBuf {
        self.folder.join("past")
    }

    fn past_of(&self, uuid: Uuid, had_guest: bool) -> PathBuf {
        let ending = if had_guest { "json" } else { "offered.json" };
        self.past().join(format!("{uuid}.{ending}"))
    }

    /// Removes files of records that a crash or a power cut left unfinished, if they are older than
    /// a minute at `now`: younger ones may still be being written.
    ///
    /// # Errors
    /// If a folder cannot be listed, or an unfinished file cannot be removed; those in other
    /// folders are removed all the same.
    pub fn remove_unfinished(&self, now: SystemTime) -> Result<(), RecordError> {
        let (folders, faults) = self.folders()?;
        let removed = folders.iter().map(|folder| folder.remove_unfinished(now));
        let failed = removed.fold(None, |failed, removed| failed.or(removed.err()));
        failed.or(faults.into_iter().next()).map_or(Ok(()), Err)
    }

    /// Returns the path that this record has, or would have.
    fn path_of(&self, record: &Record) -> PathBuf {
        let name = file_name(record.migration, record.role());
        // A record of the same migration may be another guest's.
        let is_it = |found: &Record| found.key() == record.key();
        let place = match self.of_all().read(&name) {
            Ok(Some(found)) if is_it(&found) => self.folder.clone(),
            _ => Self::place(&self.folder, &record.guest, record.guest_uuid),
        };
        place.join(name)
    }

    /// Returns the folder that earlier versions write to.
    fn of_all(&self) -> Folder {
        Folder { path: self.folder.clone(), owner: None }
    }

    /// Returns the folders with records, and the errors of guests' folders that cannot be listed.
    fn folders(&self) -> Result<(Vec<Folder>, Vec<RecordError>), RecordError> {
        let places = Self::places(&self.folder);
        let (mut found, guests) = match &self.guest {
            Some(guest) => (Vec::new(), vec![guest.clone()]),
            None => (vec![self.of_all()], names_in(&places, FileType::is_dir)?),
        };
        let mut faults = Vec::new();
        for guest in guests {
            let of_guest = places.join(&guest);
            match names_in(&of_guest, FileType::is_dir) {
                Ok(uuids) => found.extend(uuids.into_iter().map(|uuid| Folder {
                    path: of_guest.join(&uuid),
                    owner: Some((guest.clone(), uuid)),
                })),
                Err(fault) => faults.push(fault),
            }
        }
        Ok((found, faults))
    }
}

/// A folder with records.
struct Folder {
    path: PathBuf,
    /// Name and UUID of the guest whose process writes there; none for the folder of all guests.
    owner: Option<(String, String)>,
}

impl Folder {
    /// Returns the names of its files that end in `.extension`.
    fn files(&self, extension: &str) -> Result<Vec<String>, RecordError> {
        let mut names = names_in(&self.path, |_| true)?;
        let extension = Some(OsStr::new(extension));
        names.retain(|name| Path::new(name).extension() == extension);
        if self.owner.is_some() {
            let lengths = names.iter().flat_map(|name| self.path.join(name).symlink_metadata());
            let (files, bytes) = (names.len(), lengths.map(|file| file.len()).sum::<u64>());
            if files > FILES_MAX || bytes > BYTES_MAX {
                let much = format!("{files} files with {bytes} bytes are in it, which is too much");
                return Err(damaged(&self.path, much));
            }
        }
        Ok(names)
    }

    /// Reads the record in the file `name`; none if the file does not exist.
    fn read(&self, name: &str) -> Result<Option<Record>, RecordError> {
        let path = self.path.join(name);
        let Some(record) = read(&path)? else { return Ok(None) };
        if name != file_name(record.migration, record.role()) {
            let migration = record.migration;
            return Err(damaged(&path, format!("it is about {migration}, another migration")));
        }
        match &self.owner {
            Some((guest, uuid))
                if record.guest != *guest || record.guest_uuid.to_string() != *uuid =>
            {
                Err(damaged(&path, format!("it is about {}, another guest", record.guest)))
            }
            _ => Ok(Some(record)),
        }
    }

    fn remove_unfinished(&self, now: SystemTime) -> Result<(), RecordError> {
        for name in self.files(UNFINISHED)? {
            let path = self.path.join(name);
            let written = fs::symlink_metadata(&path).and_then(|file| file.modified());
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

/// Returns the part of a finished record that is kept.
fn compact(record: &Record) -> Record {
    let mut kept = Record { report: None, ..record.clone() };
    let (Side::Source { token, .. } | Side::Destination { token, .. }) = &mut kept.side;
    *token = Token([0; 32]);
    kept
}

/// Returns the name of the file with the record of one side of a migration; source and destination
/// may share a folder.
fn file_name(migration: MigrationId, role: Role) -> String {
    format!("{migration}.{}.json", role.name())
}

/// Returns the names of the entries of `folder` of a `kind`; none if the folder does not exist.
/// Names that are not UTF-8 are skipped: no record has one.
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

/// Returns the current time in milliseconds since 1970.
pub(crate) fn unix_ms() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests;
