//! Disks that a guest has left behind when it migrated, as recorded by the guest's process: copied
//! ones, of which the copy left on this host is out of date, and shared ones, which the guest goes
//! on writing at the destination.
//!
//! A file is marked with an extended attribute (`user.lighter.moved-to`), which stays with it when
//! the file is renamed or moved. A block device cannot have one, not every file system keeps it,
//! and a power cut may come before it is written. So the process also writes
//! `departed/guests/NAME/UUID/ID.json` in the state folder when the migration begins. That JSON
//! file counts once the migration's record says that the guest belongs to the destination. The node
//! then marks the JSON file as settled, so that it counts even after the record is removed.
//!
//! Shared disks carry no mark. They are recorded in `ID.shared` beside the others, which is removed
//! when the guest runs here again. Before another guest starts on such a disk, `shared_disks` asks
//! the destination; once that has no use for the disk, the other guest's start removes the record.
//!
//! No record is removed for its age, or because its disk is missing: a device may be attached
//! again, and a file system mounted. `lighter show` names the records of a guest, for users to
//! remove.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use migrate::MigrationId;
use migrate::progress::Role;
use migrate::record::{Record, RecordStore};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use vmm_core::pci::FUNCTIONS_MAX;
use vmm_core::virtio::block::{DiskIdentity, departed_to, take_off_departure, with_disks_below};

use crate::durable;
use crate::names::GuestName;
use crate::state_dir::StateDir;

/// Largest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// Longest host name in a note, in characters: a note holds at most 255 bytes.
const HOST_CHARACTERS_MAX: usize = 40;
/// Most files that are read for each guest: one for each migration that copied its disks.
const FILES_MAX: usize = 4096;
/// Extension of a file about a guest's shared disks; earlier versions do not read it.
const SHARED: &str = "shared";

/// The disks with which a guest left by one migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Departure {
    /// The guest's name on this host.
    pub(crate) guest: GuestName,
    /// UUID of the guest.
    pub(crate) uuid: Uuid,
    /// ID of the migration.
    pub(crate) migration: MigrationId,
    /// The destination, as the user wrote it.
    pub(crate) destination: String,
    /// The guest's disks that it writes.
    pub(crate) disks: Vec<DepartedDisk>,
    /// Whether both hosts share the disks, rather than that they were copied.
    #[serde(default)]
    pub(crate) is_shared: bool,
    /// Whether the guest belongs to the destination for certain, even without the migration's
    /// record.
    pub(crate) is_settled: bool,
}

/// Returns the note for a disk that moves to `destination` with the guest `uuid`. The note names
/// the guest and the migration, so that no other guest's process can have it removed.
pub(crate) fn note_text(destination: &str, uuid: Uuid, migration: MigrationId) -> String {
    let host = destination.chars().filter(|c| !c.is_control()).take(HOST_CHARACTERS_MAX);
    format!("{} (guest {uuid}, migration {migration})", host.collect::<String>())
}

/// A disk with which a guest left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DepartedDisk {
    /// Path of the disk on this host.
    pub(crate) path: PathBuf,
    /// What identifies the disk when it is found again.
    pub(crate) identity: DiskIdentity,
}

/// A disk with which a guest has left, for users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct LeftDisk {
    /// Path of the disk on this host.
    pub(crate) path: PathBuf,
    /// The other host, as the user wrote it.
    pub(crate) destination: String,
    /// Whether both hosts share the disk, rather than that it was copied.
    pub(crate) is_shared: bool,
    /// The file for which other guests of this host are refused the disk.
    pub(crate) record: PathBuf,
}

/// A file that cannot be read, has another format, is about another guest or migration than its
/// path says, or names too many disks.
#[derive(Debug)]
struct Damaged;

/// The content of the departure files of all guests.
#[derive(Debug, Default)]
struct Notes {
    departures: Vec<Noted>,
    /// Files that cannot be read, each with the name of the guest whose folder contains it.
    damaged: Vec<(String, PathBuf)>,
}

/// The departure files of all guests.
#[derive(Debug, Clone)]
pub(crate) struct Departures {
    folder: PathBuf,
    migrations: PathBuf,
}

impl StateDir {
    /// Returns the record of disks whose content has moved to another host.
    pub(crate) fn departures(&self) -> Departures {
        Departures { folder: self.departures_folder(), migrations: self.migrations() }
    }
}

