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
//! An image's maker chooses the path of its backing file, so only files beside the image are
//! opened ([`backing`]). Their formats are those that images say they have; none is guessed.

mod backing;
mod freed;
mod header;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use imago::format::PreallocateMode;
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{
    DenyImplicitOpenGate, FormatAccess, FormatCreateBuilder, FormatDriverBuilder, Mapping,
};

pub(super) use self::backing::Backing;
use self::backing::Below;
use self::freed::Freed;
use self::header::Header;
use super::config::Access;
use super::copy::next_data;
use super::store::{copy_bytes, move_bytes};
use crate::memory::RamMap;
use crate::sys::file::{Clearing, Direction};
use crate::sys::image_file::{DirtyMark, ImageFile};
use crate::sys::sectors::{PIECE_BYTES, SECTOR_BYTES, aligned_memory, write_all_at};
use crate::virtio::buffers::Buffers;

/// Ending of an image's name, and how an image says that its backing file is one.
const FORMAT: &str = "qcow2";
/// Most files of an image: a chain that is longer, or leads back to itself, is refused.
const FILES_MAX: usize = 32;
/// Most memory for the tables of all files of an image.
const TABLES_BYTES_MAX: u64 = 512 << 20;

/// Returns whether a disk at `path` is an image: whether its name ends in `.qcow2`.
pub fn is_named(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case(FORMAT))
}

/// Makes an image of `bytes` without content in the empty `file`, which will be at `path`.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn create(path: &Path, file: &Arc<File>, bytes: u64) -> io::Result<()> {
    Qcow2::<ImageFile>::create_builder(ImageFile::unmarked(path, file)).size(bytes).create()
}

/// Returns the backing files of the image at `path`; none if it is no image or cannot be read.
pub fn backing_files(path: &Path) -> Vec<PathBuf> {
    let opened = is_named(path).then(|| regular_file::open_untrusted(path));
    let Some(Ok(file)) = opened else { return Vec::new() };
    let image = Image::open(path, &Arc::new(file), Access::ReadOnly, &[]);
    image.iter().flat_map(|image| image.backing()).map(|file| file.path.clone()).collect()
}

/// An image in a file; see the module. All methods may be called from any thread.
pub(super) struct Image {
    path: PathBuf,
    file: Arc<File>,
    /// Exclusive for what may move content within the file.
    tables: RwLock<Tables>,
    /// Taken for what may write the tables.
    writing: Mutex<()>,
    /// Locked last.
    freed: Mutex<Freed>,
    mark: Arc<DirtyMark>,
    below: Below,
}

