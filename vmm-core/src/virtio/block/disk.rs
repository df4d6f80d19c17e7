//! A disk of the host: opened, measured, and locked while the guest runs on this host.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use regular_file::opened::path_of;

use super::behind::behind_loops;
use super::cache::CacheMode;
use super::config::{Access, BlockConfig, Occupied, Origin};
use super::hold::{self, HandedClaim, Hold};
use super::names::expect_readable;
use super::proof::DiskProof;
use super::resize;
use super::seal::{self, Seal};
use super::store::Store;
use super::{departed, overwritten};
use crate::sys::file::{despite_lease, make_blocking, may_write};
use crate::virtio::DeviceError;
use crate::virtio::handed::HandedFiles;

/// How long to wait for a disk that the guest's other copy still locks: after a migration, the
/// source unlocks it while it tells the destination to resume.
const LOCK_PATIENCE: Duration = Duration::from_secs(3);
/// Interval between attempts to lock the disk.
const LOCK_INTERVAL: Duration = Duration::from_millis(2);

/// An open disk of the host; see the module.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    store: Arc<Store>,
    access: Access,
    bytes: u64,
    /// What keeps others away; empty while the disk is not locked.
    holds: Vec<Hold>,
    /// The claim on a disk that another process has opened; `None` if this one has.
    claim: Option<HandedClaim>,
    /// The guest has used the disk here, so there may be writes that are not durable yet.
    may_be_written: bool,
    /// Required state of the disk when it is taken over.
    expected: Expected,
}

/// The state in which a guest must find its disk at the take-over; otherwise its memory would not
/// match the disk.
#[derive(Debug)]
enum Expected {
    /// Any: the guest uses the content as it is.
    Anything,
    /// Unchanged since the guest was saved.
    AsSaved(Seal),
    /// Unchanged since the guest released the disk in this process, if that can be determined.
    AsLeft(Seal),
}

impl Disk {
    /// Opens the disk of `config` without locking it; an arriving disk is locked from now on. Its
    /// file has been created ([`BlockConfig::made`]), or it overwrites a block device.
    ///
    /// # Errors
    /// [`DeviceError`], if the disk cannot be opened, or a device cannot be locked.
    pub(crate) fn open(config: &BlockConfig) -> Result<Self, DeviceError> {
        let (path, access, bytes) = (config.path(), config.access(), config.bytes());
        let disk = match config.origin() {
            Origin::Present => {
                let expected = match config.proof() {
                    DiskProof::Sealed(seal) => Expected::AsSaved(seal.clone()),
                    _ => Expected::Anything,
                };
                let disk = match config.handed_files() {
                    Some(files) => Self::open_handed(files, access)?,
                    None => Self::open_present(path, access)?,
                };
                Self { expected, ..disk }
            }
            Origin::Arriving(occupied) => match config.staged() {
                Some(staged) => {
                    let store = Store::of_new(path, staged.file());
                    let store = store
                        .map_err(|cause| DeviceError::Disk { path: path.to_owned(), cause })?;
                    Self::of(path, store, access, bytes)
                }
                None => Self::open_overwritten(config, occupied)?,
            },
        };
        disk.with_cache(config.cache())
    }

    /// Opens the block device that an arriving disk overwrites, and locks it from now on: it is
    /// written long before the take-over.
    fn open_overwritten(config: &BlockConfig, occupied: Occupied) -> Result<Self, DeviceError> {
        let mut disk = overwritten::open(config, occupied)?;
        disk.lock()?;
        // A disk that the guest only reads stays locked as if the guest wrote it: another process
        // could write it while the lock changes.
        Ok(Self { access: config.access(), may_be_written: true, ..disk })
    }

    /// Opens an existing regular file or block device, without locking it.
    ///
    /// # Errors
    /// [`DeviceError::Disk`]; [`DeviceError::DiskDeparted`]; [`DeviceError::DiskOfHost`].
    pub(super) fn open_present(path: &Path, access: Access) -> Result<Self, DeviceError> {
        let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        // Without this flag, opening a FIFO would block until its other end is opened.
        options.custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
        let file = despite_lease(|| options.open(path)).map_err(failed)?;
        let disk = Self::of_file(path, &Arc::new(file), access, &[])?;
        if disk.store.is_device() && access == Access::ReadWrite {
            hold::expect_unclaimed(disk.file(), path)?;
        }
        Ok(disk)
    }

