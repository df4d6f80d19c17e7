//! Disks whose content has gone to another host with their guest, by the word of that guest's
//! process: what is left here is old.
//!
//! A file has a note of its own (`user.lighter.moved-to`), which stays with it wherever it is
//! moved. A block device cannot have one, not every file system keeps it, and a power cut may come
//! before it. So the process writes `departed/guests/NAME/UUID/ID.json` in the state folder when
//! the migration begins. That counts once the migration's record says that the guest is the
//! destination's; the node notes in the file that it does, since records are removed some day.

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
use vmm_core::devices::mmio::SLOTS_MAX;
use vmm_core::virtio::block::{DiskIdentity, departed_to, take_off_departure};

use crate::durable;
use crate::names::GuestName;
use crate::state_dir::StateDir;

/// The longest file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 256 << 10;
/// Longest name of a host in a note, in characters: a note has 255 bytes.
const HOST_CHARACTERS_MAX: usize = 40;
/// Most files of one guest that are read: one for each migration that took its disks along.
const FILES_MAX: usize = 4096;

/// The disks of one migration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Departure {
    /// The guest's name here.
    pub(crate) guest: GuestName,
    /// Its identity.
    pub(crate) uuid: Uuid,
    /// The migration.
    pub(crate) migration: MigrationId,
    /// Where to, as its user wrote it.
    pub(crate) destination: String,
    /// Its disks that were copied.
    pub(crate) disks: Vec<DepartedDisk>,
    /// The guest is the destination's, whatever becomes of the migration's record.
    pub(crate) is_settled: bool,
}

/// The text of the note on a disk that leaves for `destination` with the guest `uuid`. It names the
/// guest and the migration, so that no other guest's process can have it removed.
pub(crate) fn note_text(destination: &str, uuid: Uuid, migration: MigrationId) -> String {
    let host = destination.chars().filter(|c| !c.is_control()).take(HOST_CHARACTERS_MAX);
    format!("{} (guest {uuid}, migration {migration})", host.collect::<String>())
}

/// A disk that was copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DepartedDisk {
    /// Its path when it was.
    pub(crate) path: PathBuf,
    /// What it is recognized by.
    pub(crate) identity: DiskIdentity,
}

/// A file cannot be read, is none of these, is about another guest, or names too many disks.
#[derive(Debug)]
struct Damaged;

/// What is in the files.
#[derive(Debug, Default)]
struct Notes {
    departures: Vec<Departure>,
    /// What cannot be read, with the name of the guest in whose place it is.
    damaged: Vec<(String, PathBuf)>,
}

/// The files of all guests.
#[derive(Debug, Clone)]
pub(crate) struct Departures {
    folder: PathBuf,
    migrations: PathBuf,
}

impl StateDir {
    /// Disks whose content has gone to another host.
    pub(crate) fn departures(&self) -> Departures {
        Departures { folder: self.departures_folder(), migrations: self.migrations() }
    }
}

impl Departures {
    /// Where the guests have their places, by name.
    pub(crate) fn places(&self) -> PathBuf {
        self.folder.join("guests")
    }

    /// Where the process of the guest `uuid` writes, which has this name here.
    pub(crate) fn place(&self, name: &GuestName, uuid: Uuid) -> PathBuf {
        self.places().join(name.as_str()).join(uuid.to_string())
    }

