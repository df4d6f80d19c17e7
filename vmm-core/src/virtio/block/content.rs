//! The content of a disk, for copying it while the guest runs: in chunks, as guest memory.
//!
//! It shares the storage with the device, so it reads what the guest has written, and pausing and
//! saving cover it too. At the destination of a copy, the content is written through it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cache::CacheMode;
use super::config::{Access, BlockConfig, Occupied, Origin};
use super::departed;
use super::identity::DiskIdentity;
use super::lock_reach::LockReach;
use super::log::{WriteLog, each_word};
use super::overwritten;
use super::proof::{DiskProof, Mark};
use super::seal::Seal;
use super::staged::{self, Staged, UnnamedFile};
use super::store::Store;
use crate::memory::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};
use crate::sys::file::Clearing;
use crate::virtio::DeviceError;

/// The content of a disk; see the module. All methods may be called from any thread.
#[derive(Debug)]
pub struct DiskContent {
    path: PathBuf,
    store: Arc<Store>,
    /// Size in bytes, which grows.
    size: AtomicU64,
    access: Access,
    lock_reach: LockReach,
    log: WriteLog,
    /// The file of an arriving disk while it does not have its name yet, and what happens to a file
    /// that has it.
    unnamed: Mutex<Option<(Arc<Staged>, Occupied)>>,
    /// A saved guest may depend on the present content; such seals are broken when the guest
    /// resumes, before it can write.
    may_be_sealed: AtomicBool,
    /// Number of the error with which lighter's own flush failed; 0 if none did. It stays until the
    /// disk is opened again: Linux reports lost writes once, and then counts them as written.
    fault: AtomicI32,
}

impl DiskContent {
    /// Creates the content of the disk in `store`.
    pub(super) fn new(config: &BlockConfig, store: &Arc<Store>) -> Self {
        let unnamed = match config.origin() {
            Origin::Arriving(occupied) => {
                config.staged().map(|staged| (Arc::clone(staged), occupied))
            }
            Origin::Present => None,
        };
        Self {
            path: config.path().to_path_buf(),
            store: Arc::clone(store),
            size: AtomicU64::new(config.bytes()),
            access: config.access(),
            lock_reach: LockReach::of(store.file()),
            log: WriteLog::default(),
            unnamed: Mutex::new(unnamed),
            may_be_sealed: AtomicBool::new(config.begins_here()),
            fault: AtomicI32::new(0),
        }
    }

    /// Returns the path of the file or block device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the size in bytes, which need not be a multiple of the page size.
    pub fn bytes(&self) -> u64 {
        self.size.load(Ordering::Acquire)
    }

    /// Sets the size of a disk that has grown.
    pub(super) fn set_bytes(&self, bytes: u64) {
        self.size.store(bytes, Ordering::Release);
    }

    /// Returns what the guest may do with the disk.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Returns whether the disk is a block device.
    pub fn is_device(&self) -> bool {
        self.store.is_device()
    }

    /// Returns whether it is in a qcow2 image.
    pub fn is_image(&self) -> bool {
        !self.store.is_raw()
    }

    /// Returns whether its bytes go through the host's cache.
    pub fn cache(&self) -> CacheMode {
        self.store.cache()
    }

    /// Returns the identity of the open disk, whatever is at its path by now; `None` if the system
    /// call fails.
    pub fn identity(&self) -> Option<DiskIdentity> {
        DiskIdentity::of(&self.store.file().metadata().ok()?)
    }

    /// Returns which programs are kept away by the lock on the disk.
    pub fn lock_reach(&self) -> LockReach {
        self.lock_reach
    }

    /// Returns the number of chunks; the end of the disk may cut the last one short.
    pub fn chunks(&self) -> usize {
        self.bytes().div_ceil(CHUNK_BYTES as u64) as usize
    }