    /// Opens the disk in files that another process has opened, as [`Disk::files`] has them.
    ///
    /// # Errors
    /// As for [`Disk::open_present`]; or if a file is not what it should be.
    pub(super) fn open_handed(handed: &HandedFiles, access: Access) -> Result<Self, DeviceError> {
        let Some((file, others)) = handed.files().split_first() else {
            return Err(DeviceError::Config("no disk was handed over".to_owned()));
        };
        let path = path_of(file).map_err(|cause| {
            DeviceError::Config(format!("cannot use the disk that was handed over: {cause}"))
        })?;
        let failed = |cause| DeviceError::Disk { path: path.clone(), cause };
        if access == Access::ReadWrite && !may_write(file).map_err(failed)? {
            return Err(failed(io::Error::other(
                "it is not open for reading and writing, or only for appending",
            )));
        }
        let found = file.metadata().map_err(failed)?;
        if !found.file_type().is_block_device() {
            let claim = Some(HandedClaim(None));
            return Ok(Self { claim, ..Self::of_file(&path, file, access, others)? });
        }
        expect_no_loop(&path)?;
        expect_readable(found.rdev()).map_err(|cause| match cause.kind() {
            io::ErrorKind::PermissionDenied => failed(io::Error::other(
                "the host got it after the guest's start, and the guest's process may not read what sysfs says of it: start the \
                 guest again, or save and restore it",
            )),
            _ => failed(cause),
        })?;
        let is_same =
            |claim: &&Arc<File>| claim.metadata().is_ok_and(|its| its.rdev() == found.rdev());
        let claim = others.first().filter(is_same).cloned();
        if access == Access::ReadWrite && claim.is_none() {
            return Err(failed(io::Error::other("the claim on it is missing")));
        }
        let claim = Some(HandedClaim(claim));
        Ok(Self { claim, ..Self::of_file(&path, file, access, &[])? })
    }

    /// Lets the disk's bytes bypass the host's cache, if `cache` says so.
    ///
    /// # Errors
    /// [`DeviceError::Disk`], if that is not possible.
    pub(super) fn with_cache(self, cache: CacheMode) -> Result<Self, DeviceError> {
        if cache == CacheMode::Writeback {
            return Ok(self);
        }
        let bypassing = self.store.bypassing_cache();
        let store =
            bypassing.map_err(|cause| DeviceError::Disk { path: self.path.clone(), cause })?;
        Ok(Self { store: Arc::new(store), ..self })
    }

    /// Returns the open files of a disk that is not locked, for another process: the disk itself,
    /// then the claim on a block device that its guest writes, or what an image is based on.
    ///
    /// # Errors
    /// [`DeviceError::DiskOfHost`]; [`DeviceError::Config`] for a disk on a loop device; or if a
    /// system call fails.
    pub(super) fn files(&self) -> Result<Vec<File>, DeviceError> {
        expect_no_loop(&self.path)?;
        let failed = |cause| DeviceError::Disk { path: self.path.clone(), cause };
        let backing = self.store.backing().iter().map(|backing| &backing.file);
        let files = std::iter::once(self.store.file()).chain(backing).map(|file| file.try_clone());
        let mut files: Vec<File> = files.collect::<io::Result<_>>().map_err(failed)?;
        if self.store.is_device() && self.access == Access::ReadWrite {
            files.push(hold::claim(self.file(), &self.path)?);
        }
        Ok(files)
    }

