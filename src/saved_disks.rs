//! Disks that saved guests need unchanged: one that is written no longer fits the guest's memory in
//! its file.

use std::fs::metadata;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use regular_file::opened::is_same;
use vmm_core::snapshot;
use vmm_core::virtio::block::{Access, with_disks_below};

use crate::ended::Ended;
use crate::state_dir::StateDir;

/// A guest that was saved, and can be restored.
#[derive(Debug)]
pub(crate) struct SavedGuest<'a> {
    /// Its file.
    pub(crate) file: &'a Path,
    /// The disks that it writes, as its file has them.
    pub(crate) written: Vec<PathBuf>,
}

impl<'a> SavedGuest<'a> {
    /// Returns the guest that has `ended`, if it was saved and its file is neither gone nor
    /// damaged.
    pub(crate) fn of(ended: &'a Ended) -> Option<Self> {
        let file = ended.saved_to()?;
        let (shape, _) = snapshot::read_guest(file).ok()?;
        let written = shape.disks().filter(|disk| disk.access() == Access::ReadWrite);
        Some(Self { file, written: written.map(|disk| disk.path().to_owned()).collect() })
    }
}

/// Refuses each of `disks`, which a guest would write, if another guest was saved with it on this
/// host. Guests whose records are to `pass` do not count.
///
/// # Errors
/// If there is such a guest; the message says how to use the disk anyway.
pub(crate) fn expect_unneeded(
    state: &StateDir,
    disks: &[&Path],
    pass: impl Fn(&Ended) -> bool,
) -> Result<()> {
    let ended = state.ended().list().into_iter().filter_map(|record| record.end.ok());
    let is_off = |it: &Ended| !pass(it) && !state.guest(&it.name).is_live();
    for ended in ended.filter(is_off) {
        let Some(guest) = SavedGuest::of(&ended) else { continue };
        let pairs = disks.iter().flat_map(|disk| guest.written.iter().map(move |its| (disk, its)));
        if let Some((disk, its)) = pairs.into_iter().find(|(disk, its)| overlap(disk, its)) {
            let (name, file) = (&ended.name, guest.file.display());
            let which = match is_one(disk, its) {
                true => format!("{} is", disk.display()),
                false => format!("{} overlaps {},", disk.display(), its.display()),
            };
            bail!(
                "{which} a disk of the guest {name}, which was saved to {file} and needs it unchanged: restore that, \
                 or remove the file to use the disk without it"
            );
        }
    }
    Ok(())
}

/// Whether this is the record of the guest that was saved to `file`.
pub(crate) fn is_in(ended: &Ended, file: &Path) -> bool {
    ended.saved_to().is_some_and(|saved| is_one(saved, file))
}

/// Whether two disks are one, or one is below the other.
fn overlap(one: &Path, other: &Path) -> bool {
    let has = |disk: &Path, wanted: &Path| {
        with_disks_below(disk).iter().any(|below| is_one(below, wanted))
    };
    has(one, other) || has(other, one)
}

fn is_one(file: &Path, other: &Path) -> bool {
    metadata(file).is_ok_and(|it| metadata(other).is_ok_and(|other| is_same(&it, &other)))
}
