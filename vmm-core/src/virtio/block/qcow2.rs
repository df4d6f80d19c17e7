//! A disk in a qcow2 image: the crate imago keeps the image's tables, and the content is read and
//! written here.
//!
//! The name of the file alone says that it is an image ([`is_named`]): a guest can write anything
//! into a raw disk, the beginning of an image as well, but cannot rename its file.
//!
//! Another host writes the image before a guest arrives, and after it has left. So it is open for
//! reading until the guest takes it over, and again from its release on: a part of the tables is
//! kept in memory, and may be old by the take-over.
//!
//! The path of a backing file is chosen by whoever made the image, so only files beside the image
//! are opened.

#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::format::gate::ImplicitOpenGate;
use imago::qcow2::Qcow2;
use imago::{FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping, StorageOpenOptions};

use super::config::Access;
use super::store::move_bytes;
use crate::memory::RamMap;
use crate::sys::file::{Clearing, Direction};
use crate::sys::image_file::ImageFile;
use crate::virtio::buffers::Buffers;

/// Ending of an image's name.
const ENDING: &str = "qcow2";
/// Most files of an image: a chain that is longer, or leads back to itself, is refused.
const FILES_MAX: usize = 32;
/// Bytes that are copied at a time.
const PIECE_BYTES: u64 = 1 << 20;

/// Returns whether a disk at `path` is an image: whether its name ends in `.qcow2`.
pub fn is_named(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(ENDING))
}

/// Makes an image of `bytes` without content in the empty `file`, which will be at `path`.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn create(path: &Path, file: &Arc<File>, bytes: u64) -> io::Result<()> {
    Qcow2::<ImageFile>::create_builder(ImageFile::new(path, file)).size(bytes).create()
}

/// Returns the backing files of the image at `path`; none if it is no image or cannot be read.
pub fn backing_files(path: &Path) -> Vec<PathBuf> {
    let opened = is_named(path).then(|| regular_file::open_untrusted(path));
    let Some(Ok(file)) = opened else { return Vec::new() };
    let image = Image::open(path, &Arc::new(file), Access::ReadOnly);
    image.map_or_else(|_| Vec::new(), |image| image.backing.into_iter().map(|it| it.path).collect())
}

/// A file that an image is based on. It is only read.
#[derive(Debug, Clone)]
pub(super) struct Backing {
    /// Path without links.
    pub(super) path: PathBuf,
    /// The open file.
    pub(super) file: Arc<File>,
}

/// An image in a file; see the module. All methods may be called from any thread.
pub(super) struct Image {
    path: PathBuf,
    file: Arc<File>,
    /// Exclusive for what may move content within the file.
    tables: RwLock<Tables>,
    /// Taken for writes that may add to the tables.
    writing: Mutex<()>,
    backing: Vec<Backing>,
}