type Tables = FormatAccess<ImageFile>;

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Image {
    /// Opens the image in `file`, found at `path`, and the files that it is based on, as far as
    /// they are not among those that another process has `handed` over.
    ///
    /// # Errors
    /// If it is no image, or one that is not supported; if a backing file is not beside it; or if
    /// one cannot be read.
    pub(super) fn open(
        path: &Path,
        file: &Arc<File>,
        access: Access,
        handed: &[Arc<File>],
    ) -> io::Result<Self> {
        let mut below = Below::new(path, file, handed);
        let mark = DirtyMark::new(file);
        let tables = open(path, file, access, &mark, &mut below)?;
        let (path, file) = (path.to_owned(), Arc::clone(file));
        let (tables, writing, freed) = (RwLock::new(tables), Mutex::new(()), Mutex::default());
        Ok(Self { path, file, tables, writing, freed, mark, below })
    }

    /// Opens the image again, whose tables may have changed in the file.
    ///
    /// # Errors
    /// As for [`Image::open`], or if what was written through it before cannot be written to the
    /// file.
    pub(super) fn open_again(&self, access: Access) -> io::Result<()> {
        self.read_again(&mut self.exclusive(), access)
    }

    fn read_again(&self, tables: &mut Tables, access: Access) -> io::Result<()> {
        self.make_durable(tables)?;
        self.mark.clear()?;
        let mut below = self.below.clone();
        *tables = open(&self.path, &self.file, access, &self.mark, &mut below)?;
        Ok(())
    }

    /// Makes all writes durable, and takes off the mark that the image is being written.
    ///
    /// # Errors
    /// If the system refuses, or has refused to make tables durable before.
    pub(super) fn close(&self) -> io::Result<()> {
        // No tables may be written until the mark is off.
        let tables = self.exclusive();
        self.make_durable(&tables)?;
        self.mark.clear()
    }

    /// Returns the size of the disk in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.shared().size()
    }

    /// Returns the files that the image is based on, the nearest one first.
    pub(super) fn backing(&self) -> &[Backing] {
        self.below.opened()
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
            let (place, length) = in_place(tables, offset, rest.len() as u64, Direction::Out)?;
            let (now, later) = rest.split_at(length as usize);
            match place {
                Some(Place { file, at }) => write_all_at(file, now, at)?,
                None => write_clusters(tables, now, offset)?,
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
        let read = |bytes: &mut [u8]| tables.read(bytes, offset);
        let write = |bytes: &[u8]| self.write_to(tables, bytes, offset);
        let mut aligned = aligned_memory(buffers.bytes() as usize)?;
        copy_bytes(buffers, memory, aligned.as_mut().into_slice(), direction, read, write)
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
            let (place, length) = in_place(&tables, offset, rest.bytes(), direction)?;
            let length = if place.is_some() { length } else { length.min(PIECE_BYTES) };
            let now = rest.take_front(length).ok_or(io::ErrorKind::InvalidInput)?;
            match place {
                Some(Place { file, at }) => move_bytes(file, at, &now, memory, direction)?,
                None => self.copy(&tables, offset, &now, memory, direction)?,
            }
            offset += length;
        }
        Ok(())
    }

    /// Returns the file that has all of a range of the disk as it is, and the offset there; `None`
    /// if none has, or it may not be written.
    ///
    /// A file's bytes stay in place until the image is written by [`Image::write`],
    /// [`Image::transfer`] or [`Image::clear`], grows, or is opened again.
    ///
    /// # Errors
    /// If the range is not on the disk, or the image is damaged or cannot be read.
    pub(super) fn place(
        &self,
        offset: u64,
        bytes: u64,
        direction: Direction,
    ) -> io::Result<Option<(Arc<File>, u64)>> {
        let tables = self.shared();
        let (place, length) = in_place(&tables, offset, bytes, direction)?;
        Ok(place.filter(|_| length == bytes).map(|it| (Arc::clone(it.file), it.at)))
    }

    /// Grows the disk, of which a guest knows the first `known` bytes, to `bytes`. The new ones are
    /// zeros.
    ///
    /// # Errors
    /// If its tables would need too much memory, or it cannot be written; it may have grown then.
    pub(super) fn grow(&self, known: u64, bytes: u64) -> io::Result<()> {
        let own = Header::read(&self.file)?.of_disk(bytes).tables_bytes();
        let below = self.backing().iter().map(|file| file.tables_bytes);
        if below.fold(own, u64::saturating_add) > TABLES_BYTES_MAX {
            let what =
                format!("its tables would need more than {} MiB of memory", TABLES_BYTES_MAX >> 20);
            return Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        }
        let mut tables = self.exclusive();
        let grown = tables.resize_grow(bytes, PreallocateMode::None);
        // The last cluster may have anything behind the end, and so may the file below, or what
        // was there before the image was made smaller.
        let grown = grown.and_then(|()| zero(&tables, known, bytes));
        if grown.is_err() {
            // imago's tables may differ from those in the file.
            self.read_again(&mut tables, Access::ReadWrite)?;
        }
        grown
    }

    /// Zeroes a range of the disk.
    ///
    /// # Errors
    /// As for [`Image::write`].
    pub(super) fn clear(&self, offset: u64, bytes: u64, how: Clearing) -> io::Result<()> {
        let mut tables = self.exclusive();
        if how == Clearing::Zero {
            return tables.write_zeroes(offset, bytes);
        }
        let (mut from, end) = (offset, offset.saturating_add(bytes));
        while from < end {
            let to = self.note_freed(&tables, from, end)?;
            tables.discard_to_zero(from, to - from)?;
            if to < end {
                self.make_durable(&tables)?;
            }
            from = to;
        }
        Ok(())
    }

    /// Notes where the file has the disk's bytes from `from` on, before they are discarded; returns
    /// up to which, at most `end`, there was room to do so.
    fn note_freed(&self, tables: &Tables, from: u64, end: u64) -> io::Result<u64> {
        let mut freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut to = from;
        while to < end && !freed.is_full() {
            let (place, length) = in_place(tables, to, end - to, Direction::Out)?;
            if let Some(Place { at, .. }) = place {
                freed.note(at..at + length);
            }
            to += length;
        }
        Ok(to)
    }

    /// Makes all writes durable.
    ///
    /// # Errors
    /// If the system refuses, or has refused to make tables durable before.
    pub(super) fn flush(&self) -> io::Result<()> {
        let tables = self.shared();
        let _alone = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.make_durable(&tables)
    }

    /// As [`Image::flush`], while nothing else writes tables. Space of what was discarded before
    /// goes back to the file system.
    fn make_durable(&self, tables: &Tables) -> io::Result<()> {
        tables.flush()?;
        self.mark.sync()?;
        let mut freed = self.freed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = freed.give_back(&self.file) {
            let path = self.path.display();
            tracing::debug!(%error, "space that discards have freed in the image {path} stays occupied");
        }
        Ok(())
    }

    /// Returns the next range of the disk's first `bytes`, from `at` on, that may contain anything
    /// but zeros; `None` if there is none.
    ///
    /// # Errors
    /// If the image is damaged or cannot be read.
    pub(super) fn next_data(&self, at: u64, bytes: u64) -> io::Result<Option<(u64, u64)>> {
        next_extent(&self.shared(), at, bytes)
    }

    /// Returns the bytes that may contain anything but zeros.
    ///
    /// # Errors
    /// If the image is damaged or cannot be read.
    pub(super) fn data_bytes(&self) -> io::Result<u64> {
        let (end, mut at, mut data) = (self.bytes(), 0, 0);
        while let Some((from, to)) = self.next_data(at, end)? {
            (at, data) = (to, data + (to - from));
        }
        Ok(data)
    }

    fn shared(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            let path = self.path.display();
            tracing::error!(%error, "cannot finish writing the image {path}: it needs `qemu-img check -r all`");
        }
    }
}

