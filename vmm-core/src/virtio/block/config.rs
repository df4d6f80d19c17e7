//! Configuration of a disk.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_blk::VIRTIO_BLK_ID_BYTES;

use super::SECTOR_BYTES;
use super::cache::{self, CacheMode};
use super::disk::Disk;
use super::names::may_overlap;
use super::overwritten;
use super::proof::DiskProof;
use super::staged::{self, Staged};
use crate::unnamed_file;
use crate::virtio::DeviceError;
use crate::virtio::handed::HandedFiles;

/// Longest path of a disk, in bytes (`PATH_MAX` of `linux/limits.h`).
const PATH_BYTES_MAX: usize = 4096;
/// Longest serial number, in bytes.
const SERIAL_BYTES_MAX: usize = VIRTIO_BLK_ID_BYTES as usize;

/// What a guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// Read and write; no other guest uses the disk at the same time.
    ReadWrite,
    /// Read only; other guests may read the disk too.
    ReadOnly,
}

/// How requests are executed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EngineChoice {
    /// With io_uring if the host has it and lets this process use it; otherwise with plain system
    /// calls.
    #[default]
    Auto,
    /// With io_uring; the guest does not start on a host without it.
    IoUring,
    /// One after the other, with plain system calls.
    Sync,
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::IoUring),
            "sync" => Ok(Self::Sync),
            _ => Err(format!("`{text}` is not a disk engine: auto, io_uring, sync")),
        }
    }
}

/// What happens to an existing file or block device at the path of an arriving disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupied {
    /// It is kept, and the disk is rejected.
    Refuse,
    /// The disk replaces the file, or overwrites the block device, unless that is in use.
    Replace,
}

/// Whether the disk is already on this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Origin {
    /// The disk is on this host.
    #[default]
    Present,
    /// The disk's content arrives with the guest.
    Arriving(Occupied),
}

/// Most queues of a disk. vCPUs share queues if the guest has more vCPUs than that.
pub(super) const QUEUES_MAX: u16 = 8;

/// A file that was created for an arriving disk: equal only to itself.
#[derive(Debug, Clone)]
struct Made(Arc<Staged>);

impl PartialEq for Made {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Made {}

/// A disk of a guest. A migration expects the same disk at the same path at the destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockConfig {
    path: PathBuf,
    access: Access,
    serial: String,
    /// Size in bytes, a multiple of the sector size, as measured when the guest was defined.
    bytes: u64,
    /// Number of request queues.
    queues: u16,
    engine: EngineChoice,
    /// Evidence from which a destination sees that it has the same disk.
    proof: DiskProof,
    /// Whether its bytes go through the host's cache; a guest's shape encodes this itself, since
    /// earlier releases do not know it.
    #[serde(skip)]
    cache: CacheMode,
    /// Whether the disk is on this host; not part of the serialized configuration.
    #[serde(skip)]
    origin: Origin,
    /// The file that was created for the disk, if it is arriving.
    #[serde(skip)]
    made: Option<Made>,
    /// The guest already used the disk on the host that it comes from.
    #[serde(skip)]
    goes_on: bool,
    /// The disk's files, if another process has opened them.
    #[serde(skip)]
    handed: Option<HandedFiles>,
}

impl BlockConfig {
    /// Creates the configuration of the disk at `path`, an existing regular file or block device.
    /// `serial` is the disk's serial number as the guest sees it, at most 20 ASCII characters.
    ///
    /// # Errors
    /// [`DeviceError`], if the disk cannot be used.
    pub fn new(path: &Path, access: Access, serial: &str) -> Result<Self, DeviceError> {
        // Absolute and without links, so that the path has the same meaning in every process and on
        // every host.
        let found = path
            .canonicalize()
            .map_err(|cause| DeviceError::Disk { path: path.to_path_buf(), cause })?;
        let disk = Disk::open_present(&found, access)?;
        Self::of_disk(&disk, serial)
    }

    /// Creates the configuration of a disk whose files another process has opened, see
    /// [`BlockConfig::open_files`].
    ///
    /// # Errors
    /// [`DeviceError`], if the disk cannot be used, or the files are not those of a disk.
    pub fn handed(files: Vec<File>, access: Access, serial: &str) -> Result<Self, DeviceError> {
        let handed = HandedFiles::new(files);
        let disk = Disk::open_handed(&handed, access)?;
        Ok(Self { handed: Some(handed), ..Self::of_disk(&disk, serial)? })
    }