type Tables = FormatAccess<ImageFile>;

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Image {
    /// Opens the image in `file`, found at `path`, and the files that it is based on.
    ///
    /// # Errors
    /// If it is no image, or one that is not supported; if a backing file is not beside it; or if
    /// one cannot be read.
    pub(super) fn open(path: &Path, file: &Arc<File>, access: Access) -> io::Result<Self> {
        let mut backing = Vec::new();
        let tables = RwLock::new(open(path, file, access, &mut backing)?);
        let (path, file, writing) = (path.to_owned(), Arc::clone(file), Mutex::new(()));
        Ok(Self { path, file, tables, writing, backing })
    }

    /// Opens the image again, whose tables may have changed in the file.
    ///
    /// # Errors
    /// As for [`Image::open`], or if what was written through it before cannot be written to the
    /// file.
    pub(super) fn open_again(&self, access: Access) -> io::Result<()> {
        let mut tables = self.exclusive();
        tables.flush()?;
        *tables = open(&self.path, &self.file, access, &mut self.backing.clone())?;
        Ok(())
    }

    /// Returns the size of the disk in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.shared().size()
    }

    /// Returns the files that the image is based on, the nearest one first.
    pub(super) fn backing(&self) -> &[Backing] {
        &self.backing
    }

    /// Fills `bytes` with what the disk has from `offset` on.
    ///
    /// # Errors
    /// If the range is not on the disk, or the image is damaged or cannot be read.
    pub(super) fn read(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        self.shared().read(bytes, offset)
    }

    /// Writes `bytes` to the disk from `offset` on.
    ///
    /// # Errors
    /// If the range is not on the disk, or the image is damaged or cannot be written.
    pub(super) fn write(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.write_to(&self.shared(), bytes, offset)
    }

    /// As [`Image::write`], one thread at a time: content around the bytes may have to be moved.
    fn write_to(&self, tables: &Tables, bytes: &[u8], offset: u64) -> io::Result<()> {
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut offset, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let (place, length) = in_place(tables, offset, rest.len() as u64)?;
            let (now, later) = rest.split_at(length as usize);
            match place {
                Some(Place { file, at, is_writable: true }) => file.write_all_at(now, at)?,
                _ => write_clusters(tables, now, offset)?,
            }
            (offset, rest) = (offset + length, later);
        }
        Ok(())
    }

    /// Moves bytes that are nowhere as they are, or may not be written there.
    fn copy(
        &self,
        tables: &Tables,
        offset: u64,
        buffers: &Buffers,
        memory: &RamMap,
        direction: Direction,
    ) -> io::Result<()> {
        let mut bytes = vec![0; buffers.bytes() as usize];
        match direction {
            Direction::In => {
                tables.read(&mut bytes, offset)?;
                buffers.write(memory, &bytes).map_err(io::Error::other)
            }
            Direction::Out => {
                buffers.read(memory, &mut bytes).map_err(io::Error::other)?;
                self.write_to(tables, &bytes, offset)
            }
        }
    }

    /// Moves all bytes of `buffers` to or from the disk from `offset` on.
    ///
    /// # Errors
    /// As for [`Image::read`] and [`Image::write`], or if they are not all in guest memory.
    pub(super) fn transfer(
        &self,
        offset: u64,
        buffers: &Buffers,
        memory: &RamMap,
        direction: Direction,
    ) -> io::Result<()> {
        let tables = self.shared();
        let (mut offset, mut rest) = (offset, buffers.clone());
        while rest.bytes() > 0 {
            let (place, length) = in_place(&tables, offset, rest.bytes())?;
            let place = place.filter(|it| it.is_writable || direction == Direction::In);
            let length = if place.is_some() { length } else { length.min(PIECE_BYTES) };
            let Some(now) = rest.take_front(length) else { break };
            match place {
                Some(Place { file, at, .. }) => move_bytes(file, at, &now, memory, direction)?,
                None => self.copy(&tables, offset, &now, memory, direction)?,
            }
            offset += length;
        }
        Ok(())
    }

    /// Zeroes a range of the disk.
    ///
    /// # Errors
    /// As for [`Image::write`].
    pub(super) fn clear(&self, offset: u64, bytes: u64, how: Clearing) -> io::Result<()> {
        match how {
            Clearing::Zero => self.shared().write_zeroes(offset, bytes),
            Clearing::PunchHole => self.exclusive().discard_to_zero(offset, bytes),
        }
    }

    /// Writes to the file what was written to the tables.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn flush(&self) -> io::Result<()> {
        self.shared().flush()
    }

    /// Returns the next range of the disk's first `bytes`, from `at` on, that may contain anything
    /// but zeros; `None` if there is none.
    ///
    /// # Errors
    /// If the image is damaged or cannot be read.
    pub(super) fn next_data(&self, at: u64, bytes: u64) -> io::Result<Option<(u64, u64)>> {
        let tables = self.shared();
        let (mut at, mut data) = (at, None);
        while at < bytes {
            let (mapping, length) = mapping(&tables, at, bytes - at)?;
            match (matches!(mapping, Mapping::Zero { .. }), data) {
                (false, None) => data = Some(at),
                (true, Some(_)) => break,
                _ => {}
            }
            at += length;
        }
        Ok(data.map(|from| (from, at)))
    }

    fn shared(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the image's files have a part of the disk as it is.
struct Place<'a> {
    file: &'a File,
    at: u64,
    is_writable: bool,
}

/// Returns what the disk's bytes from `offset` on are, and how many of the next `bytes`, not 0.
fn mapping(tables: &Tables, offset: u64, bytes: u64) -> io::Result<(Mapping<'_, ImageFile>, u64)> {
    match tables.get_mapping(offset, bytes)? {
        (_, 0) => Err(io::ErrorKind::UnexpectedEof.into()),
        found => Ok(found),
    }
}

