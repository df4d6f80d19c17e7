//! Storage of a disk's bytes: a raw file or block device, or a qcow2 image.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use super::cache::{self, CacheMode};
use super::config::Access;
use super::copy::next_data;
use super::qcow2::{self, Backing, Image};
use crate::memory::RamMap;
use crate::sys::file::{self, Clearing, Direction};
use crate::sys::sectors::{self, PIECE_BYTES, SECTOR_BYTES, aligned_memory};
use crate::virtio::buffers::Buffers;

/// Block size of `stat` in bytes, whatever block size the file system has.
const STAT_BLOCK_BYTES: u64 = 512;

/// Storage of a disk's bytes. All methods may be called from any thread.
#[derive(Debug)]
pub(super) struct Store {
    file: Arc<File>,
    image: Option<Arc<Image>>,
    /// Whether its bytes go through the host's cache. All of them or none: the cache of a block
    /// device may keep what was there before a write that bypassed it. What an image is based on
    /// always does.
    cache: CacheMode,
}

impl Store {
    /// Opens the storage in `file`, found at `path`. What an image is based on may be among the
    /// files that were `handed` over. An image can only be read until [`Store::take_over`].
    ///
    /// # Errors
    /// If there is an image, which cannot be used.
    pub(super) fn open(path: &Path, file: &Arc<File>, handed: &[Arc<File>]) -> io::Result<Self> {
        Self::with_access(path, file, Access::ReadOnly, handed)
    }

    /// Opens the storage in a file that was created for an arriving disk: it can be written at
    /// once.
    ///
    /// # Errors
    /// As for [`Store::open`].
    pub(super) fn of_new(path: &Path, file: &Arc<File>) -> io::Result<Self> {
        Self::with_access(path, file, Access::ReadWrite, &[])
    }

    fn with_access(
        path: &Path,
        file: &Arc<File>,
        access: Access,
        handed: &[Arc<File>],
    ) -> io::Result<Self> {
        let is_image = qcow2::is_named(path) && file.metadata()?.is_file();
        let image = is_image.then(|| Image::open(path, file, access, handed)).transpose()?;
        let image = image.map(Arc::new);
        Ok(Self { file: Arc::clone(file), image, cache: CacheMode::Writeback })
    }

    /// Returns the same storage, whose bytes bypass the host's cache from now on.
    ///
    /// # Errors
    /// If the file system or the device cannot do that, or an image has a part of a sector.
    pub(super) fn bypassing_cache(&self) -> io::Result<Self> {
        if self.image.as_ref().is_some_and(|image| !image.bytes().is_multiple_of(SECTOR_BYTES)) {
            return Err(cache::unsupported("the image's size is not a multiple of 512 bytes"));
        }
        cache::bypass(&self.file)?;
        let (file, image) = (Arc::clone(&self.file), self.image.clone());
        Ok(Self { file, image, cache: CacheMode::None })
    }

    /// Returns whether its bytes go through the host's cache.
    pub(super) fn cache(&self) -> CacheMode {
        self.cache
    }

    /// Returns the file, which has more than the disk's bytes if it has an image.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Returns whether the bytes are those of the file, one for one.
    pub(super) fn is_raw(&self) -> bool {
        self.image.is_none()
    }

    /// Returns the files that an image is based on.
    pub(super) fn backing(&self) -> &[Backing] {
        self.image.as_ref().map_or(&[], |image| image.backing())
    }

    /// Returns the number of bytes.
    ///
    /// # Errors
    /// If the system call fails.
    pub(super) fn bytes(&self) -> io::Result<u64> {
        match &self.image {
            Some(image) => Ok(image.bytes()),
            // Only seeking finds the size of a block device.
            None => (&*self.file).seek(SeekFrom::End(0)),
        }
    }

    /// Returns the bytes that a copy takes at most, without holes and zeros; `None` if unknown.
    pub(super) fn allocated_bytes(&self) -> Option<u64> {
        if let Some(image) = &self.image {
            return image.data_bytes().ok();
        }
        let found = self.file.metadata().ok().filter(|found| found.is_file())?;
        Some(found.blocks().saturating_mul(STAT_BLOCK_BYTES))
    }

    /// Reads what another host has written meanwhile. From now on, the bytes can be accessed as
    /// `access` says.
    ///
    /// # Errors
    /// If there is an image, which cannot be used any more.
    pub(super) fn take_over(&self, access: Access) -> io::Result<()> {
        file::forget_cached(&self.file);
        self.image.as_ref().map_or(Ok(()), |image| image.open_again(access))
    }

    /// Makes an image read-only, so that another host can write it.
    ///
    /// # Errors
    /// If its tables cannot be written, or it cannot be opened again.
    pub(super) fn release(&self) -> io::Result<()> {
        self.image.as_ref().map_or(Ok(()), |image| image.open_again(Access::ReadOnly))
    }