    fn of_disk(disk: &Disk, serial: &str) -> Result<Self, DeviceError> {
        let there = disk.bytes();
        if there < SECTOR_BYTES {
            return Err(DeviceError::Config(no_sectors(disk.path(), there)));
        }
        // A file need not end with a whole sector; the guest cannot access bytes beyond the last
        // whole one.
        let bytes = there - there % SECTOR_BYTES;
        let config = Self {
            path: disk.path().to_owned(),
            access: disk.access(),
            serial: serial.to_owned(),
            bytes,
            queues: 1,
            engine: EngineChoice::Auto,
            proof: DiskProof::of(disk.file()),
            cache: CacheMode::default(),
            origin: Origin::Present,
            made: None,
            goes_on: false,
            handed: None,
        };
        config.check()?;
        Ok(config)
    }

    /// Opens the files of the disk for a process that may not open them, which gets them in this
    /// order.
    ///
    /// # Errors
    /// [`DeviceError`], if the disk cannot be used; [`DeviceError::Config`] for a loop device.
    pub fn open_files(&self) -> Result<Vec<File>, DeviceError> {
        self.open_present()?.files()
    }

    /// Opens the disk as it is used, without locking it.
    fn open_present(&self) -> Result<Disk, DeviceError> {
        Disk::open_present(&self.path, self.access)?.with_cache(self.cache)
    }

    /// Returns the same disk for this process's records: without files that it holds open.
    #[must_use]
    pub(crate) fn without_files(&self) -> Self {
        Self { handed: None, ..self.clone() }
    }

    /// Returns the disk's files, if another process has opened them.
    pub(super) fn handed_files(&self) -> Option<&HandedFiles> {
        self.handed.as_ref()
    }

    /// Sets the number of request queues, 1 to 8: with several, vCPUs do not wait for each other.
    #[must_use]
    pub fn with_queues(self, queues: u16) -> Self {
        Self { queues, ..self }
    }

    /// Sets how requests are executed.
    #[must_use]
    pub fn with_engine(self, engine: EngineChoice) -> Self {
        Self { engine, ..self }
    }

    /// Sets whether its bytes go through the host's cache.
    #[must_use]
    pub fn with_cache(self, cache: CacheMode) -> Self {
        Self { cache, ..self }
    }