    /// Returns the bytes that a copy of the disk takes at most; the disk's size if that is unknown.
    pub fn allocated_bytes(&self) -> u64 {
        self.store.allocated_bytes().map_or(self.bytes(), |bytes| bytes.min(self.bytes()))
    }

    /// Durably marks the disk as departed to `where_to`: from now on this host refuses it as a
    /// guest's disk.
    ///
    /// # Errors
    /// If the mark cannot be written: not all file systems support it.
    pub fn note_departure(&self, where_to: &str) -> io::Result<()> {
        departed::note(self.store.file(), where_to)
    }

    /// Removes the mark of `DiskContent::note_departure`.
    ///
    /// # Errors
    /// If the mark cannot be removed.
    pub fn forget_departure(&self) -> io::Result<()> {
        departed::forget(self.store.file())
    }

    /// Marks the disk for the destination of a migration, if it is a file, so that the destination
    /// can tell it from other files.
    ///
    /// # Errors
    /// If the mark cannot be set, for example because the file belongs to another user.
    pub fn mark(&self) -> io::Result<Option<Mark>> {
        Mark::set(self.store.file())
    }

    /// Returns the log in which the device records writes.
    pub(super) fn log(&self) -> &WriteLog {
        &self.log
    }

    /// Starts to log the guest's writes.
    pub fn start_log(&self) {
        self.log.start(self.bytes());
    }

    /// Stops the log. Does nothing if it was not started.
    pub fn stop_log(&self) {
        self.log.stop();
    }

    /// Sets in `words`, one word for each chunk, the bits of the pages that the guest has written.
    pub fn collect_written(&self, words: &mut [u64]) {
        self.log.collect(words);
    }

    /// Clears the log for the pages in `words`, from chunk `first_chunk` on. Call this before
    /// reading the pages.
    pub fn rearm(&self, first_chunk: usize, words: &[u64]) {
        self.log.clear(first_chunk, words);
    }

    /// Sets in `words`, one word for each chunk, the bits of the pages that contain data, as far as
    /// the file system can tell; all other pages read as zeros.
    ///
    /// # Errors
    /// If a system call fails.
    pub fn find_data(&self, words: &mut [u64]) -> Result<(), DeviceError> {
        words.fill(0);
        let mut set = |from: u64, to: u64| {
            each_word(from, to.min(self.bytes()) - from, |chunk, mask| {
                if let Some(word) = words.get_mut(chunk) {
                    *word |= mask;
                }
            });
        };
        let mut at = 0;
        let next = |at| self.store.next_data(at, self.bytes()).map_err(|error| self.failed(error));
        while let Some((data, end)) = next(at)? {
            set(data, end);
            at = end;
        }
        Ok(())
    }

    /// Copies content into `buf`, from page `first_page` of `chunk` on; bytes beyond the end of the
    /// disk are zeros.
    ///
    /// # Errors
    /// If the range is invalid, or the disk cannot be read.
    pub fn copy_out(
        &self,
        chunk: usize,
        first_page: usize,
        buf: &mut [u8],
    ) -> Result<(), DeviceError> {
        let (offset, inside) = self.place(chunk, first_page, buf.len())?;
        let (content, behind) = buf.split_at_mut(inside);
        behind.fill(0);
        self.store.read(content, offset).map_err(|error| self.failed(error))
    }

    /// Writes content from page `first_page` of `chunk` on; bytes beyond the end of the disk are
    /// ignored.
    ///
    /// # Errors
    /// If the range is invalid, or the disk cannot be written, for example because it is full.
    pub fn copy_in(&self, chunk: usize, first_page: usize, data: &[u8]) -> Result<(), DeviceError> {
        let (offset, inside) = self.place(chunk, first_page, data.len())?;
        self.store.write(&data[..inside], offset).map_err(|error| self.failed(error))
    }

