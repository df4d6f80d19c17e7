//! The content of a disk, for copying it while the guest runs: in chunks, as guest memory.
//!
//! It shares the storage with the device, so it reads what the guest has written, and pausing and
//! saving cover it too. At the destination of a copy, the content is written through it.

use std::io;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

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
use super::write_limit::WriteLimit;
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
    write_limit: WriteLimit,
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
            write_limit: WriteLimit::default(),
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

    /// Stops the log, and ends the limit of [`DiskContent::limit_writes`]. Does nothing if it was
    /// not started.
    pub fn stop_log(&self) {
        self.log.stop();
        self.limit_writes(None, Duration::ZERO);
    }

    /// Limits what the guest writes, for the duration of `lease` or until the next call; `None`
    /// lifts the limit. A write that waits also delays the requests behind it in its queue. A
    /// caller renews the lease, so that a guest whose caller has failed is not left slow.
    pub fn limit_writes(&self, bytes_per_second: Option<NonZeroU64>, lease: Duration) {
        self.write_limit.set(bytes_per_second, lease, Instant::now());
    }

    /// Returns the limit of what the guest writes.
    pub(super) fn write_limit(&self) -> &WriteLimit {
        &self.write_limit
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
mod tests;
