//! Disks that are copied to this host with their guest.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

use migrate::guest::{MissingMemory, RefusalKind};
use migrate::{
    DestinationGuest, DiskCopy, ExistingFile, GuestDescription, GuestError, Refusal, SourceGuest,
};
use nix::sys::statvfs::statvfs;
use vmm_core::memory::MissingPages;
use vmm_core::virtio::block::{BlockConfig, Occupied, with_disks_below};
use vmm_core::{DeviceConfig, DiskContent, VmShape};

use super::{Part, lay_out, part_of};
use crate::disk_places::DiskPlaces;
use crate::guest::following::{FollowingMemory, strand};
use crate::guest::machine::SharedMachine;
use crate::guest::unconfined::Unconfined;
use crate::units::format_size;

/// Limit for content in the host's page cache before the disk is synced, in bytes. What is left at
/// the end is written while the guest is paused.
const SYNC_EVERY: u64 = 8 << 20;
/// Further portions of that size that the source may be ahead of the disk.
const AHEAD_MAX: usize = 2;

/// Prepares `shape` for the disks that are copied with `guest`.
///
/// # Errors
/// If the description contradicts itself, or a disk may not be created at its path, or has no room
/// there.
pub(crate) fn expect(
    guest: &GuestDescription,
    shape: &mut VmShape,
    folders: &DiskPlaces,
) -> Result<(), Refusal> {
    let refuse = |kind, text: &str| Refusal::new(kind, format!("{}: {text}", guest.name));
    let mut needed: BTreeMap<u64, (u64, &Path)> = BTreeMap::new();
    let is_copied = |index| guest.disks.iter().any(|copy| usize::from(copy.device) == index);
    let shared = shape.devices.iter().enumerate().filter(|(index, _)| !is_copied(*index));
    let mut taken: Vec<PathBuf> = shared
        .filter_map(|(_, device)| match device {
            DeviceConfig::Block(disk) => Some(disk.path().to_owned()),
            _ => None,
        })
        .collect();
    let mut places = Vec::new();
    for copy in &guest.disks {
        let disk = disk_of(shape, copy).map_err(|text| refuse(RefusalKind::Guest, text))?;
        let place = place(disk.path(), folders);
        let place = place.map_err(|text| refuse(RefusalKind::Other, &text))?;
        if taken.iter().any(|other| overlap(other, &place)) {
            let text = format!("two of its disks would be {}", place.display());
            return Err(refuse(RefusalKind::Guest, &text));
        }
        taken.push(place.clone());
        places.push(place);
    }
    let files = guest.disks.iter().zip(&places).filter(|(_, place)| device_at(place).is_none());
    for (copy, place) in files {
        let folder = place.parent().unwrap_or(place);
        let device = folder.metadata().map_or(0, |found| found.dev());
        let (bytes, _) = needed.entry(device).or_insert((0, folder));
        *bytes = bytes.saturating_add(copy.allocated_bytes.min(copy.bytes));
    }
    for (bytes, folder) in needed.into_values() {
        check_room(folder, bytes).map_err(|text| refuse(RefusalKind::Other, &text))?;
    }
    for (copy, place) in guest.disks.iter().zip(&places) {
        let occupied = match copy.existing {
            ExistingFile::Keep => Occupied::Refuse,
            ExistingFile::Replace => Occupied::Replace,
        };
        if let Some(DeviceConfig::Block(disk)) = shape.devices.get_mut(usize::from(copy.device)) {
            *disk = disk.at(place).arriving(occupied);
        }
    }
    Ok(())
}

/// Returns where to put a disk that is wanted at `path`: onto the block device there, which the
/// node has permitted as it permits each disk, or into a new file.
fn place(path: &Path, folders: &DiskPlaces) -> Result<PathBuf, String> {
    if let Some(device) = device_at(path) {
        return Ok(device);
    }
    let place = folders.place(path)?;
    // A file there would be in the host's memory.
    if place.starts_with("/dev") && !place.starts_with("/dev/shm") {
        return Err(format!("there is no block device {} here: make it first", place.display()));
    }
    Ok(place)
}

/// Whether two disks at these paths would have content in common.
fn overlap(one: &Path, other: &Path) -> bool {
    let resolved = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let (one, other) = (resolved(one), resolved(other));
    with_disks_below(&one).contains(&other) || with_disks_below(&other).contains(&one)
}

/// Returns the path, without links, of the block device at `path`.
fn device_at(path: &Path) -> Option<PathBuf> {
    let found = path.canonicalize().ok()?;
    let is_device = found.metadata().ok()?.file_type().is_block_device();
    is_device.then_some(found)
}

/// Returns the disk that an entry of the description means.
fn disk_of<'a>(shape: &'a VmShape, copy: &DiskCopy) -> Result<&'a BlockConfig, &'static str> {
    match shape.devices.get(usize::from(copy.device)) {
        Some(DeviceConfig::Block(disk)) if disk.bytes() == copy.bytes => Ok(disk),
        _ => Err("its description contradicts itself about a disk to be copied"),
    }
}