    /// Zeroes the block device that an arriving disk overwrites; a file that was created for one is
    /// zeros. Asks again and again whether that `is_wanted`.
    ///
    /// # Errors
    /// If the device cannot be written, or it is not wanted any more.
    pub fn clear(&self, is_wanted: impl Fn() -> bool) -> Result<(), DeviceError> {
        if !self.is_device() {
            return Ok(());
        }
        overwritten::clear(self.store.file(), self.bytes(), is_wanted)
            .map_err(|error| self.failed(error))
    }

    /// Zeroes the pages of `chunk` in `mask`, and frees their space where possible.
    ///
    /// # Errors
    /// If the chunk is invalid, or the disk cannot be written.
    pub fn zero(&self, chunk: usize, mask: u64) -> Result<(), DeviceError> {
        for page in (0..CHUNK_PAGES).filter(|page| mask >> page & 1 == 1) {
            let (offset, inside) = self.place(chunk, page, PAGE_BYTES)?;
            let cleared = self.store.clear(offset, inside as u64, Clearing::PunchHole);
            cleared
                .or_else(|_| self.store.write(&[0; PAGE_BYTES][..inside], offset))
                .map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Makes all writes durable.
    ///
    /// # Errors
    /// If the system call fails, or has failed in an earlier call: writes may be lost since then.
    /// The guest's flushes fail from then on, too.
    pub fn sync(&self) -> Result<(), DeviceError> {
        let flush = |cause| DeviceError::Flush { path: self.path.clone(), cause };
        self.note_synced(self.store.settle()).map_err(flush)
    }

    /// Keeps the error of a flush that the guest knows nothing of.
    pub(super) fn note_synced(&self, outcome: io::Result<()>) -> io::Result<()> {
        if let Err(error) = outcome {
            self.fault.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Release);
        }
        self.expect_no_fault()
    }

    /// Checks that no write has been lost in a flush that the guest knows nothing of.
    ///
    /// # Errors
    /// The error of that flush.
    pub(super) fn expect_no_fault(&self) -> io::Result<()> {
        match self.fault.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Makes all writes of a paused guest durable, and returns the disk's seal: see [`Seal`].
    ///
    /// # Errors
    /// If a system call fails, or as for [`DiskContent::sync`].
    pub fn seal(&self) -> Result<DiskProof, DeviceError> {
        self.sync()?;
        self.may_be_sealed.store(true, Ordering::Release);
        Seal::of(self.store.file()).map(DiskProof::Sealed).map_err(|error| self.failed(error))
    }

    /// Returns whether seals must be broken before the guest writes, and clears that.
    pub(super) fn take_seals(&self) -> bool {
        self.may_be_sealed.swap(false, Ordering::AcqRel)
    }

    /// Checks that [`DiskContent::adopt`] would succeed now.
    ///
    /// # Errors
    /// [`DeviceError::DiskExists`], [`DeviceError::DiskInUse`]; or if a system call fails.
    pub fn check_adoption(&self) -> Result<(), DeviceError> {
        match &*self.unnamed() {
            Some((_, occupied)) => staged::check_place(&self.path, *occupied).map(drop),
            None => Ok(()),
        }
    }

    /// Durably names the files of all `disks` that have arrived: from now on they outlive this
    /// process. Skips disks that already have a name.
    ///
    /// # Errors
    /// [`DeviceError::DiskExists`] if another file has taken a name meanwhile; or if a system call
    /// fails. After an error no disk has a name, except those that had already replaced another
    /// file.
    pub fn adopt(disks: &[&Self]) -> Result<(), DeviceError> {
        let mut unnamed: Vec<_> = disks.iter().map(|disk| disk.unnamed()).collect();
        let files = disks.iter().zip(&unnamed).filter_map(|(disk, unnamed)| {
            let (staged, occupied) = (**unnamed).as_ref()?;
            Some(UnnamedFile { staged, path: &disk.path, occupied: *occupied })
        });
        staged::give_names(&files.collect::<Vec<_>>())?;
        unnamed.iter_mut().for_each(|unnamed| **unnamed = None);
        Ok(())
    }

    fn unnamed(&self) -> MutexGuard<'_, Option<(Arc<Staged>, Occupied)>> {
        self.unnamed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the offset of a range of pages in the file, and how many of its `len` bytes lie
    /// before the end of the disk.
    fn place(
        &self,
        chunk: usize,
        first_page: usize,
        len: usize,
    ) -> Result<(u64, usize), DeviceError> {
        let within = first_page.saturating_mul(PAGE_BYTES).saturating_add(len) <= CHUNK_BYTES;
        if !within || chunk >= self.chunks() {
            return Err(self.failed(io::Error::other(format!("it has no chunk {chunk} like that"))));
        }
        let offset = chunk as u64 * CHUNK_BYTES as u64 + (first_page * PAGE_BYTES) as u64;
        let inside = self.bytes().saturating_sub(offset).min(len as u64);
        Ok((offset, inside as usize))
    }

    fn failed(&self, cause: io::Error) -> DeviceError {
        DeviceError::Disk { path: self.path.clone(), cause }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::sys::file;
    use crate::virtio::block::disk::Disk;

    fn content_of(file: &tempfile::NamedTempFile) -> DiskContent {
        let config = BlockConfig::new(file.path(), Access::ReadWrite, "").unwrap();
        DiskContent::new(&config, Disk::open(&config).unwrap().store())
    }

    #[test]
    fn holes_are_distinguished_from_data() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4 * CHUNK_BYTES as u64 + 512).unwrap();
        file.as_file().write_all_at(&[7; 5000], CHUNK_BYTES as u64 + 8192).unwrap();
        file.as_file().write_all_at(&[7; 512], 4 * CHUNK_BYTES as u64).unwrap();
        let content = content_of(&file);
        let mut words = vec![u64::MAX; content.chunks()];
        content.find_data(&mut words).unwrap();
        assert_eq!(words, [0, 0b1100, 0, 0, 1]);
        assert!(content.allocated_bytes() < 2 * CHUNK_BYTES as u64);
    }

    #[test]
    fn content_is_read_and_written_up_to_the_end_of_the_disk() {
        let (from, to) = (tempfile::NamedTempFile::new(), tempfile::NamedTempFile::new());
        let (from, to) = (from.unwrap(), to.unwrap());
        for file in [&from, &to] {
            file.as_file().set_len(CHUNK_BYTES as u64 + 4608).unwrap();
        }
        from.as_file().write_all_at(&[9; 4608], CHUNK_BYTES as u64).unwrap();
        let (source, target) = (content_of(&from), content_of(&to));
        let mut buf = vec![1; 3 * 4096];
        source.copy_out(1, 0, &mut buf).unwrap();
        assert_eq!((&buf[..4608], &buf[4608..]), (&[9; 4608][..], &[0; 7680][..]));
        target.copy_in(1, 0, &buf).unwrap();
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        target.zero(1, 0b11).unwrap();
        assert!(std::fs::read(&to).unwrap().iter().all(|byte| *byte == 0));
        assert_eq!(std::fs::metadata(&to).unwrap().len(), CHUNK_BYTES as u64 + 4608);
    }

    #[test]
    fn an_error_of_a_flush_is_reported_by_every_later_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(4096).unwrap();
        let content = content_of(&file);
        content.sync().unwrap();
        content.note_synced(Err(io::Error::from_raw_os_error(libc::ENOSPC))).unwrap_err();
        for _ in 0..2 {
            let error = content.sync().unwrap_err();
            assert!(
                matches!(&error, DeviceError::Flush { cause, .. } if cause.raw_os_error() == Some(libc::ENOSPC))
            );
        }
        assert!(matches!(content.seal(), Err(DeviceError::Flush { .. })));
        content_of(&file).sync().unwrap();
    }

