//! A file as the crate imago uses it for a disk image.
//!
//! All writes through it are durable when they return. imago writes an image's tables in an order
//! in which a part of them is consistent as well, but does not wait between them until they are
//! durable: after a power cut the file could refer to clusters that count as free, which are then
//! used twice.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;

use super::file::{Clearing, clear, is_unsupported, write_zero_bytes};

/// A file of a disk image; see the module.
#[derive(Debug)]
pub(crate) struct ImageFile {
    file: Arc<File>,
    path: PathBuf,
    in_flight: CommonStorageHelper,
}

impl ImageFile {
    /// Uses `file`, which was found at `path`.
    pub(crate) fn new(path: &Path, file: &Arc<File>) -> Self {
        let in_flight = CommonStorageHelper::default();
        Self { file: Arc::clone(file), path: path.to_owned(), in_flight }
    }

    /// Returns the file, whose writes are not durable.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Lets the file end at `end` at least.
    fn grow(&self, end: u64) -> io::Result<()> {
        if end > self.size()? { self.file.set_len(end) } else { Ok(()) }
    }
}

impl fmt::Display for ImageFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// The trait's `unsafe` methods ask their callers to keep alignment, which this file does not need,
/// and to keep concurrent writes apart, which is about data and not about memory.
impl Storage for ImageFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn get_filename(&self) -> Option<PathBuf> {
        Some(self.path.clone())
    }

    fn resolve_relative_path<P: AsRef<Path>>(&self, relative: P) -> io::Result<PathBuf> {
        Ok(self.path.parent().unwrap_or(&self.path).join(relative))
    }

    unsafe fn pure_readv(&self, buffers: IoVectorMut<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for mut buffer in buffers.into_inner() {
            let mut rest = &mut *buffer;
            while !rest.is_empty() {
                match self.file.read_at(rest, at) {
                    // Behind the end there are zeros.
                    Ok(0) => {
                        at = at.saturating_add(rest.len() as u64);
                        rest.fill(0);
                        break;
                    }
                    Ok(read) => {
                        at = at.saturating_add(read as u64);
                        rest = &mut rest[read..];
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    unsafe fn pure_writev(&self, buffers: IoVector<'_>, offset: u64) -> io::Result<()> {
        let mut at = offset;
        for buffer in buffers.into_inner() {
            self.file.write_all_at(&buffer, at)?;
            at = at.saturating_add(buffer.len() as u64);
        }
        self.file.sync_data()
    }

    unsafe fn pure_write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        match clear(&self.file, offset, length, Clearing::PunchHole) {
            Err(error) if is_unsupported(&error) => write_zero_bytes(&self.file, offset, length),
            cleared => cleared,
        }?;
        self.grow(offset.saturating_add(length))?;
        self.file.sync_data()
    }

    unsafe fn pure_discard(&self, offset: u64, length: u64) -> io::Result<()> {
        match clear(&self.file, offset, length, Clearing::PunchHole) {
            Err(error) if is_unsupported(&error) => Ok(()),
            cleared => cleared,
        }
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.in_flight
    }

    fn resize(&self, bytes: u64, _mode: PreallocateMode) -> io::Result<()> {
        self.file.set_len(bytes)
    }
}
