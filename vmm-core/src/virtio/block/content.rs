//! The content of a disk, for whoever copies it while the guest runs: by chunks, as guest memory.
//!
//! It shares the open file with the device, so it reads what the guest has written, and a pause or
//! a save concerns it no less. At the destination of a copy it is what the content is written
//! through.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::config::{Access, BlockConfig, Origin};
use super::copy::next_data;
use super::departed;
use super::identity::DiskIdentity;
use super::lock_reach::LockReach;
use super::log::{WriteLog, each_word};
use super::proof::{DiskProof, Mark};
use super::seal::Seal;
use super::staged::{self, Nameless};
use crate::memory::{CHUNK_BYTES, CHUNK_PAGES, PAGE_BYTES};
use crate::sys::file::{self, Clearing};
use crate::virtio::DeviceError;

/// Bytes of a sector as `stat` counts them, whatever the file system's are.
const STAT_BLOCK_BYTES: u64 = 512;

/// See the module. All calls may come from any thread.
#[derive(Debug)]
pub struct DiskContent {
    path: PathBuf,
    file: Arc<File>,
    bytes: u64,
    access: Access,
    lock_reach: LockReach,
    log: WriteLog,
    /// What remains to be done for the file to have its name.
    unnamed: Mutex<Option<Origin>>,
    /// A guest may be saved on it as it is now, which the next write ends.
    may_be_sealed: AtomicBool,
}

impl DiskContent {
    /// The content of the disk that `file` is.
    pub(super) fn new(config: &BlockConfig, file: &Arc<File>) -> Self {
        let unnamed = Some(config.origin()).filter(|origin| *origin != Origin::Present);
        Self {
            path: config.path().to_path_buf(),
            file: Arc::clone(file),
            bytes: config.bytes(),
            access: config.access(),
            lock_reach: LockReach::of(file),
            log: WriteLog::default(),
            unnamed: Mutex::new(unnamed),
            may_be_sealed: AtomicBool::new(config.begins_here()),
        }
    }

    /// The file or block device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size in bytes, which need not be whole pages.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What the guest may do with it.
    pub fn access(&self) -> Access {
        self.access
    }

    /// Whether it is a block device.
    pub fn is_device(&self) -> bool {
        self.file.metadata().is_ok_and(|found| found.file_type().is_block_device())
    }

    /// What it is recognized by, whatever is at its path by now; `None` when the system does not
    /// tell.
    pub fn identity(&self) -> Option<DiskIdentity> {
        DiskIdentity::of(&self.file.metadata().ok()?)
    }

    /// Whom the lock on it keeps away.
    pub fn lock_reach(&self) -> LockReach {
        self.lock_reach
    }

    /// Chunks of its content; the last one may be cut short by the disk's end.
    pub fn chunks(&self) -> usize {
        self.bytes.div_ceil(CHUNK_BYTES as u64) as usize
    }

    /// Bytes of it that take up room on this host; all of them when that cannot be told.
    pub fn allocated_bytes(&self) -> u64 {
        match self.file.metadata() {
            Ok(found) if found.is_file() => {
                found.blocks().saturating_mul(STAT_BLOCK_BYTES).min(self.bytes)
            }
            _ => self.bytes,
        }
    }

    /// Notes on the disk, durably, that its content has gone, and `where_to`: from now on it is
    /// refused as a guest's disk here.
    ///
    /// # Errors
    /// The system's answer: not all file systems can keep the note.
    pub fn note_departure(&self, where_to: &str) -> io::Result<()> {
        departed::note(&self.file, where_to)
    }

    /// Takes that back.
    ///
    /// # Errors
    /// The system's answer.
    pub fn forget_departure(&self) -> io::Result<()> {
        departed::forget(&self.file)
    }

    /// Marks the disk for the destination of a migration, if it is a file: another host then tells
    /// it from others.
    ///
    /// # Errors
    /// The system's answer: the file is another user's, for example.
    pub fn mark(&self) -> io::Result<Option<Mark>> {
        Mark::set(&self.file)
    }

    /// The device's view of the same.
    pub(super) fn log(&self) -> &WriteLog {
        &self.log
    }

