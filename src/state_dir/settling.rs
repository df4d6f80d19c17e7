//! What the process of a guest has outside of `guests/NAME`: the file which says which guest it is,
//! and the folders in which it alone may write. They outlive it, and are made before it is
//! confined.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use migrate::record::{RecordError, RecordStore};
use uuid::Uuid;

use super::{GUEST_FILE_BYTES_MAX, StateDir};
use crate::durable;
use crate::names::GuestName;

impl StateDir {
    /// The records of all guests' migrations.
    ///
    /// # Errors
    /// There is no folder for them.
    pub(crate) fn records(&self) -> Result<RecordStore, RecordError> {
        RecordStore::open(&self.migrations())
    }

    /// Those of one guest's, for its process.
    pub(crate) fn records_of(&self, name: &GuestName) -> RecordStore {
        RecordStore::of_guest(&self.migrations(), name.as_str())
    }

    /// Where the process of the guest `uuid` writes them, which has this name here.
    pub(crate) fn place_of_records(&self, name: &GuestName, uuid: Uuid) -> PathBuf {
        RecordStore::place(&self.migrations(), name.as_str(), uuid)
    }

    /// Where the guests have them, by name.
    pub(crate) fn places_of_records(&self) -> PathBuf {
        RecordStore::places(&self.migrations())
    }

    /// Now, in milliseconds since 1970; but later than all that is recorded of migrations of guests
    /// of this name, also when the clock was set back.
    pub(crate) fn timestamp_after_records(&self, name: &GuestName) -> u64 {
        self.records_of(name).timestamp()
    }

    /// Makes folders for the guest `uuid`, in which its process writes records of migrations, which
    /// disks left with it and how it ended, and notes that it has `name`. Removes what guests that
    /// are gone have left of the same.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn prepare_guest(&self, name: &GuestName, uuid: Uuid) -> Result<()> {
        let folder = self.identities();
        // A name may be taken again while another's start sees whether it is free.
        let turn = fs::File::open(&folder).and_then(|turn| turn.lock().map(|()| turn));
        let _turn = turn.with_context(|| format!("cannot lock {}", folder.display()))?;
        self.forget_uuids_of_the_gone()?;
        let definitions = self.definitions();
        // One that cannot be read counts as defined.
        self.ended().tidy(|guest| !matches!(definitions.find(guest), Ok(None)));
        self.remove_empty_folders(name);
        self.ended().create_place(name)?;
        RecordStore::create_place(&self.migrations(), name.as_str(), uuid)?;
        self.departures().create_place(name, uuid)?;
        durable::write_json_unflushed(&self.uuid_file(name), &uuid)
    }

    /// Which guest has the name, by the word of who started it. Says nothing about whether it
    /// lives.
    ///
    /// # Errors
    /// There is none of that name, or the file is damaged.
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

    fn forget_uuids_of_the_gone(&self) -> Result<()> {
        let folder = self.identities();
        let entries =
            fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for entry in entries.flatten() {
            let path = entry.path();
            // One that another guest's start is just writing has another ending.
            if path.extension().is_none_or(|ending| ending != "json") {
                continue;
            }
            let owner = path.file_stem().and_then(|stem| stem.to_str()?.parse::<GuestName>().ok());
            if owner.is_none_or(|owner| !self.guest(&owner).is_live()) {
                // What is in the way of this name, its own writing says.
                let _removed = fs::remove_file(&path);
            }
        }
        Ok(())
    }

    /// Removes folders that [`Self::prepare_guest`] has made, if nothing is in them and no process
    /// may need them: that of `own` has not been given its own yet.
    fn remove_empty_folders(&self, own: &GuestName) {
        for folder in [self.places_of_records(), self.ended().places(), self.departures().places()]
        {
            for (name, path) in folders_in(&folder) {
                let Ok(owner) = name.parse::<GuestName>() else { continue };
                if owner != *own && self.guest(&owner).is_live() {
                    continue;
                }
                self.ended().remove_unfinished(&owner);
                // Those in which there is something stay.
                for (_, of_uuid) in folders_in(&path) {
                    let _stays = fs::remove_dir(of_uuid);
                }
                let _stays = fs::remove_dir(path);
            }
        }
    }
}

/// The folders in `folder`, with their names.
fn folders_in(folder: &Path) -> Vec<(String, PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.filter_map(|it| Some((it.file_name().into_string().ok()?, it.path()))).collect()
}