/// Where the image's files have a part of the disk as it is.
struct Place<'a> {
    file: &'a Arc<File>,
    at: u64,
}

/// Returns what the disk's bytes from `offset` on are, and how many of the next `bytes`, not 0.
fn mapping(tables: &Tables, offset: u64, bytes: u64) -> io::Result<(Mapping<'_, ImageFile>, u64)> {
    match tables.get_mapping(offset, bytes)? {
        (_, 0) => Err(io::ErrorKind::UnexpectedEof.into()),
        found => Ok(found),
    }
}

/// Returns where the disk's bytes from `offset` on can be read or written, by `direction`, if they
/// are anywhere as they are, and for how many of the next `bytes` that is so: whole sectors, not 0.
fn in_place(
    tables: &Tables,
    offset: u64,
    bytes: u64,
    direction: Direction,
) -> io::Result<(Option<Place<'_>>, u64)> {
    let (mapping, length) = mapping(tables, offset, bytes)?;
    // A file below may end within a sector.
    let length = length - length % SECTOR_BYTES;
    if length == 0 {
        return Ok((None, bytes.min(SECTOR_BYTES)));
    }
    let place = match mapping {
        Mapping::Raw { storage, offset: at, writable, .. } => {
            let may_move = direction == Direction::In || (writable && tables.inner().writable());
            // What is behind the end of a file are zeros.
            let end = at.checked_add(length).ok_or(io::ErrorKind::InvalidData)?;
            (may_move && storage.reaches(end)?).then(|| Place { file: storage.file(), at })
        }
        _ => None,
    };
    Ok((place, length))
}

/// Returns whether the disk's bytes from `offset` on may be anything but zeros, and for how many of
/// the next `bytes`, not 0, that is so. A file of the image may have holes.
fn extent(tables: &Tables, offset: u64, bytes: u64) -> io::Result<(bool, u64)> {
    let (mapping, length) = mapping(tables, offset, bytes)?;
    let Mapping::Raw { storage, offset: at, .. } = mapping else {
        return Ok((!matches!(mapping, Mapping::Zero { .. }), length));
    };
    let end = at.checked_add(length).ok_or(io::ErrorKind::InvalidData)?;
    Ok(match next_data(storage.file(), at, end)? {
        None => (false, length),
        Some((from, _)) if from > at => (false, from - at),
        Some((_, to)) => (true, to - at),
    })
}

/// Returns the next range of the disk's first `bytes`, from `at` on, that may contain anything but
/// zeros; `None` if there is none.
fn next_extent(tables: &Tables, at: u64, bytes: u64) -> io::Result<Option<(u64, u64)>> {
    let (mut at, mut data) = (at, None);
    while at < bytes {
        let (has_data, length) = extent(tables, at, bytes - at)?;
        match (has_data, data) {
            (true, None) => data = Some(at),
            (false, Some(_)) => break,
            _ => {}
        }
        at += length;
    }
    Ok(data.map(|from| (from, at)))
}

/// Zeroes the disk's first `bytes` from `at` on, where they are not zeros.
fn zero(tables: &Tables, mut at: u64, bytes: u64) -> io::Result<()> {
    while let Some((from, to)) = next_extent(tables, at, bytes)? {
        tables.write_zeroes(from, to - from)?;
        at = to;
    }
    Ok(())
}

