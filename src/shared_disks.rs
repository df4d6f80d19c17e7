//! Refuses to start a guest on a disk that a guest on another host may be writing.
//!
//! The lock on a block device does not reach other hosts, and names do not help: a guest may be
//! restored or defined under another name. So this goes by the disk: `departures` records with
//! which shared disks a guest has left. The hosts to which that guest has gone are asked where it
//! is, and which other guests of theirs write the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Result, anyhow, bail};
use migrate::protocol::front::DiskUser;
use migrate::record::{Record, RecordError};
use uuid::Uuid;
use vmm_core::virtio::block::with_disks_below;

use crate::departures::{Noted, PresentDisk};
use crate::names::GuestName;
use crate::other_host::{Occasion, OtherHost};
use crate::sought_disk;
use crate::state_dir::StateDir;
use crate::verbs::session::block_on;
use crate::whereabouts::Whereabouts;

/// Most guests whose hosts are asked before a start: each may take several seconds.
const GUESTS_MAX: usize = 8;

/// Disks that a guest is about to take over, by the records of the guests that have left with them.
#[derive(Debug, Default)]
pub(crate) struct TakenOver(Vec<Leftover>);

/// A record of disks with which a guest has left.
#[derive(Debug)]
struct Leftover {
    noted: Noted,
    /// Those of its disks that are taken over.
    disks: Vec<PresentDisk>,
}

/// A guest that has left with disks that are wanted here.
struct Owner<'a> {
    guest: &'a GuestName,
    uuid: Uuid,
    left: &'a [Leftover],
}

/// Refuses each of `disks`, which a guest would write here, if a guest that has left with it may be
/// writing it elsewhere, or if another guest there writes it. For guests called `forced`, the user
/// says that they run nowhere. Returns what is to be recorded right before the guest starts.
///
/// # Errors
/// If such a guest is on another host, or that cannot be determined; the message says how to use
/// the disk anyway.
pub(crate) fn expect_free<'a>(
    state: &StateDir,
    disks: impl Iterator<Item = &'a Path>,
    forced: Option<&GuestName>,
) -> Result<TakenOver> {
    let departures = state.departures().with_shared_disks();
    if departures.is_empty() {
        return Ok(TakenOver::default());
    }
    // A loop device or a volume on a disk writes that disk, too.
    let all = disks.flat_map(with_disks_below);
    let wanted: Vec<PresentDisk> = all.filter_map(|disk| PresentDisk::at(&disk)).collect();
    // A guest's process may write many records, but only of its own guest.
    let mut guests: BTreeMap<(GuestName, Uuid), Vec<Leftover>> = BTreeMap::new();
    for noted in departures {
        let disks: Vec<_> = wanted.iter().filter(|disk| noted.is_about(disk)).cloned().collect();
        if !disks.is_empty() {
            let guest = (noted.departure.guest.clone(), noted.departure.uuid);
            guests.entry(guest).or_default().push(Leftover { noted, disks });
        }
    }
    if guests.len() > GUESTS_MAX {
        bail!(
            "more than {GUESTS_MAX} guests have left this host with the same disks and may write them; if they run nowhere, remove \
             their records in {}",
            state.departures().places().display()
        );
    }
    for ((guest, uuid), left) in &guests {
        let owner = Owner { guest, uuid: *uuid, left };
        owner.expect_gone(state, forced == Some(guest))?;
    }
    Ok(TakenOver(guests.into_values().flatten().collect()))
}

impl TakenOver {
    /// Whether there is nothing to record.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes the disks from the records of the guests that had them.
    ///
    /// # Errors
    /// If a record cannot be written or removed: then it is checked again at the next start.
    pub(crate) fn record(&self, state: &StateDir) -> Result<()> {
        let departures = state.departures();
        self.0.iter().try_for_each(|left| departures.release(&left.noted, &left.disks))
    }
}