    /// Starts to log what the guest writes.
    pub fn start_log(&self) {
        self.log.start(self.bytes);
    }

    /// Stops the log. Does nothing when it was not started.
    pub fn stop_log(&self) {
        self.log.stop();
    }

    /// Sets the bits of pages that the guest has written in `words`, one word for each chunk.
    pub fn collect_written(&self, words: &mut [u64]) {
        self.log.collect(words);
    }

    /// Forgets that the pages in `words`, from chunk `first_chunk` on, were written. Call it before
    /// they are read.
    pub fn rearm(&self, first_chunk: usize, words: &[u64]) {
        self.log.clear(first_chunk, words);
    }

    /// Sets in `words`, one for each chunk, which pages hold something, as far as the file system
    /// can tell; the others read as zeros.
    ///
    /// # Errors
    /// The system's answer.
    pub fn find_data(&self, words: &mut [u64]) -> Result<(), DeviceError> {
        words.fill(0);
        let mut set = |from: u64, to: u64| {
            each_word(from, to.min(self.bytes) - from, |chunk, mask| {
                if let Some(word) = words.get_mut(chunk) {
                    *word |= mask;
                }
            });
        };
        let mut at = 0;
        let next = |at| next_data(&self.file, at, self.bytes).map_err(|error| self.failed(error));
        while let Some((data, end)) = next(at)? {
            set(data, end);
            at = end;
        }
        Ok(())
    }

    /// Copies content into `buf`, from page `first_page` of `chunk` on; what is behind the disk's
    /// end is zeros.
    ///
    /// # Errors
    /// The range lies outside, or the disk cannot be read.
    pub fn copy_out(
        &self,
        chunk: usize,
        first_page: usize,
        buf: &mut [u8],
    ) -> Result<(), DeviceError> {
        let (offset, inside) = self.place(chunk, first_page, buf.len())?;
        let (content, behind) = buf.split_at_mut(inside);
        behind.fill(0);
        self.file.read_exact_at(content, offset).map_err(|error| self.failed(error))
    }

    /// Writes content from page `first_page` of `chunk` on; what is behind the disk's end is left
    /// out.
    ///
    /// # Errors
    /// The range lies outside, or the disk cannot be written: it may be full.
    pub fn copy_in(&self, chunk: usize, first_page: usize, data: &[u8]) -> Result<(), DeviceError> {
        let (offset, inside) = self.place(chunk, first_page, data.len())?;
        self.file.write_all_at(&data[..inside], offset).map_err(|error| self.failed(error))
    }