    /// Replaces the size, in bytes: the disk has grown.
    #[must_use]
    pub(crate) fn with_bytes(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// Replaces the evidence from which a destination sees that it has the same disk.
    #[must_use]
    pub fn with_proof(self, proof: DiskProof) -> Self {
        Self { proof, ..self }
    }

    /// Returns the evidence from which a destination sees that it has the same disk.
    pub(crate) fn proof(&self) -> &DiskProof {
        &self.proof
    }

    /// Checks that the configuration records what the disk looked like when its guest was saved.
    ///
    /// # Errors
    /// [`DeviceError::DiskUnsealed`].
    pub(crate) fn expect_seal(&self) -> Result<(), DeviceError> {
        match self.proof {
            DiskProof::Sealed(_) => Ok(()),
            _ => Err(DeviceError::DiskUnsealed { path: self.path.clone() }),
        }
    }

    /// Replaces the evidence with that of this host's disk; evidence from the host that the guest
    /// came from does not apply here.
    #[must_use]
    pub(crate) fn identified(self) -> Self {
        let disk = Disk::open_present(&self.path, self.access);
        let proof = disk.map_or(DiskProof::Absent, |disk| DiskProof::of(disk.file()));
        self.with_proof(proof)
    }

    /// Returns the same disk at another path, for a host that keeps its disks elsewhere.
    #[must_use]
    pub fn at(&self, path: &Path) -> Self {
        Self { path: path.to_path_buf(), ..self.clone() }
    }

    /// Returns the same disk for the host that it is being copied to. If there is a block device at
    /// its path, the disk overwrites that. Otherwise a file is created without a name, and
    /// [`crate::DiskContent::adopt`] names it.
    #[must_use]
    pub fn arriving(&self, occupied: Occupied) -> Self {
        Self { origin: Origin::Arriving(occupied), ..self.clone() }
    }

    /// Returns the same disk with the file that it arrives in, which is created here, without a
    /// name or with a temporary one: for a process whose confined threads cannot create files. A
    /// disk that has its file or needs none does not change.
    ///
    /// # Errors
    /// If the file system is full, or refuses.
    pub fn made(&self) -> Result<Self, DeviceError> {
        let made = match &self.made {
            None if self.needs_file() => {
                Some(Made(Arc::new(Staged::create(&self.path, self.bytes)?)))
            }
            made => made.clone(),
        };
        Ok(Self { made, ..self.clone() })
    }

    /// Returns whether the disk is arriving in a file that is created for it.
    pub fn needs_file(&self) -> bool {
        self.origin != Origin::Present && !overwritten::is_at(&self.path)
    }

    /// Returns the same disk in a file with a temporary name, as [`Self::made`] creates it where
    /// every file needs a name.
    #[cfg(test)]
    pub(super) fn made_with_a_name(&self) -> Self {
        let staged = Staged::named(&self.path, self.bytes).unwrap();
        Self { made: Some(Made(Arc::new(staged))), ..self.clone() }
    }

    /// Returns the file that was created for the disk, if any.
    pub(super) fn staged(&self) -> Option<&Arc<Staged>> {
        self.made.as_ref().map(|made| &made.0)
    }

    /// Removes the temporary name of the file that was created for a disk that does not arrive.
    /// Does nothing if the file has no name, or its own.
    pub fn abandon(&self) {
        if let Some(staged) = self.staged() {
            staged.abandon();
        }
    }

    /// Returns the same disk for a guest that continues to use it here, rather than starting on it.
    #[must_use]
    pub fn going_on(&self) -> Self {
        Self { goes_on: true, ..self.clone() }
    }

    /// Returns whether the guest starts on the disk here. If so, guests that were saved on it
    /// before no longer match it.
    pub(super) fn begins_here(&self) -> bool {
        self.origin == Origin::Present && !self.goes_on
    }

    /// Returns whether the disk is already on this host.
    pub(super) fn origin(&self) -> Origin {
        self.origin
    }

    /// Returns the number of request queues.
    pub fn queues(&self) -> u16 {
        self.queues
    }

    /// Returns how requests are executed.
    pub fn engine(&self) -> EngineChoice {
        self.engine
    }

    /// Returns whether its bytes go through the host's cache.
    pub fn cache(&self) -> CacheMode {
        self.cache
    }

    /// Returns the path of the file or block device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns what the guest may do with the disk.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns the serial number.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// Returns the size in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        let path = self.path.display();
        let bad = |what: String| Err(DeviceError::Config(what));
        if self.path.as_os_str().len() > PATH_BYTES_MAX || !self.path.is_absolute() {
            return bad(format!("a disk's path is absolute and short enough, not {path}"));
        }
        if self.path.to_str().is_none_or(|path| path.contains('\0')) {
            return bad(format!("a disk's path is valid UTF-8, not {path}"));
        }
        if self.bytes == 0 || !self.bytes.is_multiple_of(SECTOR_BYTES) {
            return bad(no_sectors(&self.path, self.bytes));
        }
        if !(1..=QUEUES_MAX).contains(&self.queues) {
            let queues = self.queues;
            return bad(format!("disk {path} has 1 to {QUEUES_MAX} queues, not {queues}"));
        }
        if !self.proof.is_bounded() {
            return bad(format!("disk {path} has too many names"));
        }
        let printable = self.serial.chars().all(|c| c.is_ascii_graphic());
        if self.serial.len() > SERIAL_BYTES_MAX || !printable {
            return bad(format!(
                "the serial number of disk {path} has at most {SERIAL_BYTES_MAX} printable characters of ASCII"
            ));
        }
        Ok(())
    }

    pub(crate) fn check_host(&self) -> Result<(), DeviceError> {
        match self.origin {
            Origin::Present => self.open_present()?.expect_bytes(self.bytes),
            Origin::Arriving(occupied) if overwritten::is_at(&self.path) => {
                overwritten::open(self, occupied).map(drop)
            }
            Origin::Arriving(occupied) => {
                staged::check_place(&self.path, occupied)?;
                self.expect_small_sectors()
            }
        }
    }

    /// Checks that the file system for an arriving disk can do without the host's cache.
    fn expect_small_sectors(&self) -> Result<(), DeviceError> {
        if self.cache == CacheMode::Writeback {
            return Ok(());
        }
        let device = unnamed_file::folder_of(&self.path).metadata().map(|found| found.dev());
        device
            .and_then(cache::expect_small_sectors)
            .map_err(|cause| DeviceError::Disk { path: self.path.clone(), cause })
    }

    /// Checks that the disk at the path is the one that the guest has at the source, which has sent
    /// its evidence; or, if it is a block device that a copied disk overwrites, that it is none of
    /// the guest's `disks`.
    pub(crate) fn check_shared(&self, disks: &[&Self]) -> Result<(), DeviceError> {
        if let Origin::Arriving(occupied) = self.origin {
            return match self.needs_file() {
                true => Ok(()),
                false => self.expect_other(overwritten::open(self, occupied)?.file(), disks),
            };
        }
        let disk = Disk::open_present(&self.path, self.access)?;
        let path = || self.path.clone();
        match self.proof.holds_for(&disk) {
            Ok(Some(true)) => Ok(()),
            Ok(Some(false)) => Err(DeviceError::OtherDisk { path: path() }),
            Ok(None) => Err(DeviceError::UnprovenDisk { path: path() }),
            Err(cause) => Err(DeviceError::Disk { path: path(), cause }),
        }
    }