fn check_room(folder: &Path, bytes: u64) -> Result<(), String> {
    let shown = folder.display();
    let found =
        statvfs(folder).map_err(|error| format!("cannot tell the room in {shown}: {error}"))?;
    let free = found.blocks_available().saturating_mul(found.fragment_size());
    if bytes <= free {
        return Ok(());
    }
    let (bytes, free) = (format_size(bytes), format_size(free));
    Err(format!(
        "its disks take {bytes}, and {shown} has room for {free}: make room or choose another place with --disk-path"
    ))
}

/// An incoming guest, with its disks.
#[derive(Debug)]
pub(crate) struct Arriving {
    machine: SharedMachine,
    parts: Vec<Part>,
    writers: Vec<Writer>,
    /// Threads that name its disks, and open the files that it boots from after a reset.
    unconfined: Option<Unconfined>,
    /// Whether the guest has its disks.
    has_disks: AtomicBool,
    /// What reports accesses to missing pages, until it is used.
    faults: Mutex<Option<MissingPages>>,
}

impl Arriving {
    /// The guest of `machine`, which was created from a shape that [`expect`] has prepared for
    /// `guest`.
    ///
    /// # Errors
    /// If a thread cannot be started.
    pub(crate) fn new(
        machine: SharedMachine,
        guest: &GuestDescription,
        unconfined: Option<Unconfined>,
        faults: Option<MissingPages>,
    ) -> std::io::Result<Self> {
        let all = machine.vm().disks();
        let disk = |copy: &DiskCopy| {
            let found = all.iter().find(|(index, _)| *index == usize::from(copy.device));
            found.map(|(_, disk)| Arc::clone(disk))
        };
        let disks = guest.disks.iter().filter_map(disk);
        let parts = lay_out(guest.layout.chunks(), disks);
        let writers = parts.iter().map(|part| Writer::start(&part.disk));
        let writers = writers.collect::<std::io::Result<_>>()?;
        let (has_disks, faults) = (AtomicBool::new(false), Mutex::new(faults));
        Ok(Self { machine, parts, writers, unconfined, has_disks, faults })
    }

    fn each_disk(
        &self,
        act: impl Fn(&DiskContent) -> Result<(), vmm_core::DeviceError>,
    ) -> Result<(), GuestError> {
        let failed = |error: vmm_core::DeviceError| GuestError::new(error.to_string());
        self.parts.iter().try_for_each(|part| act(&part.disk).map_err(failed))
    }
}

impl Arriving {
    /// Waits until the disks have no old content. That is done while the first round comes, and not
    /// in the hand-over.
    fn await_cleared(&self) -> Result<(), GuestError> {
        self.writers.iter().try_for_each(Writer::await_cleared)
    }

    fn name_disks(&self) -> Result<(), GuestError> {
        let disks = self.parts.iter().map(|part| Arc::clone(&part.disk));
        let disks: Vec<_> = disks.filter(|disk| !disk.is_device()).collect();
        let Some(Unconfined { maker, .. }) = &self.unconfined else {
            let disks: Vec<_> = disks.iter().map(|disk| &**disk).collect();
            return DiskContent::adopt(&disks).map_err(|error| GuestError::new(error.to_string()));
        };
        // If the thread has ended, the disks have their names already.
        if !disks.is_empty() && !maker.has_ended() {
            maker.name(disks).map_err(GuestError::new)?;
            maker.end();
        }
        Ok(())
    }
}

impl DestinationGuest for Arriving {
    fn copy_in(&self, chunk: usize, first_page: usize, data: &[u8]) -> Result<(), GuestError> {
        let Some(part) = part_of(&self.parts, chunk) else {
            return self.machine.copy_in(chunk, first_page, data);
        };
        self.await_cleared()?;
        let written = part.disk.copy_in(chunk - part.first_chunk, first_page, data);
        written.map_err(|error| GuestError::new(error.to_string()))?;
        let writer = self.writers.iter().find(|writer| Arc::ptr_eq(&writer.disk, &part.disk));
        writer.map_or(Ok(()), |writer| writer.wrote(data.len() as u64))
    }

    fn zero(&self, chunk: usize, mask: u64) -> Result<(), GuestError> {
        match part_of(&self.parts, chunk) {
            None => self.machine.zero(chunk, mask),
            Some(part) => {
                self.await_cleared()?;
                let zeroed = part.disk.zero(chunk - part.first_chunk, mask);
                zeroed.map_err(|error| GuestError::new(error.to_string()))
            }
        }
    }

    fn load_state(&self, state: &[u8]) -> Result<(), GuestError> {
        self.writers.iter().try_for_each(Writer::finish)?;
        self.each_disk(DiskContent::sync)?;
        // The last chance to find this out: from here on, the source relies on this host.
        self.each_disk(DiskContent::check_adoption)?;
        self.machine.load_state(state)?;
        if let Some(Unconfined { opener, .. }) = &self.unconfined {
            opener.open(self.machine.vm().wanted_boot_files());
        }
        Ok(())
    }