    /// Fills `bytes` from `offset` on.
    ///
    /// # Errors
    /// If they cannot be read.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        match (&self.image, self.cache) {
            (Some(image), _) => image.read(bytes, offset),
            (None, CacheMode::Writeback) => self.file.read_exact_at(bytes, offset),
            (None, CacheMode::None) => sectors::read_exact_at(&self.file, bytes, offset),
        }
    }

    /// Writes `bytes` from `offset` on.
    ///
    /// # Errors
    /// If they cannot be written.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        match (&self.image, self.cache) {
            (Some(image), _) => image.write(bytes, offset),
            (None, CacheMode::Writeback) => self.file.write_all_at(bytes, offset),
            (None, CacheMode::None) => sectors::write_all_at(&self.file, bytes, offset),
        }
    }

    /// Moves all bytes of `buffers` from `offset` on.
    ///
    /// # Errors
    /// If they are not all in guest memory, or the disk cannot be read or written.
    pub(super) fn transfer(
        &self,
        offset: u64,
        buffers: &Buffers,
        memory: &RamMap,
        direction: Direction,
    ) -> io::Result<()> {
        match &self.image {
            _ if !self.takes(buffers) => self.copy(offset, buffers, memory, direction),
            Some(image) => image.transfer(offset, buffers, memory, direction),
            None => move_bytes(&self.file, offset, buffers, memory, direction),
        }
    }

    /// Moves all bytes of `buffers` from `offset` on through aligned memory.
    fn copy(
        &self,
        mut offset: u64,
        buffers: &Buffers,
        memory: &RamMap,
        direction: Direction,
    ) -> io::Result<()> {
        let mut rest = buffers.clone();
        let mut aligned = aligned_memory(rest.bytes().min(PIECE_BYTES) as usize)?;
        while rest.bytes() > 0 {
            let now = rest.take_front(rest.bytes().min(PIECE_BYTES));
            let now = now.ok_or(io::ErrorKind::InvalidInput)?;
            let piece = aligned.as_mut_range(0..now.bytes() as usize).into_slice();
            let read = |bytes: &mut [u8]| self.read(bytes, offset);
            let write = |bytes: &[u8]| self.write(bytes, offset);
            copy_bytes(&now, memory, piece, direction, read, write)?;
            offset += now.bytes();
        }
        Ok(())
    }

    /// Returns whether the kernel can move bytes between the file and these buffers.
    fn takes(&self, buffers: &Buffers) -> bool {
        self.cache == CacheMode::Writeback || cache::is_aligned(buffers)
    }

    /// Returns the file that has all of a range as it is, and the offset there; `None` if none has,
    /// or the kernel cannot move its bytes from or to `buffers`, or it may not be written, or the
    /// tables cannot be read. In an image, bytes stay in place until others are written or cleared.
    pub(super) fn place(
        &self,
        offset: u64,
        buffers: &Buffers,
        direction: Direction,
    ) -> Option<(Arc<File>, u64)> {
        match &self.image {
            _ if !self.takes(buffers) => None,
            // The request itself will meet the error.
            Some(image) => image.place(offset, buffers.bytes(), direction).ok().flatten(),
            None => Some((Arc::clone(&self.file), offset)),
        }
    }

    /// Zeroes a range.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn clear(&self, offset: u64, bytes: u64, how: Clearing) -> io::Result<()> {
        match &self.image {
            Some(image) => image.clear(offset, bytes, how),
            None => file::clear_or_write(&self.file, offset, bytes, how),
        }
    }

    /// Discards a range, which may read as anything; where that is not supported it keeps its
    /// content.
    ///
    /// # Errors
    /// If the system refuses, or an image is damaged.
    pub(super) fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        match &self.image {
            Some(image) => image.clear(offset, bytes, Clearing::PunchHole),
            None => file::discard(&self.file, offset, bytes),
        }
    }

    /// Grows a file or an image, of which a guest knows the first `known` bytes, to `bytes`. What
    /// was not there before are zeros.
    ///
    /// # Errors
    /// If the system refuses, or an image's tables would need too much memory; it may have grown
    /// then.
    pub(super) fn grow(&self, known: u64, bytes: u64) -> io::Result<()> {
        match &self.image {
            Some(image) => image.grow(known, bytes),
            None => self.file.set_len(bytes),
        }
    }

    /// Returns whether it is a block device.
    pub(super) fn is_device(&self) -> bool {
        self.file.metadata().is_ok_and(|found| found.file_type().is_block_device())
    }

    /// Makes all writes durable.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn sync(&self) -> io::Result<()> {
        match &self.image {
            Some(image) => image.flush(),
            None => self.file.sync_data(),
        }
    }

    /// Makes all writes durable, and marks an image as no longer being written.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn settle(&self) -> io::Result<()> {
        match &self.image {
            Some(image) => image.close(),
            None => self.file.sync_data(),
        }
    }

    /// Returns the next range of the first `bytes`, from `at` on, that may contain anything but
    /// zeros; `None` if there is none.
    ///
    /// # Errors
    /// If it cannot be read.
    pub(super) fn next_data(&self, at: u64, bytes: u64) -> io::Result<Option<(u64, u64)>> {
        match &self.image {
            Some(image) => image.next_data(at, bytes),
            None => next_data(&self.file, at, bytes),
        }
    }
}

/// Moves all bytes of `buffers` through `piece`, which is as long and which `read` fills or `write`
/// takes.
///
/// # Errors
/// If they are not all in guest memory, or `read` or `write` fails.
pub(super) fn copy_bytes(
    buffers: &Buffers,
    memory: &RamMap,
    piece: &mut [u8],
    direction: Direction,
    read: impl FnOnce(&mut [u8]) -> io::Result<()>,
    write: impl FnOnce(&[u8]) -> io::Result<()>,
) -> io::Result<()> {
    match direction {
        Direction::In => {
            read(piece)?;
            buffers.write(memory, piece).map_err(io::Error::other)
        }
        Direction::Out => {
            buffers.read(memory, piece).map_err(io::Error::other)?;
            write(piece)
        }
    }
}

/// Moves all bytes of `buffers` from `offset` of `file` on.
///
/// # Errors
/// If they are not all in guest memory, or the file cannot be read or written.
pub(super) fn move_bytes(
    file: &File,
    offset: u64,
    buffers: &Buffers,
    memory: &RamMap,
    direction: Direction,
) -> io::Result<()> {
    let slices = buffers.slices(memory).map_err(io::Error::other)?;
    file::transfer(file, offset, &slices, direction)
}