    fn of_file(
        path: &Path,
        file: &Arc<File>,
        access: Access,
        handed: &[Arc<File>],
    ) -> Result<Self, DeviceError> {
        let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(failed(io::Error::other(
                "it is neither a regular file nor a block device",
            )));
        }
        if let Some(where_to) = departed::where_to(file) {
            return Err(DeviceError::DiskDeparted { path: path.to_path_buf(), where_to });
        }
        make_blocking(file).map_err(failed)?;
        let store = Store::open(path, file, handed).map_err(failed)?;
        let bytes = store.bytes().map_err(failed)?;
        Ok(Self::of(path, store, access, bytes))
    }

    fn of(path: &Path, store: Store, access: Access, bytes: u64) -> Self {
        let (path, store) = (path.to_path_buf(), Arc::new(store));
        let expected = Expected::Anything;
        let (holds, claim, may_be_written) = (Vec::new(), None, false);
        Self { path, store, access, bytes, holds, claim, may_be_written, expected }
    }

    /// Returns the disk's storage, to keep it longer than the disk.
    pub(super) fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Returns the open file.
    pub(crate) fn file(&self) -> &File {
        self.store.file()
    }

    /// Returns the path at which the disk was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what the guest may do with the disk.
    pub(crate) fn access(&self) -> Access {
        self.access
    }

    /// Returns the size in bytes when the disk was opened.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Checks that the disk has the size that a guest knows, ignoring a partial sector at the end.
    /// A block device may be larger: volumes consist of whole extents, and the guest does not use
    /// the rest. So may an image that was grown without its guest being told.
    ///
    /// # Errors
    /// [`DeviceError::DiskSize`].
    pub(crate) fn expect_bytes(&self, expected: u64) -> Result<(), DeviceError> {
        let found = self.bytes - self.bytes % super::SECTOR_BYTES;
        let may_be_larger = self.store.is_device() || !self.store.is_raw();
        if found == expected || may_be_larger && found > expected {
            return Ok(());
        }
        Err(DeviceError::DiskSize { path: self.path.clone(), found, expected })
    }

    /// Returns the new size in bytes of a disk of which the guest knows the first `known` bytes:
    /// what is `wanted`, or what the disk has by now.
    ///
    /// # Errors
    /// [`DeviceError::Resize`].
    pub(crate) fn new_size(&self, known: u64, wanted: Option<u64>) -> Result<u64, DeviceError> {
        let failed = |cause| DeviceError::Resize { path: self.path.clone(), cause };
        let refused = |what| Err(failed(resize::refusal(what)));
        if self.access == Access::ReadOnly {
            return refused("the guest only reads it");
        }
        if !self.is_locked() {
            return refused("the guest does not hold it: resume the guest first");
        }
        if self.holds.iter().any(Hold::is_of_a_part) {
            return refused(
                "it is in a part of a loop device: start the guest again with the new size",
            );
        }
        let there = self.store.bytes().map_err(failed)?;
        resize::new_size(known, wanted, there, self.store.is_device()).map_err(failed)
    }

    /// Grows the disk, of which the guest knows the first `known` bytes, to `bytes`; a block device
    /// has them already.
    ///
    /// # Errors
    /// [`DeviceError::Resize`].
    pub(crate) fn grow(&self, known: u64, bytes: u64) -> Result<(), DeviceError> {
        if self.store.is_device() {
            return Ok(());
        }
        let grown = self.store.grow(known, bytes);
        grown.map_err(|cause| DeviceError::Resize { path: self.path.clone(), cause })
    }

    /// Locks the disk, checks that it is in the expected state, and drops what this host has cached
    /// of it. Does nothing if it is already locked.
    ///
    /// # Errors
    /// [`DeviceError::DiskInUse`]; [`DeviceError::BehindDiskInUse`]; [`DeviceError::DiskOfHost`];
    /// [`DeviceError::DiskWritten`]; [`DeviceError::DiskUnsealed`] for a guest that was saved; or
    /// if a system call fails.
    pub(crate) fn take_over(&mut self) -> Result<(), DeviceError> {
        if self.is_locked() {
            return Ok(());
        }
        self.lock()?;
        let failed = |cause| DeviceError::Disk { path: self.path.clone(), cause };
        let taken = self.expect_unchanged();
        let taken = taken.and_then(|()| self.store.take_over(self.access).map_err(failed));
        match taken {
            Ok(()) => self.may_be_written = true,
            Err(_) => self.unlock(),
        }
        taken
    }

    fn lock(&mut self) -> Result<(), DeviceError> {
        let deadline = Instant::now() + LOCK_PATIENCE;
        loop {
            let claim = self.claim.as_ref();
            let mut holds = Hold::of_disk(&self.path, &self.store, self.access, claim);
            let Err(error) = hold::take_all(&mut holds) else {
                self.holds = holds;
                return Ok(());
            };
            let is_final = matches!(error, DeviceError::Disk { .. });
            if is_final || Instant::now() >= deadline {
                return Err(error);
            }
            std::thread::sleep(LOCK_INTERVAL);
        }
    }

    fn is_locked(&self) -> bool {
        !self.holds.is_empty()
    }

    fn expect_unchanged(&self) -> Result<(), DeviceError> {
        let (seal, must_be_known) = match &self.expected {
            Expected::Anything => return Ok(()),
            Expected::AsSaved(seal) => (seal, true),
            Expected::AsLeft(seal) => (seal, false),
        };
        let path = || self.path.clone();
        match seal.holds_for(self.file()) {
            Ok(Some(true)) => Ok(()),
            Ok(Some(false)) => Err(DeviceError::DiskWritten { path: path() }),
            Ok(None) if must_be_known => Err(DeviceError::DiskUnsealed { path: path() }),
            Ok(None) => Ok(()),
            Err(cause) => Err(DeviceError::Disk { path: path(), cause }),
        }
    }

    /// Makes the next take-over accept the disk as it is.
    pub(crate) fn trust(&mut self) {
        self.expected = Expected::Anything;
    }

    /// Durably breaks all seals of a disk that its guest is about to write.
    pub(crate) fn break_seals(&mut self) {
        self.trust();
        if self.access == Access::ReadWrite
            && let Err(error) = seal::break_all(self.file())
        {
            let path = self.path.display();
            tracing::warn!(%error, "a guest that was saved on {path} may be restored by mistake");
        }
    }

    /// Unlocks the disk. A disk that the guest may write can be taken over again only if it is
    /// unchanged by then, as far as that can be determined.
    pub(crate) fn release(&mut self) {
        if !self.is_locked() {
            return;
        }
        if self.access == Access::ReadWrite {
            if let Err(error) = self.store.release() {
                let path = self.path.display();
                tracing::error!(%error, "cannot finish writing {path}: it needs `qemu-img check`");
            }
            self.expected =
                Seal::at_a_glance(self.file()).map_or(Expected::Anything, Expected::AsLeft);
        }
        self.unlock();
    }

    fn unlock(&mut self) {
        if let Some(claim) = &mut self.claim {
            claim.0 = None;
        }
        hold::release_all(&mut self.holds);
        self.holds.clear();
    }

    /// Returns whether the guest may have writes that are not durable: it may write the disk, and
    /// has used it here.
    pub(crate) fn may_be_written(&self) -> bool {
        self.access == Access::ReadWrite && self.may_be_written
    }
}