/// Writes `bytes` to a new place in the file: whole clusters, so that imago has no content to
/// write.
fn write_clusters(tables: &Tables, bytes: &[u8], offset: u64) -> io::Result<()> {
    let cluster = tables.inner().zero_granularity().unwrap_or(1);
    let first = offset - offset % cluster;
    let end = (offset + bytes.len() as u64).next_multiple_of(cluster).min(tables.size());
    let mut clusters = aligned_memory((end - first) as usize)?;
    let clusters = clusters.as_mut().into_slice();
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

/// Opens an image to write it under `mark`, or to read it, and the files that it is based on.
fn open(
    path: &Path,
    file: &Arc<File>,
    access: Access,
    mark: &Arc<DirtyMark>,
    below: &mut Below,
) -> io::Result<Tables> {
    let storage = match access {
        Access::ReadOnly => ImageFile::to_read(path, file),
        Access::ReadWrite => {
            expect_writable(file)?;
            ImageFile::to_write(path, file, mark)
        }
    };
    let image = Qcow2::open_image(storage, access == Access::ReadWrite)?;
    let tables = with_backing(image, file, below, Above { files: 0, tables_bytes: 0 })?;
    // The size of the table has been checked.
    if access == Access::ReadWrite && !Header::read(file)?.has_sound_refcounts(file)? {
        return refuse("its table of refcounts is damaged: `qemu-img check -r all` repairs it");
    }
    Ok(tables)
}

/// Checks that an image has a place for the mark, and is not marked.
fn expect_writable(file: &File) -> io::Result<()> {
    if Header::read(file)?.version < 3 {
        return refuse(
            "it has version 2, which can only be read: `qemu-img amend -o compat=1.1` makes it version 3",
        );
    }
    if DirtyMark::is_on(file)? {
        return refuse(
            "it was being written when its host lost power or its process was killed: `qemu-img check -r all` repairs it",
        );
    }
    Ok(())
}

fn refuse<T>(what: &str) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, what))
}

/// The images above one in its chain.
#[derive(Clone, Copy)]
struct Above {
    files: usize,
    tables_bytes: u64,
}

/// Opens the files that an image is based on, one after the other.
fn with_backing(
    mut image: Qcow2<ImageFile>,
    file: &File,
    below: &mut Below,
    above: Above,
) -> io::Result<Tables> {
    let header = Header::read(file)?;
    // imago does not check it.
    if header.is_encrypted {
        return refuse("it is encrypted, which is not supported");
    }
    let tables_bytes = above.tables_bytes.saturating_add(header.tables_bytes());
    if tables_bytes > TABLES_BYTES_MAX {
        return refuse(&format!(
            "its tables would need more than {} MiB of memory: `qemu-img convert` makes an image of one file with smaller clusters",
            TABLES_BYTES_MAX >> 20
        ));
    }
    if image.requires_external_data_file() {
        return refuse("its data is in another file, which is not supported");
    }
    let next = match (image.implicit_backing_file(), image.implicit_backing_format()) {
        (None, _) => None,
        // Guessing would let a guest turn its raw disk into an image, if another is based on it.
        (Some(_), None) => {
            return refuse(
                "it does not say which format its backing file has: tell it by `qemu-img rebase -u -b FILE -F FORMAT`",
            );
        }
        (Some(named), Some(format)) => {
            let named = below.path(named);
            let above = Above { files: above.files + 1, tables_bytes };
            let next = open_below(&named, format, below, above);
            Some(next.map_err(|error| {
                // The image's maker chose the name.
                let named = named.display().to_string().replace(char::is_control, "?");
                let text = format!("its backing file {named}: {error}");
                io::Error::new(error.kind(), text)
            })?)
        }
    };
    image.set_backing(next);
    Ok(FormatAccess::new(image))
}

/// Opens the backing file at `named`.
fn open_below(named: &Path, format: &str, below: &mut Below, above: Above) -> io::Result<Tables> {
    if above.files >= FILES_MAX {
        return Err(io::Error::other(format!(
            "there are more than {FILES_MAX} files, or the last one leads back to the first"
        )));
    }
    let (found, file) = below.open(named, format)?;
    match format {
        FORMAT => {
            let image = Qcow2::open_image(ImageFile::to_read(&found, &file), false)?;
            with_backing(image, &file, below, above)
        }
        "raw" => {
            let raw = Raw::builder(ImageFile::unmarked(&found, &file));
            Ok(FormatAccess::new(raw.open(DenyImplicitOpenGate::default())?))
        }
        other => refuse(&format!("it has the format {other}, which is not supported")),
    }
}
