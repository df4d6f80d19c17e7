//! A guest with the disks that are copied with it. Chunks count memory first, then one disk after
//! the other, each starting at a new chunk, so that a migration need not distinguish them.
//!
//! [`Departing`] is the source's view. [`Arriving`] is the destination's, where disks are files
//! without names until the guest belongs to this host; [`expect`] decides which disks are accepted.

mod arriving;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use migrate::guest::THROTTLE_LEASE;
use migrate::text::Blob;
use migrate::{
    DiskCopy, ExistingFile, GuestDescription, GuestError, HintProgress, MigrationId, SourceGuest,
    Throttle, Throttled,
};
use vmm_core::virtio::block::{Access, DiskProof, Mark};
use vmm_core::{DeviceConfig, DiskContent, VmShape};

pub(crate) use arriving::{Arriving, expect};

use super::machine::SharedMachine;
use crate::api::migration::CopyDisks;
use crate::departures::{self, DepartedDisk, Departure};
use crate::names::GuestName;

/// A disk that is copied.
#[derive(Debug, Clone)]
struct Part {
    /// The disk's first chunk.
    first_chunk: usize,
    disk: Arc<DiskContent>,
}

impl Part {
    fn end(&self) -> usize {
        self.first_chunk + self.disk.chunks()
    }
}

/// Returns the disk that `chunk` belongs to; `None` if it is memory.
fn part_of(parts: &[Part], chunk: usize) -> Option<&Part> {
    parts.iter().find(|part| (part.first_chunk..part.end()).contains(&chunk))
}

/// Numbers the chunks of disks after `memory_chunks` of memory.
fn lay_out(memory_chunks: usize, disks: impl Iterator<Item = Arc<DiskContent>>) -> Vec<Part> {
    let mut first_chunk = memory_chunks;
    let part = |disk: Arc<DiskContent>| {
        let part = Part { first_chunk, disk };
        first_chunk = part.end();
        part
    };
    disks.map(part).collect()
}

/// A departing guest, with the disks that are copied with it.
#[derive(Debug)]
pub(crate) struct Departing {
    machine: SharedMachine,
    description: GuestDescription,
    /// The destination, as the user wrote it.
    destination: String,
    migration: MigrationId,
    parts: Vec<Part>,
    /// Marks on shared disks, kept until the destination has seen them.
    marks: Mutex<Vec<Mark>>,
}

/// What happens to the disks of a departing guest.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Disks<'a> {
    /// Which disks are copied, and how; none if absent. Both hosts share the others.
    pub(super) copied: Option<&'a CopyDisks>,
    /// The user vouches that shared disks are the same on both hosts, and that no copied disk is
    /// the block device that it overwrites. Otherwise the hosts prove that.
    pub(super) are_vouched: bool,
}

impl Departing {
    /// The guest of `machine` on its way to `destination` with `migration`, and with its disks if
    /// they are copied.
    ///
    /// # Errors
    /// If the request does not fit this guest.
    pub(crate) fn new(
        machine: SharedMachine,
        destination: &str,
        migration: MigrationId,
        disks: Disks<'_>,
    ) -> Result<Self, String> {
        let mut description = SourceGuest::describe(&*machine);
        let mut shape = VmShape::clone(&machine.shape());
        let mut copied = BTreeSet::new();
        if let Some(wanted) = disks.copied {
            copied = chosen(&machine, &wanted.only)?;
            move_disks(&mut shape, &copied, &wanted.paths)?;
            description.disks = copies(&machine, &copied, wanted.replace);
        }
        let marks = prove(&machine, &mut shape, &copied, disks.are_vouched);
        let contents = machine.disks().filter(|(index, _)| copied.contains(index));
        let contents = contents.map(|(_, disk)| disk);
        let parts = lay_out(description.layout.chunks(), contents);
        description.config = Blob(shape.to_bytes().map_err(|error| error.to_string())?);
        description.check_bounds().map_err(|refusal| refusal.to_string())?;
        let (destination, marks) = (destination.to_owned(), Mutex::new(marks));
        Ok(Self { machine, description, destination, migration, parts, marks })
    }

    fn failed(&self, what: &str, error: impl std::fmt::Display) -> GuestError {
        GuestError::new(format!("cannot {what} of {}: {error}", self.description.name))
    }

    fn memory_chunks(&self) -> usize {
        self.description.layout.chunks()
    }

    /// The block devices that the guest writes and that the destination shares.
    pub(super) fn written_devices(&self) -> impl Iterator<Item = Arc<DiskContent>> {
        self.written(Way::Shared).filter(|disk| disk.is_device())
    }