impl Departures {
    /// Returns the folder that contains each guest's folder, by name.
    pub(crate) fn places(&self) -> PathBuf {
        self.folder.join("guests")
    }

    /// Returns the folder in which the process of the guest `uuid`, called `name` on this host,
    /// writes.
    pub(crate) fn place(&self, name: &GuestName, uuid: Uuid) -> PathBuf {
        self.places().join(name.as_str()).join(uuid.to_string())
    }

    /// Creates the folder that `place` names.
    ///
    /// # Errors
    /// If a folder cannot be created.
    pub(crate) fn create_place(&self, name: &GuestName, uuid: Uuid) -> Result<()> {
        let of_name = self.places().join(name.as_str());
        for folder in [self.places(), of_name, self.place(name, uuid)] {
            regular_file::create_folder(&folder)
                .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        }
        Ok(())
    }

    /// Writes `departure`, durably. It counts once it is settled, or once the migration's record
    /// says that the guest has left.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write(&self, departure: &Departure) -> Result<()> {
        durable::write_json(&self.file(departure), departure)
    }

    /// Records permanently that the guest of `departure` has left. Disks that carry the note
    /// themselves need no entry.
    ///
    /// # Errors
    /// If the file cannot be written or removed.
    pub(crate) fn settle(&self, departure: &Departure) -> Result<()> {
        let mut settled = Departure { is_settled: true, ..departure.clone() };
        if !departure.is_shared {
            let note = departure.note_text();
            settled.disks.retain(|disk| departed_to(&disk.path).as_ref() != Some(&note));
        }
        if settled.disks.is_empty() { self.forget(&settled) } else { self.write(&settled) }
    }

    /// Removes the notes from the disks of a guest that stays here or has come back, and then the
    /// file. Such notes remain if the host loses power after the decision. While a disk is missing
    /// (its file system may not be mounted yet), the file stays for another attempt.
    ///
    /// # Errors
    /// If a note or the file cannot be removed.
    pub(crate) fn give_back(&self, departure: &Departure) -> Result<()> {
        let is_free = departure.is_shared || take_notes_off(departure)?;
        if is_free { self.forget(departure) } else { Ok(()) }
    }

    /// Removes the notes from the disks of the guest of `record`, which left with them and is about
    /// to run here again. The file stays, because the destination may turn out to have the guest.
    ///
    /// # Errors
    /// If a note cannot be removed.
    pub(crate) fn claim(&self, record: &Record) -> Result<()> {
        let Ok(name) = record.guest.parse() else { return Ok(()) };
        match self.read(&name, record.guest_uuid, record.migration) {
            Ok(Some(departure)) => take_notes_off(&departure).map(drop),
            // A damaged file refuses the start on its own (`expect_here`).
            Ok(None) | Err(Damaged) => Ok(()),
        }
    }

    /// Removes the file of `departure`: its disks have not left, or carry the note themselves.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub(crate) fn forget(&self, departure: &Departure) -> Result<()> {
        durable::remove_if_there(&self.file(departure))
    }

    /// Removes what is recorded about the shared disks of the guest `uuid`, which runs here; not
    /// what it has recorded for the migration `leaving`.
    ///
    /// # Errors
    /// If a file cannot be removed.
    pub(crate) fn forget_shared(
        &self,
        name: &GuestName,
        uuid: Uuid,
        leaving: Option<MigrationId>,
    ) -> Result<()> {
        let stays = leaving.map(|migration| file_name(migration, true));
        let files = entries(&self.place(name, uuid)).into_iter();
        let mut files =
            files.filter(|(file, _)| is_about_shared(file) && Some(file) != stays.as_ref());
        files.try_for_each(|(_, path)| durable::remove_if_there(&path))
    }

    /// Removes `disks`, with which the guest `uuid` runs here, from what is recorded about its
    /// copied disks: a block device has its content again. Does not change what the guest has
    /// recorded for the migration `leaving`.
    ///
    /// # Errors
    /// If a file cannot be written or removed.
    pub(crate) fn forget_copied(
        &self,
        (name, uuid): (&GuestName, Uuid),
        disks: &[PresentDisk],
        leaving: Option<MigrationId>,
    ) -> Result<()> {
        let stays = leaving.map(|migration| file_name(migration, false));
        for (name_of_file, file) in entries(&self.place(name, uuid)) {
            if is_about_shared(&name_of_file) || Some(name_of_file) == stays {
                continue;
            }
            // A damaged file refuses the next start on its own (`expect_here`).
            if let Ok(Some(departure)) = read(&file, (name.as_str(), &uuid.to_string())) {
                let noted = Noted { file, departure };
                if disks.iter().any(|disk| noted.is_about(disk)) {
                    self.release(&noted, disks)?;
                }
            }
        }
        Ok(())
    }

    /// Removes `disks` from the file of `noted`, and then the file if it names no other disk.
    ///
    /// # Errors
    /// If the file cannot be written or removed.
    pub(crate) fn release(&self, noted: &Noted, disks: &[PresentDisk]) -> Result<()> {
        let mut rest = noted.departure.clone();
        rest.disks.retain(|known| !disks.iter().any(|disk| disk.is(known)));
        if rest.disks.is_empty() { self.forget(&rest) } else { self.write(&rest) }
    }

    fn read(
        &self,
        name: &GuestName,
        uuid: Uuid,
        migration: MigrationId,
    ) -> Result<Option<Departure>, Damaged> {
        let file = self.place(name, uuid).join(file_name(migration, false));
        read(&file, (name.as_str(), &uuid.to_string()))
    }

    fn file(&self, departure: &Departure) -> PathBuf {
        let place = self.place(&departure.guest, departure.uuid);
        place.join(file_name(departure.migration, departure.is_shared))
    }

    /// Lists what guests have recorded in their folders, settled or not.
    fn list(&self) -> Notes {
        let mut notes = Notes::default();
        for (name, of_name) in entries(&self.places()) {
            for (uuid, place) in entries(&of_name) {
                let is_note = |file: &str| file.ends_with(".json") || is_about_shared(file);
                let files = entries(&place).into_iter().filter(|(file, _)| is_note(file));
                let mut files = files.map(|(_, path)| path);
                for path in files.by_ref().take(FILES_MAX) {
                    match read(&path, (&name, &uuid)) {
                        Ok(None) => {}
                        Ok(Some(departure)) => {
                            notes.departures.push(Noted { file: path, departure });
                        }
                        Err(Damaged) => notes.damaged.push((name.clone(), path)),
                    }
                }
                if files.next().is_some() {
                    notes.damaged.push((name.clone(), place));
                }
            }
        }
        notes
    }

    /// Returns the paths of the disks of the guest `uuid` that leave with `migration`.
    pub(crate) fn disks_of(
        &self,
        name: &GuestName,
        uuid: Uuid,
        migration: MigrationId,
    ) -> Vec<PathBuf> {
        let departure = self.read(name, uuid, migration).ok().flatten();
        let disks = departure.into_iter().flat_map(|departure| departure.disks);
        disks.map(|disk| disk.path).collect()
    }

    /// Returns the disks with which guests called `name` have left, as far as records here keep
    /// other guests off them. To show only: damaged records are ignored.
    pub(crate) fn left_by(&self, name: &GuestName) -> Vec<LeftDisk> {
        let mut noted = self.list().departures;
        noted.retain(|noted| noted.departure.guest == *name && self.counts(&noted.departure));
        let disks = noted.into_iter().flat_map(|Noted { file, departure }| {
            let Departure { destination, is_shared, disks, .. } = departure;
            disks.into_iter().map(move |DepartedDisk { path, .. }| {
                let (destination, record) = (destination.clone(), file.clone());
                LeftDisk { path, destination, is_shared, record }
            })
        });
        disks.collect()
    }

    /// Returns the departures with shared disks that count now.
    pub(crate) fn with_shared_disks(&self) -> Vec<Noted> {
        self.counting(self.list().departures, true)
    }

    /// Returns the disks of the departures that count now. Logs a warning about files that cannot
    /// be read.
    pub(crate) fn past(&self) -> DepartedDisks {
        let Notes { departures, damaged } = self.list();
        if let Some((_, file)) = damaged.first() {
            tracing::warn!(
                file = %file.display(),
                files = damaged.len(),
                "what guests have noted of disks that have moved away cannot be read: lighter may not refuse them"
            );
        }
        let shared = self.counting(departures.clone(), true);
        DepartedDisks { disks: self.counting(departures, false), shared, damaged }
    }

    /// Returns those of `departures`, of shared or of copied disks, that count now.
    fn counting(&self, mut departures: Vec<Noted>, are_shared: bool) -> Vec<Noted> {
        departures.retain(|noted| noted.departure.is_shared == are_shared);
        departures.retain(|noted| self.counts(&noted.departure));
        departures
    }

    /// Whether the guest of `departure` has left, as far as this host knows.
    fn counts(&self, departure: &Departure) -> bool {
        departure.is_settled || self.is_past(departure)
    }

    /// Whether the migration's record says that the guest belongs to the destination, or cannot be
    /// read.
    fn is_past(&self, departure: &Departure) -> bool {
        let records = RecordStore::of_guest(&self.migrations, departure.guest.as_str());
        let is_its = |record: &Record| record.guest_uuid == departure.uuid;
        let record = records.read(departure.migration, Role::Source, is_its);
        record.map_or(true, |record| record.is_some_and(|record| record.has_left()))
    }

    /// Settles or gives back the disks of migrations that are over by `records`, before those
    /// records are removed. Returns the migrations for which that failed, whose records must stay,
    /// and adds the errors to `faults`: the next pass tries again.
    pub(crate) fn settle_by(
        &self,
        records: &[Record],
        faults: &mut BTreeSet<String>,
    ) -> BTreeSet<MigrationId> {
        let mut open = BTreeSet::new();
        let departures = self.list().departures.into_iter().map(|noted| noted.departure);
        for departure in departures.filter(|it| !it.is_settled) {
            let is_its = |record: &&Record| {
                record.migration == departure.migration
                    && record.guest_uuid == departure.uuid
                    && record.role() == Role::Source
                    && record.is_settled()
            };
            let settled = match records.iter().find(is_its) {
                Some(record) if record.has_left() => self.settle(&departure),
                Some(_) => self.give_back(&departure),
                None => Ok(()),
            };
            if let Err(error) = settled {
                open.insert(departure.migration);
                let guest = &departure.guest;
                faults.insert(format!(
                    "cannot record whether the disks of {guest} have moved: {error:#}"
                ));
            }
        }
        open
    }
}