impl Owner<'_> {
    fn expect_gone(&self, state: &StateDir, is_forced: bool) -> Result<()> {
        let (disk, guest, way_out) = (self.disk(), self.guest, self.way_out());
        let records = self.records(state).map_err(|error| {
            anyhow!(
                "disk {disk} belongs to the guest {guest}; cannot tell where it is: {error}; if it runs nowhere, {way_out}"
            )
        })?;
        let Some(why) = Whereabouts::by_records(&records).elsewhere() else { return Ok(()) };
        let other = OtherHost::ask_by(state, guest, &records, Occasion::Elsewhere);
        let other = block_on(async { Ok(other.await) })?;
        let is_gone = other.as_ref().is_some_and(OtherHost::is_gone);
        if !is_gone && !is_forced {
            let says = other.as_ref().map(|other| format!("; {}", other.says()));
            let way_out = match other.is_some_and(|other| other.has_it()) {
                true => "Shut that guest down there first, or migrate it back".to_owned(),
                false => format!("If that guest runs nowhere, {way_out}"),
            };
            bail!(
                "disk {disk} belongs to the guest {guest}, which {why}{}: two guests that write one disk destroy its content. {way_out}",
                says.unwrap_or_default()
            );
        }
        other.map_or(Ok(()), |other| self.expect_unused(state, &other, is_forced))
    }

    /// Refuses the disks of a guest that is gone if another guest of those hosts writes them. If
    /// the user forces the start, only a guest that a host names is a reason.
    fn expect_unused(&self, state: &StateDir, other: &OtherHost, is_forced: bool) -> Result<()> {
        for disk in self.disks() {
            let Some(sought) = sought_disk::describe(disk) else { continue };
            for (host, users) in block_on(async { Ok(other.users_of(state, &sought).await) })? {
                let (disk, guest, way_out) = (disk.display(), self.guest, self.way_out());
                let users = match users {
                    Ok(users) => users,
                    Err(_) if is_forced => continue,
                    Err(why) => bail!(
                        "disk {disk} belonged to the guest {guest}, and {host} cannot say whether another guest there writes it ({why}; \
                         earlier versions of lighter cannot): two guests that write one disk destroy its content. If none does, {way_out}"
                    ),
                };
                let mut users = users.iter().filter(|user| !is_forced || !self.is(user));
                if let Some(DiskUser { name, how, .. }) = users.next() {
                    bail!(
                        "disk {disk} belonged to the guest {guest}, and {host} has {name}, which {how}: two guests that write one disk \
                         destroy its content. If {host} is mistaken, {way_out}"
                    );
                }
            }
        }
        Ok(())
    }

    fn is(&self, user: &DiskUser) -> bool {
        user.uuid == self.uuid || user.name.as_str() == self.guest.as_str()
    }

    fn records(&self, state: &StateDir) -> Result<Vec<Record>, RecordError> {
        let mut records = state.records()?.of(self.guest.as_str(), Some(self.uuid))?;
        records.retain(|record| record.guest_uuid == self.uuid);
        Ok(records)
    }

    fn disks(&self) -> BTreeSet<&Path> {
        let disks = self.left.iter().flat_map(|left| &left.disks);
        disks.map(|disk| disk.path.as_path()).collect()
    }

    /// The first disk, for messages.
    fn disk(&self) -> String {
        self.disks().first().map(|disk| disk.display().to_string()).unwrap_or_default()
    }

    /// How to use the disks if the guest runs nowhere.
    fn way_out(&self) -> String {
        let files = self.left.iter().map(|left| left.noted.file.display().to_string());
        format!("`rm {}`", files.collect::<Vec<_>>().join(" "))
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use migrate::MigrationId;
    use migrate::record::SourceState;
    use vmm_core::virtio::block::DiskIdentity;

    use super::*;
    use crate::departures::{DepartedDisk, Departure};
    use crate::node::liveness::tests::source_record;

    /// Creates a disk in a state folder.
    fn scene() -> (tempfile::TempDir, StateDir, PathBuf) {
        let (folder, state) = StateDir::temporary();
        let disk = folder.path().canonicalize().unwrap().join("disk.raw");
        std::fs::write(&disk, "content").unwrap();
        (folder, state, disk)
    }

    /// Records that the guest has left with `disk`, to a host that cannot be asked; returns the
    /// record.
    fn leave(state: &StateDir, (guest, uuid): (&str, u128), disk: &Path) -> PathBuf {
        let (guest, uuid): (GuestName, _) = (guest.parse().unwrap(), Uuid::from_u128(uuid));
        let record = source_record(SourceState::Done, 1);
        let record = Record { guest: guest.to_string(), guest_uuid: uuid, ..record };
        state.records().unwrap().create(&record).unwrap();
        write(state, &guest, uuid, record.migration, disk)
    }

    fn write(
        state: &StateDir,
        guest: &GuestName,
        uuid: Uuid,
        migration: MigrationId,
        disk: &Path,
    ) -> PathBuf {
        let identity = DiskIdentity::at(disk).unwrap();
        state.departures().create_place(guest, uuid).unwrap();
        let departure = Departure {
            guest: guest.clone(),
            uuid,
            migration,
            destination: "host-b".to_owned(),
            disks: vec![DepartedDisk { path: disk.to_owned(), identity }],
            is_shared: true,
            is_settled: true,
        };
        state.departures().write(&departure).unwrap();
        state.departures().place(guest, uuid).join(format!("{migration}.shared"))
    }

    fn expect(state: &StateDir, disk: &Path, forced: Option<&str>) -> Result<TakenOver, String> {
        let forced = forced.map(|name| name.parse::<GuestName>().unwrap());
        let free = expect_free(state, std::iter::once(disk), forced.as_ref());
        free.map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn force_is_about_the_disks_of_guests_of_that_name() {
        let (_folder, state, disk) = scene();
        let other = disk.with_extension("other");
        std::fs::write(&other, "content").unwrap();
        let files = [5, 6].map(|uuid| leave(&state, ("web", uuid), &disk));
        let of_other = leave(&state, ("web", 7), &other);
        for forced in [None, Some("db")] {
            let refused = expect(&state, &disk, forced).unwrap_err();
            for words in ["disk.raw belongs to the guest web", "has moved to host-b", "`rm "] {
                assert!(refused.contains(words), "{refused}");
            }
        }
        let taken = expect(&state, &disk, Some("web")).unwrap();
        assert!(files.iter().all(|file| file.exists()), "nothing is recorded yet");
        taken.record(&state).unwrap();
        assert!(!files.iter().any(|file| file.exists()) && of_other.exists());
        assert!(expect(&state, &disk, None).unwrap().is_empty());
        expect(&state, &other, None).unwrap_err();
    }

    #[test]
    fn records_that_cannot_be_read_are_reported_with_the_disk_and_the_way_out() {
        let (_folder, state, disk) = scene();
        let file = leave(&state, ("web", 5), &disk);
        let place = state.place_of_records(&"web".parse().unwrap(), Uuid::from_u128(5));
        std::fs::write(place.join("later.source.json"), "rubbish").unwrap();
        let refused = expect(&state, &disk, None).unwrap_err();
        let way_out = format!("if it runs nowhere, `rm {}`", file.display());
        for words in ["disk.raw belongs to the guest web", "later.source.json", &way_out] {
            assert!(refused.contains(words), "{refused}");
        }
        std::fs::remove_file(file).unwrap();
        expect(&state, &disk, None).unwrap();
    }

    #[test]
    fn the_disk_of_a_guest_that_is_here_by_its_records_is_free() {
        let (_folder, state, disk) = scene();
        let web = "web".parse().unwrap();
        let file = write(&state, &web, Uuid::from_u128(5), MigrationId::random(), &disk);
        let taken = expect(&state, &disk, None).unwrap();
        assert!(!taken.is_empty() && file.exists());
        taken.record(&state).unwrap();
        assert!(!file.exists());
    }

    #[test]
    fn few_guests_are_asked_about() {
        let (_folder, state, disk) = scene();
        for uuid in 0..=GUESTS_MAX as u128 {
            let web = "web".parse().unwrap();
            write(&state, &web, Uuid::from_u128(uuid), MigrationId::random(), &disk);
        }
        let refused = expect(&state, &disk, Some("web")).unwrap_err();
        assert!(refused.contains("more than 8 guests"), "{refused}");
    }
}
