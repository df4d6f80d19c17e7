//! What a guest's process has outside of `guests/NAME`: the file with the guest's UUID, and the
//! folders in which only that process may write. They are created before the process is confined,
//! and outlive it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use migrate::record::{RecordError, RecordStore};
use uuid::Uuid;

use super::{GUEST_FILE_BYTES_MAX, StateDir};
use crate::durable;
use crate::names::GuestName;

impl StateDir {
    /// Returns the records of all guests' migrations.
    ///
    /// # Errors
    /// If their folder does not exist.
    pub(crate) fn records(&self) -> Result<RecordStore, RecordError> {
        RecordStore::open(&self.migrations())
    }

    /// Returns the records of one guest, for its process.
    pub(crate) fn records_of(&self, name: &GuestName) -> RecordStore {
        RecordStore::of_guest(&self.migrations(), name.as_str())
    }

    /// Folder in which the process of the guest `uuid`, called `name` on this host, writes its
    /// records.
    pub(crate) fn place_of_records(&self, name: &GuestName, uuid: Uuid) -> PathBuf {
        RecordStore::place(&self.migrations(), name.as_str(), uuid)
    }

    /// Folder that contains each guest's folder of records, by name.
    pub(crate) fn places_of_records(&self) -> PathBuf {
        RecordStore::places(&self.migrations())
    }

    /// Returns the current time in milliseconds since 1970, but later than everything recorded
    /// about migrations of guests of this name, even if the clock was set back.
    pub(crate) fn timestamp_after_records(&self, name: &GuestName) -> u64 {
        self.records_of(name).timestamp()
    }

    /// Creates the folders in which the process of the guest `uuid` records its migrations, its
    /// departed disks and how it ended, and writes that the guest has `name`. Removes such files
    /// and folders of guests that are gone.
    ///
    /// # Errors
    /// If a file or folder cannot be created, or if another live guest has the UUID.
    pub(crate) fn prepare_guest(&self, name: &GuestName, uuid: Uuid) -> Result<()> {
        let folder = self.identities();
        // One start at a time: another start may check whether a name is free while this one takes
        // it.
        let turn = fs::File::open(&folder).and_then(|turn| turn.lock().map(|()| turn));
        let _turn = turn.with_context(|| format!("cannot lock {}", folder.display()))?;
        let live = self.forget_uuids_of_the_gone()?;
        let has_it =
            |it: &&GuestName| *it != name && self.read_uuid(it).is_ok_and(|its| its == uuid);
        if let Some(other) = live.iter().find(has_it) {
            bail!("{other}, which is live here, has the same UUID, {uuid}: give one another");
        }
        let definitions = self.definitions();
        // A definition that cannot be read counts as defined.
        self.ended().tidy(|guest| !matches!(definitions.find(guest), Ok(None)));
        self.remove_empty_folders(name);
        self.ended().create_place(name)?;
        RecordStore::create_place(&self.migrations(), name.as_str(), uuid)?;
        self.departures().create_place(name, uuid)?;
        durable::write_json_unflushed(&self.uuid_file(name), &uuid)
    }

    /// Reads which guest has the name, as written by the process that started it. Does not say
    /// whether that guest is live.
    ///
    /// # Errors
    /// If there is no guest of that name, or the file is damaged.
    pub(crate) fn read_uuid(&self, name: &GuestName) -> Result<Uuid> {
        let path = self.uuid_file(name);
        let text = regular_file::read(&path, GUEST_FILE_BYTES_MAX)
            .with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    pub(super) fn identities(&self) -> PathBuf {
        self.root.join("identities")
    }

    fn uuid_file(&self, name: &GuestName) -> PathBuf {
        self.identities().join(format!("{name}.json"))
    }

    /// Removes the files of guests that are gone; returns the others' names.
    fn forget_uuids_of_the_gone(&self) -> Result<Vec<GuestName>> {
        let mut live = Vec::new();
        let folder = self.identities();
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            // A file that another guest's start is writing has another extension.
            if path.extension().is_none_or(|ending| ending != "json") {
                continue;
            }
            let owner = path.file_stem().and_then(|stem| stem.to_str()?.parse::<GuestName>().ok());
            match owner.filter(|owner| self.guest(owner).is_live()) {
                Some(owner) => live.push(owner),
                // If a file of this name cannot be removed, the later write reports it.
                None => drop(fs::remove_file(&path)),
            }
        }
        Ok(live)
    }

    /// Removes empty folders that [`Self::prepare_guest`] has created, if no process may need them.
    /// The process of `own` has not been given its folders yet, so those may be removed too.
    fn remove_empty_folders(&self, own: &GuestName) {
        for folder in [self.places_of_records(), self.ended().places(), self.departures().places()]
        {
            for (name, path) in folders_in(&folder) {
                let Ok(owner) = name.parse::<GuestName>() else { continue };
                if owner != *own && self.guest(&owner).is_live() {
                    continue;
                }
                self.ended().remove_unfinished(&owner);
                // Folders that are not empty stay.
                for (_, of_uuid) in folders_in(&path) {
                    let _stays = fs::remove_dir(of_uuid);
                }
                let _stays = fs::remove_dir(path);
            }
        }
    }
}

/// Returns the folders in `folder`, with their names.
fn folders_in(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.filter_map(|it| Some((it.file_name().into_string().ok()?, it.path()))).collect()
}