    /// Checks that `device`, which the disk would overwrite, has no content in common with the
    /// guest's `disks`.
    fn expect_other(&self, device: &File, disks: &[&Self]) -> Result<(), DeviceError> {
        let path = || self.path.clone();
        let here = DiskProof::of(device);
        for disk in disks {
            let is_it = match (&disk.proof, &here) {
                // A file, or the user knows better.
                (DiskProof::AccessTime(..) | DiskProof::Vouched, _) => Some(false),
                (DiskProof::Device(known), DiskProof::Device(here)) => may_overlap(known, here),
                _ => None,
            };
            match is_it {
                Some(false) => {}
                Some(true) => return Err(DeviceError::CopyOntoItself { path: path() }),
                None => return Err(DeviceError::MayBeItself { path: path() }),
            }
        }
        Ok(())
    }
}

fn no_sectors(path: &Path, bytes: u64) -> String {
    let path = path.display();
    format!(
        "disk {path} has {bytes} bytes: a disk has whole sectors of {SECTOR_BYTES}, and at least one"
    )
}

#[cfg(test)]
mod tests {
    use super::super::seal::Seal;
    use super::*;

    fn file(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    fn refusal(path: &Path, serial: &str) -> String {
        BlockConfig::new(path, Access::ReadWrite, serial).unwrap_err().to_string()
    }

    #[test]
    fn a_disk_is_measured_when_it_is_described() {
        let file = file(5000);
        let config = BlockConfig::new(file.path(), Access::ReadWrite, "a-1").unwrap();
        assert_eq!((config.bytes(), config.serial()), (4608, "a-1"));
        config.check_host().unwrap();
        file.as_file().set_len(4096).unwrap();
        let error = config.check_host().unwrap_err().to_string();
        assert!(error.contains("has 4096 bytes here, the guest knows 4608"), "{error}");
    }

    #[test]
    fn invalid_disks_are_refused_by_name() {
        assert!(refusal(Path::new("/nowhere/disk"), "").contains("/nowhere/disk: No such file"));
        assert!(refusal(Path::new("/"), "").contains("cannot use disk /: "));
        assert!(refusal(Path::new("/dev/null"), "").contains("neither"));
        assert!(refusal(file(511).path(), "").contains("has 511 bytes"));
        let file = file(512);
        assert!(refusal(file.path(), "a serial").contains("serial number"));
        assert!(refusal(file.path(), &"x".repeat(21)).contains("serial number"));
    }

    #[test]
    fn the_record_of_a_saved_guests_disk_must_be_a_seal() {
        let file = file(512);
        let config = BlockConfig::new(file.path(), Access::ReadOnly, "").unwrap();
        assert!(matches!(config.expect_seal(), Err(DeviceError::DiskUnsealed { .. })));
        config.with_proof(DiskProof::Sealed(Seal::File(1, 2))).expect_seal().unwrap();
    }

    #[test]
    fn a_device_is_overwritten_only_if_it_is_certainly_none_of_the_guests_disks() {
        let file = file(512);
        let config = BlockConfig::new(file.path(), Access::ReadWrite, "").unwrap();
        let with = |proof: DiskProof| config.clone().with_proof(proof);
        // The file stands for a device without names.
        let check = |disks: &[&BlockConfig]| config.expect_other(file.as_file(), disks);
        let (vouched, shared) = (with(DiskProof::Vouched), with(DiskProof::AccessTime(1, 2)));
        check(&[&vouched, &shared]).unwrap();
        for unknown in [DiskProof::Absent, DiskProof::Device(vec!["wwid a".to_owned()])] {
            let refused = check(&[&vouched, &with(unknown)]).unwrap_err();
            assert!(matches!(refused, DeviceError::MayBeItself { .. }), "{refused}");
        }
    }

    #[test]
    fn hostile_descriptions_are_refused() {
        let file = file(512);
        let good = BlockConfig::new(file.path(), Access::ReadOnly, "").unwrap();
        let relative = BlockConfig { path: "disk.raw".into(), ..good.clone() };
        let long = BlockConfig { path: format!("/{}", "x".repeat(5000)).into(), ..good.clone() };
        let zero_byte = BlockConfig { path: "/a\0b".into(), ..good.clone() };
        let uneven = BlockConfig { bytes: 513, ..good.clone() };
        let empty = BlockConfig { bytes: 0, ..good.clone() };
        let [none, many] = [0, QUEUES_MAX + 1].map(|queues| good.clone().with_queues(queues));
        for bad in [relative, long, zero_byte, uneven, empty, none, many] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