    fn adopt(&self) -> Result<(), GuestError> {
        // Take the locks first: if that fails, the guest continues at its source, and no copy of
        // its disks may stay here.
        DestinationGuest::adopt(&*self.machine)?;
        let named = self.name_disks();
        match named {
            Ok(()) => self.has_disks.store(true, Ordering::Relaxed),
            // Lets the source take the locks again.
            Err(_) => SourceGuest::release(&*self.machine)?,
        }
        named
    }

    fn resume(&self) -> Result<(), GuestError> {
        DestinationGuest::resume(&*self.machine)
    }

    fn follow_with_memory(&self) -> Result<Arc<dyn MissingMemory>, GuestError> {
        let faults = lock(&self.faults).take().ok_or_else(|| {
            GuestError::new(
                "this process may not have a userfaultfd: memory cannot arrive after its guest",
            )
        })?;
        Ok(Arc::new(FollowingMemory::begin(&self.machine, faults)?))
    }

    fn strand(&self) -> Result<(), GuestError> {
        strand(&self.machine)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if self.has_disks.load(Ordering::Relaxed) {
            return;
        }
        for part in self.parts.iter().filter(|part| part.disk.is_device()) {
            let path = part.disk.path().display();
            tracing::warn!(
                "the guest has not arrived: {path} has a part of its disk, and what was there before is lost"
            );
        }
    }
}

/// Zeroes the block device that a disk overwrites, and then writes the disk's content back while
/// more of it arrives. So little is left for the end, and a source that is faster than the disk has
/// to wait for it.
#[derive(Debug)]
struct Writer {
    disk: Arc<DiskContent>,
    unwritten: AtomicU64,
    /// The queue and the thread; both are gone once all content has arrived.
    work: Mutex<Option<(SyncSender<()>, JoinHandle<()>)>>,
    results: Arc<Results>,
}

/// What the thread of a [`Writer`] has to report.
#[derive(Debug, Default)]
struct Results {
    /// Set once nothing is left of what was on the disk before, or the thread has failed.
    is_cleared: OnceLock<()>,
    fault: Mutex<Option<String>>,
}

impl Writer {
    fn start(disk: &Arc<DiskContent>) -> std::io::Result<Self> {
        let (orders, inbox) = sync_channel(AHEAD_MAX);
        let results: Arc<Results> = Arc::default();
        let shared = (Arc::clone(disk), Arc::clone(&results));
        let thread =
            std::thread::Builder::new().name("disk-writer".to_owned()).spawn(move || {
                let (disk, results) = shared;
                clear(&disk, &inbox, &results);
                write_back(&disk, &inbox, &results);
            })?;
        Ok(Self {
            disk: Arc::clone(disk),
            unwritten: AtomicU64::new(0),
            work: Mutex::new(Some((orders, thread))),
            results,
        })
    }

    /// Waits until content may be written.
    fn await_cleared(&self) -> Result<(), GuestError> {
        self.results.is_cleared.wait();
        self.verdict()
    }

    /// Counts content that has arrived, and has it synced when it is enough.
    fn wrote(&self, bytes: u64) -> Result<(), GuestError> {
        let unwritten = self.unwritten.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if unwritten >= SYNC_EVERY {
            self.unwritten.store(0, Ordering::Relaxed);
            if let Some((orders, _)) = &*lock(&self.work) {
                // A thread that has ended has left its error.
                let _ = orders.send(());
            }
            self.verdict()?;
        }
        Ok(())
    }

    /// Waits until the thread has done what it was asked for, once all content has arrived.
    fn finish(&self) -> Result<(), GuestError> {
        self.await_cleared()?;
        self.end();
        self.verdict()
    }

    /// Ends the thread, even before it has cleared the disk.
    fn end(&self) {
        if let Some((orders, thread)) = lock(&self.work).take() {
            drop(orders);
            // A panic there has been reported by the panic handler already.
            let _ = thread.join();
        }
    }

    /// Returns the thread's error. It must be kept, because the kernel reports a failed write only
    /// once, to the first caller that syncs.
    fn verdict(&self) -> Result<(), GuestError> {
        match &*lock(&self.results.fault) {
            Some(fault) => Err(GuestError::new(fault.clone())),
            None => Ok(()),
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The guest is given up, so a write error no longer matters.
        self.end();
    }
}

/// Clears the disk, unless its writer is gone before. The first orders come after that.
fn clear(disk: &DiskContent, inbox: &Receiver<()>, results: &Results) {
    let is_wanted = || inbox.try_recv() != Err(TryRecvError::Disconnected);
    if let Err(error) = disk.clear(is_wanted) {
        *lock(&results.fault) = Some(error.to_string());
    }
    let _ = results.is_cleared.set(());
}

fn write_back(disk: &DiskContent, inbox: &Receiver<()>, results: &Results) {
    while inbox.recv().is_ok() {
        if let Err(error) = disk.sync() {
            *lock(&results.fault) = Some(error.to_string());
            return;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