    /// Makes the pages of `chunk` in `mask` zeros, and gives their room back where that is
    /// possible.
    ///
    /// # Errors
    /// The chunk lies outside, or the disk cannot be written.
    pub fn zero(&self, chunk: usize, mask: u64) -> Result<(), DeviceError> {
        for page in (0..CHUNK_PAGES).filter(|page| mask >> page & 1 == 1) {
            let (offset, inside) = self.place(chunk, page, PAGE_BYTES)?;
            let cleared = file::clear(&self.file, offset, inside as u64, Clearing::PunchHole);
            cleared
                .or_else(|_| self.file.write_all_at(&[0; PAGE_BYTES][..inside], offset))
                .map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// The system's answer.
    pub fn sync(&self) -> Result<(), DeviceError> {
        let flush = |cause| DeviceError::Flush { path: self.path.clone(), cause };
        self.file.sync_data().map_err(flush)
    }

    /// Makes all that was written durable, and says what the disk looks like, of a guest that
    /// stands still: see [`Seal`].
    ///
    /// # Errors
    /// The system's answer.
    pub fn seal(&self) -> Result<DiskProof, DeviceError> {
        self.may_be_sealed.store(true, Ordering::Release);
        Seal::of(&self.file).map(DiskProof::Sealed).map_err(|error| self.failed(error))
    }

    /// Whether seals are to be broken before the guest writes; says so once.
    pub(super) fn take_seals(&self) -> bool {
        self.may_be_sealed.swap(false, Ordering::AcqRel)
    }

    /// Checks that [`DiskContent::adopt`] would succeed now.
    ///
    /// # Errors
    /// [`DeviceError::DiskExists`], [`DeviceError::DiskInUse`]; what the system answers.
    pub fn check_adoption(&self) -> Result<(), DeviceError> {
        match *self.unnamed() {
            Some(Origin::Arriving(occupied)) => staged::check_place(&self.path, occupied).map(drop),
            Some(Origin::Present) | None => Ok(()),
        }
    }

    /// Gives all `disks` that have arrived their names, durably: from now on they outlive this
    /// process. Leaves out those that have one.
    ///
    /// # Errors
    /// [`DeviceError::DiskExists`] when somebody has taken a name meanwhile; what the system
    /// answers. None has a name then, but for those that had replaced another disk by then.
    pub fn adopt(disks: &[&Self]) -> Result<(), DeviceError> {
        let mut origins: Vec<_> = disks.iter().map(|disk| disk.unnamed()).collect();
        let files = disks.iter().zip(&origins).filter_map(|(disk, origin)| match **origin {
            Some(Origin::Arriving(occupied)) => {
                Some(Nameless { file: &disk.file, path: &disk.path, occupied })
            }
            Some(Origin::Present) | None => None,
        });
        staged::give_names(&files.collect::<Vec<_>>())?;
        origins.iter_mut().for_each(|origin| **origin = None);
        Ok(())
    }

    fn unnamed(&self) -> MutexGuard<'_, Option<Origin>> {
        self.unnamed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where a range of pages lies in the file, and how many of its `len` bytes are before the
    /// disk's end.
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
        let inside = self.bytes.saturating_sub(offset).min(len as u64);
        Ok((offset, inside as usize))
    }

    fn failed(&self, cause: io::Error) -> DeviceError {
        DeviceError::Disk { path: self.path.clone(), cause }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Occupied;
    use super::*;
    use crate::virtio::block::disk::Disk;

    fn content_of(file: &tempfile::NamedTempFile) -> DiskContent {
        let config = BlockConfig::new(file.path(), Access::ReadWrite, "").unwrap();
        DiskContent::new(&config, Disk::open(&config).unwrap().shared_file())
    }

    #[test]
    fn holes_are_told_from_data() {
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
    fn content_goes_out_and_in_up_to_the_end_of_the_disk() {
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
    fn what_lies_outside_is_refused() {
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
            let disk = Disk::open(&arriving).unwrap();
            DiskContent::new(&arriving, disk.shared_file())
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
    fn an_older_file_is_replaced_when_it_may_be_and_nobody_uses_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, [1; 8192]).unwrap();
        let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
        let arriving = config.arriving(Occupied::Replace);
        let disk = Disk::open(&arriving).unwrap();
        let content = DiskContent::new(&arriving, disk.shared_file());

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
    fn of_several_disks_all_get_their_names_or_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let arrive = |name: &str, occupied| {
            let old = tempfile::NamedTempFile::new().unwrap();
            old.as_file().set_len(4096).unwrap();
            let config = BlockConfig::new(old.path(), Access::ReadWrite, "").unwrap();
            let arriving = config.at(&path(name)).arriving(occupied);
            let disk = Disk::open(&arriving).unwrap();
            (DiskContent::new(&arriving, disk.shared_file()), disk)
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
    fn nobody_takes_an_arrived_disk_before_its_guest() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        std::fs::write(&path, [1; 4096]).unwrap();
        let config = BlockConfig::new(&path, Access::ReadWrite, "").unwrap();
        let arriving = config.arriving(Occupied::Replace);
        let arrive = || {
            let disk = Disk::open(&arriving).unwrap();
            (DiskContent::new(&arriving, disk.shared_file()), disk)
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
        let arriving = config.arriving(Occupied::Replace);
        let disk = Disk::open(&arriving).unwrap();
        DiskContent::adopt(&[&DiskContent::new(&arriving, disk.shared_file())]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [0; 4096]);
        let config = config.at(&folder.path().join("d".repeat(256))).arriving(Occupied::Replace);
        let disk = Disk::open(&config).unwrap();
        let content = DiskContent::new(&config, disk.shared_file());
        let refused = content.check_adoption().unwrap_err().to_string();
        assert!(refused.contains("too long"), "{refused}");
    }
}