/// Returns where the disk's bytes from `offset` on are, if they are anywhere as they are, and how
/// many of the next `bytes`, not 0.
fn in_place(tables: &Tables, offset: u64, bytes: u64) -> io::Result<(Option<Place<'_>>, u64)> {
    let (mapping, length) = mapping(tables, offset, bytes)?;
    let place = match mapping {
        Mapping::Raw { storage, offset: at, writable: is_writable, .. } => {
            // What is behind the end of a file are zeros.
            let is_whole = at
                .checked_add(length)
                .is_some_and(|end| storage.file().metadata().is_ok_and(|found| end <= found.len()));
            is_whole.then(|| Place { file: storage.file(), at, is_writable })
        }
        _ => None,
    };
    Ok((place, length))
}

/// Writes `bytes` to a new place in the file: whole clusters, so that imago has no content to
/// write.
fn write_clusters(tables: &Tables, bytes: &[u8], offset: u64) -> io::Result<()> {
    let cluster = tables.inner().zero_granularity().unwrap_or(1);
    let first = offset - offset % cluster;
    let end = (offset + bytes.len() as u64).next_multiple_of(cluster).min(tables.size());
    let mut clusters = vec![0; (end - first) as usize];
    let (before, rest) = clusters.split_at_mut((offset - first) as usize);
    let (new, behind) = rest.split_at_mut(bytes.len());
    tables.read(before, first)?;
    new.copy_from_slice(bytes);
    tables.read(behind, offset + bytes.len() as u64)?;
    let mut done = 0;
    while done < clusters.len() {
        let rest = &clusters[done..];
        let place = tables.prepare_data_mapping(first + done as u64, rest.len() as u64, true)?;
        let now = rest.len().min(place.length() as usize);
        if now == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        place.storage().file().write_all_at(&rest[..now], place.offset())?;
        tables.commit_data_mapping(place)?;
        done += now;
    }
    Ok(())
}

/// Opens an image; adds to `backing` those of its backing files that are not in it yet.
fn open(
    path: &Path,
    file: &Arc<File>,
    access: Access,
    backing: &mut Vec<Backing>,
) -> io::Result<Tables> {
    let storage = ImageFile::new(path, file);
    let mut image = Qcow2::<ImageFile>::open_image(storage, access == Access::ReadWrite)?;
    if image.requires_external_data_file() {
        return Err(io::Error::other("its data is in another file, which is not supported"));
    }
    let folder = path.parent().unwrap_or(path);
    image.open_implicit_dependencies_gated(Beside { folder, backing, opened: &mut 0 })?;
    Ok(FormatAccess::new(image))
}

/// Opens the files that an image names, if they are beside it.
struct Beside<'a> {
    folder: &'a Path,
    backing: &'a mut Vec<Backing>,
    opened: &'a mut usize,
}

impl ImplicitOpenGate<ImageFile> for Beside<'_> {
    fn open_format<F: FormatDriverBuilder<ImageFile>>(
        &mut self,
        builder: F,
    ) -> io::Result<FormatAccess<ImageFile>> {
        let Self { folder, backing, opened } = self;
        builder.open(Beside { folder, backing, opened }).map(FormatAccess::new)
    }

    fn open_storage(&mut self, options: StorageOpenOptions) -> io::Result<ImageFile> {
        let named = options.get_filename().unwrap_or(self.folder);
        let failed = |error: io::Error| {
            io::Error::new(error.kind(), format!("its backing file {}: {error}", named.display()))
        };
        *self.opened += 1;
        if *self.opened >= FILES_MAX {
            let many = format!("an image has {FILES_MAX} files at most, and none twice");
            return Err(failed(io::Error::other(many)));
        }
        let path = named.canonicalize().map_err(failed)?;
        if path.parent() != Some(self.folder) {
            return Err(failed(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "only files in the folder of the image are read: move it there, and tell the image by `qemu-img rebase -u -b`",
            )));
        }
        if let Some(known) = self.backing.iter().find(|known| known.path == path) {
            return Ok(ImageFile::new(&path, &known.file));
        }
        let file = Arc::new(regular_file::open_untrusted(&path).map_err(failed)?);
        let storage = ImageFile::new(&path, &file);
        self.backing.push(Backing { path, file });
        Ok(storage)
    }
}