impl Departure {
    /// Returns the text of the note on each of its disks.
    fn note_text(&self) -> String {
        note_text(&self.destination, self.uuid, self.migration)
    }
}

/// A departure, with the file that says so.
#[derive(Debug, Clone)]
pub(crate) struct Noted {
    /// Path of the file.
    pub(crate) file: PathBuf,
    /// The content of the file.
    pub(crate) departure: Departure,
}

impl Noted {
    /// Whether this is about `disk`.
    pub(crate) fn is_about(&self, disk: &PresentDisk) -> bool {
        self.departure.disks.iter().any(|known| disk.is(known))
    }

    /// Whether to write `disk` would change a disk that this is about, which may be on `disk`.
    fn is_changed_with(&self, disk: &PresentDisk) -> bool {
        self.departure.disks.iter().any(|known| disk.overlaps(known) || disk.is_below(known))
    }
}

/// A disk of this host as it is now.
#[derive(Debug, Clone)]
pub(crate) struct PresentDisk {
    /// Its path, without links.
    pub(crate) path: PathBuf,
    identity: DiskIdentity,
}

impl PresentDisk {
    /// Returns the disk at `path`; `None` if there is none.
    pub(crate) fn at(path: &Path) -> Option<Self> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        Some(Self { identity: DiskIdentity::at(&path)?, path })
    }

    fn is(&self, known: &DepartedDisk) -> bool {
        known.identity.is_same(&self.identity, known.path == self.path)
    }

    fn overlaps(&self, known: &DepartedDisk) -> bool {
        known.identity.overlaps(&self.identity, known.path == self.path)
    }

    /// Whether `known` is on this disk, as far as it is still at its path.
    fn is_below(&self, known: &DepartedDisk) -> bool {
        Self::at(&known.path).is_some_and(|now| now.is(known))
            && with_disks_below(&known.path).contains(&self.path)
    }
}