    #[test]
    fn ranges_outside_the_disk_are_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(CHUNK_BYTES as u64).unwrap();
        let content = content_of(&file);
        assert!(content.copy_in(1, 0, &[0; 4096]).is_err());
        assert!(content.copy_in(0, 63, &[0; 8192]).is_err());
        assert!(content.copy_out(usize::MAX, usize::MAX, &mut [0; 4096]).is_err());
        assert!(content.zero(1, 1).is_err());
    }

    #[test]
    fn an_arriving_disk_has_no_name_until_it_is_adopted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, [0; 8192]).unwrap();
        let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
        std::fs::remove_file(&path).unwrap();
        let arriving = config.arriving(Occupied::Refuse);
        let arrive = || {
            let arriving = arriving.made().unwrap();
            let disk = Disk::open(&arriving).unwrap();
            DiskContent::new(&arriving, disk.store())
        };
        let content = arrive();
        content.copy_in(0, 0, &[3; 4096]).unwrap();
        drop(content);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left");

        let (content, rival) = (arrive(), arrive());
        content.copy_in(0, 0, &[4; 4096]).unwrap();
        content.check_adoption().unwrap();
        DiskContent::adopt(&[&content]).unwrap();
        DiskContent::adopt(&[&content]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [[4; 4096], [0; 4096]].concat());
        assert!(matches!(rival.check_adoption(), Err(DeviceError::DiskExists { .. })));
        assert!(matches!(DiskContent::adopt(&[&rival]), Err(DeviceError::DiskExists { .. })));
    }

    #[test]
    fn an_older_file_is_replaced_if_permitted_and_unused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, [1; 8192]).unwrap();
        let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
        let arriving = config.arriving(Occupied::Replace).made().unwrap();
        let disk = Disk::open(&arriving).unwrap();
        let content = DiskContent::new(&arriving, disk.store());

        let mut user = Disk::open(&config).unwrap();
        user.take_over().unwrap();
        assert!(matches!(content.check_adoption(), Err(DeviceError::DiskInUse { .. })));
        assert!(matches!(DiskContent::adopt(&[&content]), Err(DeviceError::DiskInUse { .. })));
        assert_eq!(std::fs::read(&path).unwrap(), [1; 8192]);
        user.release();
        content.copy_in(0, 0, &[5; 8192]).unwrap();
        DiskContent::adopt(&[&content]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [5; 8192]);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn either_all_of_several_disks_get_their_names_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let arrive = |name: &str, occupied| {
            let old = tempfile::NamedTempFile::new().unwrap();
            old.as_file().set_len(4096).unwrap();
            let config = BlockConfig::new(old.path(), Access::ReadWrite, "").unwrap();
            let arriving = config.at(&path(name)).arriving(occupied).made().unwrap();
            let disk = Disk::open(&arriving).unwrap();
            (DiskContent::new(&arriving, disk.store()), disk)
        };
        std::fs::write(path("replaced"), "old").unwrap();
        std::fs::write(path("taken"), "old").unwrap();
        let (new, _) = arrive("new", Occupied::Refuse);
        let (replaced, _) = arrive("replaced", Occupied::Replace);
        let (taken, _) = arrive("taken", Occupied::Refuse);
        let outcome = DiskContent::adopt(&[&new, &replaced, &taken]);
        assert!(matches!(outcome, Err(DeviceError::DiskExists { .. })), "{outcome:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        assert_eq!(std::fs::read(path("replaced")).unwrap(), b"old");

        std::fs::remove_file(path("taken")).unwrap();
        DiskContent::adopt(&[&new, &replaced, &taken]).unwrap();
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 3);
        for name in ["new", "replaced", "taken"] {
            assert_eq!(std::fs::read(path(name)).unwrap(), [0; 4096], "{name}");
        }
    }

    #[test]
    fn a_disk_arrives_under_a_temporary_name_where_every_file_needs_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        let files = || std::fs::read_dir(folder.path()).unwrap().count();
        std::fs::write(&path, [1; 4096]).unwrap();
        let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
        std::fs::remove_file(&path).unwrap();
        let arrive = |occupied| {
            let arriving = config.arriving(occupied).made_with_a_name();
            let disk = Disk::open(&arriving).unwrap();
            (DiskContent::new(&arriving, disk.store()), arriving)
        };
        let (content, arriving) = arrive(Occupied::Refuse);
        content.copy_in(0, 0, &[3; 4096]).unwrap();
        assert!(!path.exists() && files() == 1);
        arriving.abandon();
        assert_eq!(files(), 0, "a disk that does not arrive leaves nothing");

        let (content, arriving) = arrive(Occupied::Refuse);
        std::fs::write(&path, "another").unwrap();
        let refused = DiskContent::adopt(&[&content]);
        assert!(matches!(refused, Err(DeviceError::DiskExists { .. })), "{refused:?}");
        std::fs::remove_file(&path).unwrap();
        content.copy_in(0, 0, &[4; 4096]).unwrap();
        DiskContent::adopt(&[&content]).unwrap();
        arriving.abandon();
        assert_eq!((std::fs::read(&path).unwrap(), files()), (vec![4; 4096], 1));
        drop((content, arriving));

        let (content, _arriving) = arrive(Occupied::Replace);
        content.copy_in(0, 0, &[5; 4096]).unwrap();
        DiskContent::adopt(&[&content]).unwrap();
        assert_eq!((std::fs::read(&path).unwrap(), files()), (vec![5; 4096], 1));
    }

    #[test]
    fn names_that_were_reserved_are_free_again_if_another_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("taken"), [1; 4096]).unwrap();
        let config = BlockConfig::new(&path("taken"), Access::ReadWrite, "").unwrap();
        let arrive = |name: &str| {
            let arriving = config.at(&path(name)).arriving(Occupied::Refuse).made_with_a_name();
            let disk = Disk::open(&arriving).unwrap();
            DiskContent::new(&arriving, disk.store())
        };
        let disks = ["new", "same", "same"].map(arrive);
        let refused = DiskContent::adopt(&disks.each_ref());
        assert!(matches!(refused, Err(DeviceError::DiskExists { .. })), "{refused:?}");
        drop(disks);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn an_arrived_disk_is_reserved_for_its_guest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, [1; 4096]).unwrap();
        let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
        let arriving = config.arriving(Occupied::Replace);
        let arrive = || {
            let arriving = arriving.made().unwrap();
            let disk = Disk::open(&arriving).unwrap();
            (DiskContent::new(&arriving, disk.store()), disk)
        };
        let ((first, mut own), (second, _)) = (arrive(), arrive());
        DiskContent::adopt(&[&first]).unwrap();
        let stranger = Disk::open(&config).unwrap();
        let taken = file::lock(stranger.file(), file::Lock::Exclusive);
        assert_eq!(taken.unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let refused = DiskContent::adopt(&[&second]);
        assert!(matches!(refused, Err(DeviceError::DiskInUse { .. })), "{refused:?}");
        own.take_over().unwrap();
    }

    #[test]
    fn a_disk_with_a_long_name_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d".repeat(255));
        std::fs::write(&path, [1; 4096]).unwrap();
        let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
        let arriving = config.arriving(Occupied::Replace).made().unwrap();
        let disk = Disk::open(&arriving).unwrap();
        DiskContent::adopt(&[&DiskContent::new(&arriving, disk.store())]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [0; 4096]);
        let config = config.at(&folder.path().join("d".repeat(256)));
        let config = config.arriving(Occupied::Replace).made().unwrap();
        let disk = Disk::open(&config).unwrap();
        let content = DiskContent::new(&config, disk.store());
        let refused = content.check_adoption().unwrap_err().to_string();
        assert!(refused.contains("too long"), "{refused}");
    }
}