    /// Returns the records of the disks that the guest writes, for when it has left with them: one
    /// for those that are copied, and one for those that the destination shares, if there are any.
    pub(super) fn departures(&self, guest: &GuestName) -> Vec<Departure> {
        let recognized = |disk: Arc<DiskContent>| {
            Some(DepartedDisk { identity: disk.identity()?, path: disk.path().to_owned() })
        };
        let departure = |way| Departure {
            guest: guest.clone(),
            uuid: self.description.uuid,
            migration: self.migration,
            destination: self.destination.clone(),
            disks: self.written(way).filter_map(recognized).collect(),
            is_shared: way == Way::Shared,
            is_settled: false,
        };
        let both = [Way::Copied, Way::Shared].map(departure).into_iter();
        both.filter(|departure| !departure.disks.is_empty()).collect()
    }

    /// The disks that the guest writes and that reach the destination in this way. A copied disk
    /// that it only reads stays up to date here, and other guests may read it.
    fn written(&self, way: Way) -> impl Iterator<Item = Arc<DiskContent>> {
        let disks = self.machine.disks().map(|(_, disk)| disk);
        let disks = disks.filter(|disk| disk.access() == Access::ReadWrite);
        disks.filter(move |disk| self.way_of(disk) == way)
    }

    fn way_of(&self, disk: &Arc<DiskContent>) -> Way {
        let is_copied = self.parts.iter().any(|part| Arc::ptr_eq(&part.disk, disk));
        if is_copied { Way::Copied } else { Way::Shared }
    }
}

/// How the destination gets a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Its content is copied.
    Copied,
    /// Both hosts share it.
    Shared,
}

/// Returns the indexes of the disks that are copied: those at the paths `only`, or all.
fn chosen(machine: &SharedMachine, only: &BTreeSet<PathBuf>) -> Result<BTreeSet<usize>, String> {
    let has = |path: &Path| machine.disks().any(|(_, disk)| disk.path() == path);
    if let Some(path) = only.iter().find(|path| !has(path)) {
        return Err(no_disk(path));
    }
    let is_chosen = |disk: &DiskContent| only.is_empty() || only.contains(disk.path());
    let disks = machine.disks().filter(|(_, disk)| is_chosen(disk));
    Ok(disks.map(|(index, _)| index).collect())
}

fn no_disk(path: &Path) -> String {
    format!("the guest has no disk {}", path.display())
}

/// Describes the `copied` disks of `machine`.
fn copies(machine: &SharedMachine, copied: &BTreeSet<usize>, replace: bool) -> Vec<DiskCopy> {
    let existing = if replace { ExistingFile::Replace } else { ExistingFile::Keep };
    let copy = |(index, disk): (usize, Arc<DiskContent>)| DiskCopy {
        // No truncation: a guest has a handful of devices.
        device: index as u16,
        bytes: disk.bytes(),
        allocated_bytes: disk.allocated_bytes(),
        existing,
    };
    machine.disks().filter(|(index, _)| copied.contains(index)).map(copy).collect()
}

/// Records in `shape` the evidence from which the destination tells each disk from others, and
/// marks the shared files for that. A disk that cannot be marked cannot be proven, and the
/// destination reports that.
fn prove(
    machine: &SharedMachine,
    shape: &mut VmShape,
    copied: &BTreeSet<usize>,
    are_vouched: bool,
) -> Vec<Mark> {
    let mut marks = Vec::new();
    for (index, content) in machine.disks() {
        let Some(DeviceConfig::Block(disk)) = shape.devices.get_mut(index) else { continue };
        let is_copied = copied.contains(&index);
        // A copied file cannot be the block device that it may overwrite there.
        if are_vouched || is_copied && !content.is_device() {
            *disk = disk.clone().with_proof(DiskProof::Vouched);
            continue;
        }
        // A copied device has its names: the destination does not overwrite the device itself.
        if is_copied {
            continue;
        }
        match content.mark() {
            Ok(Some(mark)) => {
                *disk = disk.clone().with_proof(mark.proof());
                marks.push(mark);
            }
            Ok(None) => {}
            Err(error) => {
                let path = content.path().display();
                tracing::warn!(%error, "cannot mark {path}, so that the destination could tell it from others");
                *disk = disk.clone().with_proof(DiskProof::Absent);
            }
        }
    }
    marks
}

/// Gives `copied` disks of `shape` their paths at the destination.
fn move_disks(
    shape: &mut VmShape,
    copied: &BTreeSet<usize>,
    paths: &BTreeMap<PathBuf, PathBuf>,
) -> Result<(), String> {
    let mut left: Vec<&Path> = paths.keys().map(PathBuf::as_path).collect();
    for (index, device) in shape.devices.iter_mut().enumerate() {
        let DeviceConfig::Block(disk) = device else { continue };
        if let Some((old, new)) = paths.get_key_value(disk.path()) {
            if !copied.contains(&index) {
                return Err(format!(
                    "disk {} is not copied, so it has the same path on both hosts: copy it (--copy-disk), or omit its --disk-path",
                    old.display()
                ));
            }
            if !new.is_absolute() {
                return Err(format!("{} must be an absolute path", new.display()));
            }
            left.retain(|path| path != old);
            *disk = disk.at(new);
        }
    }
    match left.first() {
        None => Ok(()),
        Some(path) => Err(no_disk(path)),
    }
}