/// Refuses a block device on a loop device to a process that cannot lock what is behind it.
fn expect_no_loop(path: &Path) -> Result<(), DeviceError> {
    if behind_loops(path).is_empty() {
        return Ok(());
    }
    let path = path.display();
    Err(DeviceError::Config(format!(
        "{path} is on a loop device: only a guest that starts with it can have it"
    )))
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    #[test]
    fn only_a_disk_that_was_the_guests_may_be_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let used = |access| {
            let mut disk = Disk::open_present(file.path(), access).unwrap();
            assert!(!disk.may_be_written());
            disk.take_over().unwrap();
            disk.release();
            disk.may_be_written()
        };
        assert!(used(Access::ReadWrite) && !used(Access::ReadOnly));
    }

    #[test]
    fn a_disk_whose_content_has_moved_away_is_not_used() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let disk = Disk::open_present(file.path(), Access::ReadWrite).unwrap();
        departed::note(disk.file(), "host-b").unwrap();
        let refused = Disk::open_present(file.path(), Access::ReadOnly).unwrap_err().to_string();
        assert!(
            refused.contains("moved to host-b") && refused.contains("setfattr -x"),
            "{refused}"
        );
        departed::take_off_departure(file.path(), "host").unwrap();
        assert_eq!(departed::departed_to(file.path()).as_deref(), Some("host-b"));
        departed::take_off_departure(file.path(), "host-b").unwrap();
        departed::forget(disk.file()).unwrap();
        Disk::open_present(file.path(), Access::ReadWrite).unwrap();
        departed::take_off_departure(Path::new("/nothing"), "host-b").unwrap_err();
        departed::take_off_departure(Path::new("/dev/null"), "host-b").unwrap();
    }

    #[test]
    fn a_saved_guest_gets_its_unwritten_disk_back_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let fresh = BlockConfig::new(file.path(), Access::ReadWrite, "").unwrap();
        let sealed = |seal| fresh.clone().with_proof(DiskProof::Sealed(seal));
        let take = |config: &BlockConfig| {
            let mut disk = Disk::open(config).unwrap();
            disk.take_over().map(|()| disk)
        };
        let saved = sealed(Seal::of(file.as_file()).unwrap());
        // A start that fails after the take-over may be tried again.
        drop(take(&saved).unwrap());
        take(&saved).unwrap().break_seals();
        // The guest has started, although it has not written.
        assert!(matches!(take(&saved), Err(DeviceError::DiskWritten { .. })));
        let strange = sealed(Seal::Device("a".to_owned(), 1));
        assert!(matches!(take(&strange), Err(DeviceError::DiskWritten { .. })));
        take(&fresh).unwrap();
    }

    #[test]
    fn a_guest_gets_its_disk_back_unless_it_was_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let mut disk = Disk::open_present(file.path(), Access::ReadWrite).unwrap();
        disk.take_over().unwrap();
        disk.release();
        disk.take_over().unwrap();
        disk.release();
        let mut another = Disk::open_present(file.path(), Access::ReadWrite).unwrap();
        another.take_over().unwrap();
        another.break_seals();
        drop(another);
        for _ in 0..2 {
            assert!(matches!(disk.take_over(), Err(DeviceError::DiskWritten { .. })));
            disk.release();
        }
        disk.trust();
        disk.take_over().unwrap();
    }

    #[test]
    fn the_seals_of_a_disk_that_is_only_read_stay() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let seal = Seal::of(file.as_file()).unwrap();
        let mut disk = Disk::open_present(file.path(), Access::ReadOnly).unwrap();
        disk.break_seals();
        assert_eq!(seal.holds_for(file.as_file()).unwrap(), Some(true));
    }

    #[test]
    fn one_guest_writes_or_many_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let open = |access| Disk::open_present(file.path(), access).unwrap();
        let (mut writer, mut reader) = (open(Access::ReadWrite), open(Access::ReadOnly));
        let mut other_reader = open(Access::ReadOnly);
        reader.take_over().unwrap();
        other_reader.take_over().unwrap();
        assert!(matches!(writer.take_over(), Err(DeviceError::DiskInUse { .. })));
        reader.release();
        drop(other_reader);
        writer.take_over().unwrap();
        writer.take_over().unwrap();
    }

    #[test]
    fn disks_are_opened_for_blocking_reads() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for access in [Access::ReadOnly, Access::ReadWrite] {
            let disk = Disk::open_present(file.path(), access).unwrap();
            let flags = fcntl(disk.file(), FcntlArg::F_GETFL).unwrap();
            assert!(!OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK), "{flags:o}");
        }
    }

    #[test]
    fn a_takeover_waits_for_the_release() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut source = Disk::open_present(file.path(), Access::ReadWrite).unwrap();
        let mut destination = Disk::open_present(file.path(), Access::ReadWrite).unwrap();
        source.take_over().unwrap();
        let taking = std::thread::spawn(move || destination.take_over().map(|()| destination));
        source.release();
        taking.join().unwrap().unwrap();
    }
}