    /// Makes that place.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn create_place(&self, name: &GuestName, uuid: Uuid) -> Result<()> {
        let of_name = self.places().join(name.as_str());
        for folder in [self.places(), of_name, self.place(name, uuid)] {
            regular_file::create_folder(&folder)
                .with_context(|| format!("cannot create the folder {}", folder.display()))?;
        }
        Ok(())
    }

    /// Notes `departure`, durably. It counts when it is settled, or the migration's record says so.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn write(&self, departure: &Departure) -> Result<()> {
        durable::write_json(&self.file(departure), departure)
    }

    /// Notes for good that the disks of `departure` have left, as far as they have no note of their
    /// own.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn settle(&self, departure: &Departure) -> Result<()> {
        let mut settled = Departure { is_settled: true, ..departure.clone() };
        let note = departure.note_text();
        settled.disks.retain(|disk| departed_to(&disk.path).as_ref() != Some(&note));
        if settled.disks.is_empty() { self.forget(&settled) } else { self.write(&settled) }
    }

    /// The guest stays, or is back: takes the notes off its disks, which a power cut after the
    /// decision has left there, and removes the file. While a disk is not there (its file system
    /// may not be mounted yet), the file stays for another try.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn give_back(&self, departure: &Departure) -> Result<()> {
        if take_notes_off(departure)? { self.forget(departure) } else { Ok(()) }
    }

    /// The guest of `record`, which left with its disks, is to run here again: takes the notes off
    /// them. The file stays, in case that its destination turns out to have it.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn claim(&self, record: &Record) -> Result<()> {
        let Ok(name) = record.guest.parse() else { return Ok(()) };
        match self.read(&name, record.guest_uuid, record.migration) {
            Ok(Some(departure)) => take_notes_off(&departure).map(drop),
            // A damaged one refuses the guest by itself.
            Ok(None) | Err(Damaged) => Ok(()),
        }
    }

    /// Removes the file of `departure`: its disks are not taken along, or have notes of their own.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn forget(&self, departure: &Departure) -> Result<()> {
        durable::remove_if_there(&self.file(departure))
    }

    fn read(
        &self,
        name: &GuestName,
        uuid: Uuid,
        migration: MigrationId,
    ) -> Result<Option<Departure>, Damaged> {
        let file = self.place(name, uuid).join(file_name(migration));
        read(&file, (name.as_str(), &uuid.to_string()))
    }

    fn file(&self, departure: &Departure) -> PathBuf {
        self.place(&departure.guest, departure.uuid).join(file_name(departure.migration))
    }

    /// What guests have noted in their places, be it settled or not.
    fn list(&self) -> Notes {
        let mut notes = Notes::default();
        for (name, of_name) in entries(&self.places()) {
            for (uuid, place) in entries(&of_name) {
                let files = entries(&place).into_iter().filter(|(file, _)| file.ends_with(".json"));
                let mut files = files.map(|(_, path)| path);
                for path in files.by_ref().take(FILES_MAX) {
                    match read(&path, (&name, &uuid)) {
                        Ok(departure) => notes.departures.extend(departure),
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

    /// The paths of the disks of the guest `uuid` that leave with `migration`.
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

    /// Those that count now. Tells of notes of which that cannot be said.
    pub(crate) fn past(&self) -> DepartedDisks {
        let Notes { departures, damaged } = self.list();
        if let Some((_, file)) = damaged.first() {
            tracing::warn!(
                file = %file.display(),
                files = damaged.len(),
                "what guests have noted of disks that have moved away cannot be read: lighter may not refuse them"
            );
        }
        let past = departures.into_iter().filter(|it| it.is_settled || self.is_past(it));
        let disks = past.map(|departure| (self.file(&departure), departure));
        DepartedDisks { disks: disks.collect(), damaged }
    }

    /// Whether the migration's record says that the guest is the destination's, or cannot be read.
    fn is_past(&self, departure: &Departure) -> bool {
        let records = RecordStore::of_guest(&self.migrations, departure.guest.as_str());
        let is_its = |record: &Record| record.guest_uuid == departure.uuid;
        let record = records.read(departure.migration, Role::Source, is_its);
        record.map_or(true, |record| record.is_some_and(|record| record.has_left()))
    }

    /// Records what `records` say of migrations that are over, before they are removed. Returns the
    /// migrations whose records have to stay, and adds errors to `faults`: the next pass tries
    /// again.
    pub(crate) fn settle_by(
        &self,
        records: &[Record],
        faults: &mut BTreeSet<String>,
    ) -> BTreeSet<MigrationId> {
        let mut open = BTreeSet::new();
        for departure in self.list().departures.into_iter().filter(|it| !it.is_settled) {
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
    /// The text of the note on each of its disks.
    fn note_text(&self) -> String {
        note_text(&self.destination, self.uuid, self.migration)
    }
}

/// Takes the notes of `departure` off its disks; whether all of them are there.
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

fn file_name(migration: MigrationId) -> String {
    format!("{migration}.json")
}

/// What the guest `uuid` called `name` has noted in the file at `path`; `None` when there is no
/// such file.
fn read(path: &Path, (name, uuid): (&str, &str)) -> Result<Option<Departure>, Damaged> {
    let text = match regular_file::read(path, FILE_BYTES_MAX) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        text => text.map_err(|_| Damaged)?,
    };
    let departure: Departure = serde_json::from_slice(&text).map_err(|_| Damaged)?;
    let is_its = departure.guest.as_str() == name && departure.uuid.to_string() == uuid;
    if is_its && departure.disks.len() <= SLOTS_MAX { Ok(Some(departure)) } else { Err(Damaged) }
}

fn entries(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|it| Some((it.file_name().into_string().ok()?, it.path()))).collect()
}

/// Disks that are old, with the files that say so.
#[derive(Debug, Clone, Default)]
pub(crate) struct DepartedDisks {
    disks: Vec<(PathBuf, Departure)>,
    damaged: Vec<(String, PathBuf)>,
}

impl DepartedDisks {
    /// Refuses the disk at `path` for the guest `own` if its content has gone to another host, or a
    /// file of this guest's that may say so cannot be read. What cannot be read of other guests
    /// keeps this one from nothing: its process may have spoiled it.
    ///
    /// # Errors
    /// It has; with the way out.
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
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let Some(now) = DiskIdentity::at(&path) else { return Ok(()) };
        let is_it = |disk: &DepartedDisk| disk.identity.is_same(&now, disk.path == path);
        let departed = self.disks.iter().find(|(_, departure)| departure.disks.iter().any(is_it));
        let Some((file, departure)) = departed else { return Ok(()) };
        let host: String = departure.destination.chars().filter(|c| !c.is_control()).collect();
        bail!(
            "disk {} is old: its content has moved to {host} with the guest {}; to use it all the \
             same, `rm {}`",
            path.display(),
            departure.guest,
            file.display()
        )
    }
}

#[cfg(test)]
mod tests {
    use migrate::record::SourceState;
    use rustix::fs::XattrFlags;

    use super::*;

    fn departure(disk: &Path) -> Departure {
        let identity = DiskIdentity::at(disk).unwrap();
        Departure {
            guest: "db".parse().unwrap(),
            uuid: Uuid::from_u128(5),
            migration: MigrationId::random(),
            destination: "host-b\u{1b}".to_owned(),
            disks: vec![DepartedDisk { path: disk.canonicalize().unwrap(), identity }],
            is_settled: false,
        }
    }

    fn record(departure: &Departure, state: SourceState) -> Record {
        let record = crate::node::liveness::tests::source_record(state, 1);
        let (migration, guest_uuid) = (departure.migration, departure.uuid);
        Record { migration, guest: departure.guest.to_string(), guest_uuid, ..record }
    }

    /// A state folder, a disk, and what its guest has noted.
    fn scene() -> (tempfile::TempDir, StateDir, PathBuf, Departure) {
        let (folder, state) = StateDir::temporary();
        let disk = folder.path().join("disk.raw");
        fs::write(&disk, "content").unwrap();
        let departure = departure(&disk);
        state.create().unwrap();
        state.prepare_guest(&departure.guest, departure.uuid).unwrap();
        state.departures().write(&departure).unwrap();
        (folder, state, disk, departure)
    }

    fn write_note(disk: &fs::File, note: &str) {
        let (name, none) = ("user.lighter.moved-to", XattrFlags::empty());
        rustix::fs::fsetxattr(disk, name, note.as_bytes(), none).unwrap();
    }

    #[test]
    fn a_disk_has_left_when_its_guests_record_says_so_and_stays_so_without_the_record() {
        let (_folder, state, disk, departure) = scene();
        let expect = || state.departures().past().expect_here(&departure.guest, &disk);
        expect().unwrap();
        for (recorded, has_left) in [
            (SourceState::Undecided, false),
            (SourceState::Committed, true),
            (SourceState::Done, true),
        ] {
            let record = record(&departure, recorded);
            let _ = state.records().unwrap().remove(&record);
            state.records().unwrap().create(&record).unwrap();
            assert_eq!(expect().is_err(), has_left, "{recorded:?}");
        }
        let error = expect().unwrap_err().to_string();
        assert!(error.contains("moved to host-b with the guest db; to use it"), "{error}");

        let record = record(&departure, SourceState::Done);
        let mut faults = BTreeSet::new();
        let open = state.departures().settle_by(std::slice::from_ref(&record), &mut faults);
        assert!(open.is_empty() && faults.is_empty(), "{faults:?}");
        state.records().unwrap().remove(&record).unwrap();
        expect().unwrap_err();
        let new = disk.with_extension("new");
        fs::write(&new, "came back").unwrap();
        fs::rename(new, &disk).unwrap();
        expect().unwrap();
    }

    #[test]
    fn a_disk_of_a_guest_that_stays_is_free() {
        let (_folder, state, disk, departure) = scene();
        let noted = fs::File::open(&disk).unwrap();
        let write = |note: &str| write_note(&noted, note);
        let settle = |state_of_record| {
            let records = [record(&departure, state_of_record)];
            state.departures().settle_by(&records, &mut BTreeSet::new())
        };
        let is_listed = || !state.departures().list().departures.is_empty();
        let (host, uuid) = (departure.destination.as_str(), departure.uuid);
        for other in [
            note_text(host, uuid, MigrationId::random()),
            note_text(host, Uuid::from_u128(6), departure.migration),
        ] {
            write(&other);
            settle(SourceState::Aborted);
            assert!(departed_to(&disk).is_some(), "a note that is not its own stays");
            assert!(!is_listed());
            state.departures().write(&departure).unwrap();
        }
        write(&departure.note_text());
        settle(SourceState::Undecided);
        assert!(departed_to(&disk).is_some());
        let unmounted = disk.with_extension("unmounted");
        fs::rename(&disk, &unmounted).unwrap();
        settle(SourceState::Aborted);
        fs::rename(&unmounted, &disk).unwrap();
        assert!(is_listed(), "it is tried again");
        settle(SourceState::Aborted);
        assert_eq!(departed_to(&disk), None);
        assert!(!is_listed());
        state.departures().write(&Departure { is_settled: true, ..departure.clone() }).unwrap();
        state.departures().past().expect_here(&departure.guest, &disk).unwrap_err();
        state.departures().forget(&departure).unwrap();
        state.departures().past().expect_here(&departure.guest, &disk).unwrap();
    }

    #[test]
    fn the_record_of_a_guest_that_stays_is_kept_while_its_disks_cannot_be_freed() {
        let (_folder, state, disk, departure) = scene();
        let disks =
            vec![DepartedDisk { path: disk.join("no-folder"), ..departure.disks[0].clone() }];
        let departure = Departure { disks, ..departure };
        state.departures().write(&departure).unwrap();
        let mut faults = BTreeSet::new();
        let records = [record(&departure, SourceState::Aborted)];
        let open = state.departures().settle_by(&records, &mut faults);
        assert_eq!(open, BTreeSet::from([departure.migration]));
        assert!(faults.iter().any(|fault| fault.contains("of db")), "{faults:?}");
    }

    #[test]
    fn a_disk_of_a_guest_in_doubt_is_free_when_the_guest_is_to_run_here_all_the_same() {
        let (_folder, state, disk, departure) = scene();
        state.records().unwrap().create(&record(&departure, SourceState::Committed)).unwrap();
        let attribute = (std::fs::File::open(&disk).unwrap(), departure.note_text());
        let write = || write_note(&attribute.0, &attribute.1);
        let expect = || state.departures().past().expect_here(&departure.guest, &disk);
        // Twice, as after a power cut between the record and the disk.
        for _ in 0..2 {
            write();
            crate::whereabouts::Whereabouts::claim(&state, &departure.guest).unwrap();
            assert_eq!(departed_to(&disk), None);
            expect().unwrap();
        }
        // The other host runs it after all.
        let mut faults = BTreeSet::new();
        state.departures().settle_by(&[record(&departure, SourceState::Done)], &mut faults);
        expect().unwrap_err();
    }

    #[test]
    fn what_a_guest_notes_in_the_name_of_another_counts_as_damage_and_keeps_itself_from_starting() {
        let (_folder, state, disk, departure) = scene();
        let own = departure.guest.clone();
        let other: GuestName = "web".parse().unwrap();
        let forged = Departure { guest: other.clone(), is_settled: true, ..departure.clone() };
        let file = state.departures().file(&departure);
        durable::write_json(&file, &forged).unwrap();
        let expect = |guest: &GuestName| state.departures().past().expect_here(guest, &disk);
        for spoil in [false, true] {
            if spoil {
                fs::write(&file, "garbage").unwrap();
            }
            expect(&other).unwrap();
            let error = expect(&own).unwrap_err().to_string();
            assert!(error.contains(&file.display().to_string()), "{error}");
        }
        fs::remove_file(&file).unwrap();
        expect(&own).unwrap();
    }

    #[test]
    fn more_notes_than_are_read_keep_their_guest_from_starting() {
        let (_folder, state, disk, departure) = scene();
        let place = state.departures().place(&departure.guest, departure.uuid);
        for number in 0..FILES_MAX {
            fs::write(place.join(format!("{number}.json")), "").unwrap();
        }
        let past = state.departures().past();
        assert!(past.damaged.iter().any(|(_, it)| *it == place));
        past.expect_here(&departure.guest, &disk).unwrap_err();
    }
}