/// Removes the notes of `departure` from its disks. Returns whether all disks were found.
fn take_notes_off(departure: &Departure) -> Result<bool> {
    let note = departure.note_text();
    let mut are_there = true;
    for DepartedDisk { path, .. } in &departure.disks {
        match take_off_departure(path, &note) {
            Err(error) if error.kind() == ErrorKind::NotFound => are_there = false,
            taken => {
                taken.with_context(|| format!("{} is marked as moved away", path.display()))?;
            }
        }
    }
    Ok(are_there)
}

fn file_name(migration: MigrationId, is_shared: bool) -> String {
    format!("{migration}.{}", if is_shared { SHARED } else { "json" })
}

/// Whether a file of this name is about shared disks.
fn is_about_shared(file: &str) -> bool {
    Path::new(file).extension().is_some_and(|ending| ending == SHARED)
}

/// Reads what the guest `uuid` called `name` has recorded in the file at `path`; `None` if there is
/// no such file.
fn read(path: &Path, (name, uuid): (&str, &str)) -> Result<Option<Departure>, Damaged> {
    let text = match regular_file::read(path, FILE_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|_| Damaged)?,
    };
    let departure: Departure = serde_json::from_slice(&text).map_err(|_| Damaged)?;
    let is_guests = departure.guest.as_str() == name && departure.uuid.to_string() == uuid;
    // Otherwise a taken-over process could have a refusal name a file that does not exist.
    let file = file_name(departure.migration, departure.is_shared);
    let is_its = is_guests && path.file_name().is_some_and(|found| found == file.as_str());
    if is_its && departure.disks.len() <= FUNCTIONS_MAX {
        Ok(Some(departure))
    } else {
        Err(Damaged)
    }
}

fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|it| Some((it.file_name().into_string().ok()?, it.path()))).collect()
}

/// Disks with which guests have left, with the files that say so.
#[derive(Debug, Clone, Default)]
pub(crate) struct DepartedDisks {
    /// Those whose content on this host is out of date.
    disks: Vec<Noted>,
    /// Those that a guest goes on writing on another host.
    shared: Vec<Noted>,
    damaged: Vec<(String, PathBuf)>,
}

impl DepartedDisks {
    /// Refuses the disk at `path` for the guest `own` if its content has moved to another host, or
    /// if a file of this guest that may say so cannot be read. Unreadable files of other guests do
    /// not matter here: a guest's process may have damaged its own, and must not be able to block
    /// others.
    ///
    /// # Errors
    /// If the disk's content has moved or may have; the message says how to use the disk anyway.
    pub(crate) fn expect_here(&self, own: &GuestName, path: &Path) -> Result<()> {
        if let Some((_, file)) = self.damaged.iter().find(|(name, _)| name == own.as_str()) {
            bail!(
                "{} cannot be read: it may say that the content of {} has moved to another host with \
                 the guest {own}; if it has not, `rm -r {0}`",
                file.display(),
                path.display()
            );
        }
        if self.disks.is_empty() {
            return Ok(());
        }
        let Some(disk) = PresentDisk::at(path) else { return Ok(()) };
        let departed = self.disks.iter().find(|noted| noted.is_about(&disk));
        let Some(Noted { file, departure }) = departed else { return Ok(()) };
        let host: String = departure.destination.chars().filter(|c| !c.is_control()).collect();
        bail!(
            "disk {} is old: its content has moved to {host} with the guest {}; to use it all the \
             same, `rm {}`",
            path.display(),
            departure.guest,
            file.display()
        )
    }

    /// Refuses to let the guest `own` overwrite the block device at `path` if a guest that has left
    /// goes on writing it, or if another guest has left it behind. What `own` itself has left
    /// behind there is out of date.
    ///
    /// # Errors
    /// If there is such a guest; the message says how to use the device anyway.
    pub(crate) fn expect_unused(&self, own: (&GuestName, Uuid), path: &Path) -> Result<()> {
        let disks = with_disks_below(path);
        let disks: Vec<_> = disks.iter().filter_map(|disk| PresentDisk::at(disk)).collect();
        let target = PresentDisk::at(path);
        let is_among = |noted: &&Noted| {
            disks.iter().any(|disk| noted.is_about(disk))
                || target.as_ref().is_some_and(|disk| noted.is_changed_with(disk))
        };
        let of_another = |noted: &&Noted| (&noted.departure.guest, noted.departure.uuid) != own;
        let mut noted = self.shared.iter().chain(self.disks.iter().filter(of_another));
        let Some(Noted { file, departure }) = noted.find(is_among) else { return Ok(()) };
        bail!(
            "disk {} cannot be overwritten: the guest {} has left this host with it; if that guest needs it no more, `rm {}`",
            path.display(),
            departure.guest,
            file.display()
        )
    }
}

#[cfg(test)]
mod tests;
