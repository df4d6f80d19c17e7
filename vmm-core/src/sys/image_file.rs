//! A file as the crate imago uses it for a qcow2 image: by whole sectors, so that the host's cache
//! can be bypassed.
//!
//! Writes through it are durable when they return; discards and resizes are not. imago writes most
//! of an image's tables in an order that keeps a partly written image consistent, but does not wait
//! until each step is durable, and adds new tables before it counts their clusters as used. If the
//! process is killed or the host loses power in between, the tables refer to clusters that count as
//! free, which would then be used twice. So an image is marked as *dirty* before anything is
//! written to its tables, until all of them are durable: QEMU's own mark for an image whose counts
//! may be wrong.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;

use super::file::{Clearing, clear_or_write, discard};
use super::sectors::{SECTOR_BYTES, read_exact_at, read_up_to, write_all_at};

/// Place of the mark in the header: the lowest bit of the incompatible features, 8 bytes,
/// big-endian (docs/interop/qcow2.rst of QEMU).
const DIRTY_AT: u64 = 79;
const DIRTY: u8 = 1;

/// The mark of an image that is written, and the first error of making its tables durable.
#[derive(Debug)]
pub(crate) struct DirtyMark {
    file: Arc<File>,
    /// Locked until the mark is durable: [`DirtyMark::change`] writes the sector back that it has
    /// read, and no header may be written in between. Reads write tables, too: imago makes room for
    /// others.
    is_set: Mutex<bool>,
    /// Number of the error; 0 if there was none. Linux reports lost writes once for an open file,
    /// and imago does not pass on all errors.
    fault: AtomicI32,
}

impl DirtyMark {
    /// Returns the mark of the image in `file`, which is not set.
    pub(crate) fn new(file: &Arc<File>) -> Arc<Self> {
        let file = Arc::clone(file);
        Arc::new(Self { file, is_set: Mutex::new(false), fault: AtomicI32::new(0) })
    }

    /// Returns whether the image in `file` is marked.
    ///
    /// # Errors
    /// If its header cannot be read.
    pub(crate) fn is_on(file: &File) -> io::Result<bool> {
        let mut byte = [0];
        read_exact_at(file, &mut byte, DIRTY_AT)?;
        Ok(byte[0] & DIRTY != 0)
    }

    /// Durably marks the image, if it is not marked yet.
    fn set(&self) -> io::Result<()> {
        let mut is_set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
        if !*is_set {
            self.change(|byte| byte | DIRTY)?;
            *is_set = true;
        }
        Ok(())
    }

    /// Durably takes the mark off, if it is set. All that was written to the tables must be durable
    /// by [`DirtyMark::sync`].
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn clear(&self) -> io::Result<()> {
        let mut is_set = self.is_set.lock().unwrap_or_else(PoisonError::into_inner);
        if *is_set {
            self.change(|byte| byte & !DIRTY)?;
            *is_set = false;
        }
        Ok(())
    }

    fn change(&self, change: impl Fn(u8) -> u8) -> io::Result<()> {
        let mut sector = [0; SECTOR_BYTES as usize];
        read_exact_at(&self.file, &mut sector, 0)?;
        let byte = &mut sector[DIRTY_AT as usize];
        *byte = change(*byte);
        write_all_at(&self.file, &sector, 0)?;
        self.sync()
    }

    /// Makes all writes to the file durable.
    ///
    /// # Errors
    /// If the system refuses, or has refused before.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if let Err(error) = self.file.sync_data() {
            self.fault.store(error.raw_os_error().unwrap_or(libc::EIO), Ordering::Release);
        }
        match self.fault.load(Ordering::Acquire) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// A file of a disk image; see the module.
#[derive(Debug)]
pub(crate) struct ImageFile {
    file: Arc<File>,
    path: PathBuf,
    /// None for a file that is only read, or is no image yet.
    mark: Option<Arc<DirtyMark>>,
    /// Whether the mark is hidden: another host may be writing the image that is read here.
    hides_mark: bool,
    /// Lower bound of the file's length, in bytes; only [`Storage::resize`] makes it shorter.
    reached: AtomicU64,
    in_flight: CommonStorageHelper,
}

impl ImageFile {
    /// Uses the image in `file`, found at `path`, to read it.
    pub(crate) fn to_read(path: &Path, file: &Arc<File>) -> Self {
        Self { hides_mark: true, ..Self::unmarked(path, file) }
    }

    /// Uses the image in `file`, found at `path`, to write it under this mark.
    pub(crate) fn to_write(path: &Path, file: &Arc<File>, mark: &Arc<DirtyMark>) -> Self {
        Self { mark: Some(Arc::clone(mark)), ..Self::unmarked(path, file) }
    }