impl SourceGuest for Departing {
    fn describe(&self) -> GuestDescription {
        self.description.clone()
    }

    fn start_dirty_log(&self) -> Result<(), GuestError> {
        // The destination has seen the marks by now.
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.parts.iter().for_each(|part| part.disk.start_log());
        self.machine.start_dirty_log()
    }

    fn leave_out(&self, words: &mut [u64]) -> Result<(), GuestError> {
        for part in &self.parts {
            if let Some(words) = words.get_mut(part.first_chunk..part.end()) {
                part.disk.find_data(words).map_err(|error| self.failed("read a disk", error))?;
            }
        }
        Ok(())
    }

    fn gives_hints(&self) -> bool {
        self.machine.gives_hints()
    }

    fn begin_hints(&self) -> Result<(), GuestError> {
        self.machine.begin_hints()
    }

    fn hint_progress(&self) -> Result<HintProgress, GuestError> {
        self.machine.hint_progress()
    }

    fn end_hints(&self, words: &mut [u64]) -> Result<(), GuestError> {
        self.machine.end_hints(words)
    }

    fn stop_dirty_log(&self) -> Result<(), GuestError> {
        self.parts.iter().for_each(|part| part.disk.stop_log());
        for disk in self.written(Way::Copied) {
            // The guest stays on this host.
            if let Err(error) = disk.forget_departure() {
                let path = disk.path().display();
                tracing::error!(%error, "{path} is still marked as moved away");
            }
        }
        self.machine.stop_dirty_log()
    }

    fn throttle(&self, throttle: Throttle) -> Result<Throttled, GuestError> {
        let disks: Vec<_> = self.written(Way::Copied).collect();
        let count = disks.len().max(1) as u64;
        let each = |all: NonZeroU64| NonZeroU64::new(all.get() / count).unwrap_or(NonZeroU64::MIN);
        let limit = throttle.disk_bytes_per_second.map(each);
        disks.iter().for_each(|disk| disk.limit_writes(limit, THROTTLE_LEASE));
        self.machine.throttle(throttle)
    }

    fn collect_dirty(&self, words: &mut [u64]) -> Result<(), GuestError> {
        let (memory, disks) = words.split_at_mut(self.memory_chunks().min(words.len()));
        let memory_chunks = memory.len();
        for part in &self.parts {
            let range = part.first_chunk - memory_chunks..part.end() - memory_chunks;
            if let Some(words) = disks.get_mut(range) {
                part.disk.collect_written(words);
            }
        }
        self.machine.collect_dirty(memory)
    }

    fn rearm_dirty(&self, first_chunk: usize, words: &[u64]) -> Result<(), GuestError> {
        let end = first_chunk + words.len();
        for part in &self.parts {
            let (from, to) = (part.first_chunk.max(first_chunk), part.end().min(end));
            if from < to {
                let words = &words[from - first_chunk..to - first_chunk];
                part.disk.rearm(from - part.first_chunk, words);
            }
        }
        let memory = self.memory_chunks().saturating_sub(first_chunk).min(words.len());
        match memory {
            0 => Ok(()),
            memory => self.machine.rearm_dirty(first_chunk, &words[..memory]),
        }
    }

    fn copy_out(&self, chunk: usize, first_page: usize, buf: &mut [u8]) -> Result<(), GuestError> {
        match part_of(&self.parts, chunk) {
            None => self.machine.copy_out(chunk, first_page, buf),
            Some(part) => {
                let copied = part.disk.copy_out(chunk - part.first_chunk, first_page, buf);
                copied.map_err(|error| self.failed("read a disk", error))
            }
        }
    }

    fn pause(&self) -> Result<(), GuestError> {
        self.machine.pause()
    }

    fn resume(&self) -> Result<(), GuestError> {
        SourceGuest::resume(&*self.machine)
    }

    fn is_running(&self) -> bool {
        self.machine.is_running()
    }

    fn release(&self) -> Result<(), GuestError> {
        let note = departures::note_text(&self.destination, self.description.uuid, self.migration);
        for disk in self.written(Way::Copied) {
            if let Err(error) = disk.note_departure(&note) {
                let path = disk.path().display();
                tracing::warn!(%error, "cannot mark {path} as moved away: do not use it any more");
            }
        }
        self.machine.release()
    }

    fn flush(&self) -> Result<(), GuestError> {
        self.machine.flush()
    }

    fn save_state(&self) -> Result<Vec<u8>, GuestError> {
        self.machine.save_state()
    }
}

#[cfg(test)]
mod tests;