    /// Uses `file`, found at `path`, without a mark: to make an image in it, or to read what is
    /// none.
    pub(crate) fn unmarked(path: &Path, file: &Arc<File>) -> Self {
        let (file, path) = (Arc::clone(file), path.to_owned());
        let (reached, in_flight) = (AtomicU64::new(0), CommonStorageHelper::default());
        Self { file, path, mark: None, hides_mark: false, reached, in_flight }
    }

    /// Returns the file; writes to it directly are not durable until it is synced.
    pub(crate) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Returns whether the file has all bytes before `end`.
    ///
    /// # Errors
    /// If the system call fails.
    pub(crate) fn reaches(&self, end: u64) -> io::Result<bool> {
        if end > self.reached.load(Ordering::Relaxed) {
            self.reached.store(self.size()?, Ordering::Relaxed);
        }
        Ok(end <= self.reached.load(Ordering::Relaxed))
    }

    /// Lets the file end at `end` at least.
    fn grow(&self, end: u64) -> io::Result<()> {
        if end > self.size()? { self.file.set_len(end) } else { Ok(()) }
    }

    fn sync_tables(&self) -> io::Result<()> {
        match &self.mark {
            Some(mark) => mark.sync(),
            None => self.file.sync_data(),
        }
    }
}

/// Returns the byte with the mark, if it is among `bytes`, which are at `offset`.
fn marked(bytes: &mut [u8], offset: u64) -> Option<&mut u8> {
    bytes.get_mut(usize::try_from(DIRTY_AT.checked_sub(offset)?).ok()?)
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// The trait's `unsafe` methods ask their callers to keep alignment, without which the kernel may
/// refuse them, and to keep concurrent writes apart, which is about data and not about memory.
///
/// Both alignments are one sector, the smallest size of a cluster. imago widens an unaligned write
/// to whole sectors (read, modify, write), so it never rewrites another cluster, which the guest
/// may be writing.
impl Storage for ImageFile {
    fn mem_align(&self) -> usize {
        SECTOR_BYTES as usize
    }

    fn req_align(&self) -> usize {
        SECTOR_BYTES as usize
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    unsafe fn pure_readv(&self, buffers: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for mut buffer in buffers.into_inner() {
            let found = read_up_to(&self.file, &mut buffer, at)?;
            // Behind the end there are zeros.
            buffer[found..].fill(0);
            if self.hides_mark
                && let Some(byte) = marked(&mut buffer, at)
            {
                *byte &= !DIRTY;
            }
            at = at.saturating_add(buffer.len() as u64);
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, buffers: IoVector<'_>, offset: u64) -> io::Result<()> {
        if let Some(mark) = &self.mark {
            mark.set()?;
        }
        let mut at = offset;
        for buffer in buffers.into_inner() {
            if self.mark.is_some() && at <= DIRTY_AT {
                let mut header = buffer.to_vec();
                marked(&mut header, at).into_iter().for_each(|byte| *byte |= DIRTY);
                write_all_at(&self.file, &header, at)?;
            } else {
                write_all_at(&self.file, &buffer, at)?;
            }
            at = at.saturating_add(buffer.len() as u64);
        }
        self.sync_tables()
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        clear_or_write(&self.file, offset, length, Clearing::PunchHole)?;
        self.grow(offset.saturating_add(length))?;
        self.sync_tables()
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        discard(&self.file, offset, length)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_tables()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.in_flight
    }

    fn resize(&self, bytes: u64, _mode: PreallocateMode) -> io::Result<()> {
        self.file.set_len(bytes)?;
        self.reached.store(bytes, Ordering::Relaxed);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Barrier;

    use imago::StorageExt;

    use super::*;

    #[test]
    fn a_header_that_is_written_while_the_mark_is_set_stays() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let header = [0xaa_u8; SECTOR_BYTES as usize];
        for _ in 0..1000 {
            file.write_all_at(&[0; 4096], 0).unwrap();
            let mark = DirtyMark::new(&file);
            let image = ImageFile::to_write(Path::new("/a.qcow2"), &file, &mark);
            let begin = Barrier::new(2);
            std::thread::scope(|scope| {
                for (bytes, at) in [([1; SECTOR_BYTES as usize], 2048), (header, 0)] {
                    let (begin, image) = (&begin, &image);
                    scope.spawn(move || {
                        begin.wait();
                        image.write(&bytes[..], at).unwrap();
                    });
                }
            });
            let mut found = [0; SECTOR_BYTES as usize];
            file.read_exact_at(&mut found, 0).unwrap();
            found[DIRTY_AT as usize] &= !DIRTY;
            assert!(found == header);
            assert!(DirtyMark::is_on(&file).unwrap());
            mark.clear().unwrap();
            assert!(!DirtyMark::is_on(&file).unwrap());
        }
    }
}
