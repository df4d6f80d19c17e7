//! A disk that is being copied to this host: a file without a name (`O_TMPFILE`) until its guest
//! runs here.
//!
//! So no half-copied file can be mistaken for a disk, and nothing is left behind, however the copy
//! ends: the kernel deletes the file when the last process closes it.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::config::Occupied;
use crate::sys::file::{self, Lock};
use crate::unnamed_file::{self, NameGuard};
use crate::virtio::DeviceError;

/// File mode, as for other programs' disk images: only for the user that the guest runs as.
const MODE: u32 = 0o600;

/// Checks that a disk could be created at `path`, without creating anything. A file there that may
/// be replaced is returned, and locked for as long as the returned file is open.
///
/// # Errors
/// [`DeviceError::DiskExists`], [`DeviceError::DiskInUse`]; or if a system call fails.
pub(super) fn check_place(path: &Path, occupied: Occupied) -> Result<Option<File>, DeviceError> {
    let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
    let folder = unnamed_file::folder_of(path);
    let found = folder.metadata().map_err(|cause| {
        failed(io::Error::new(cause.kind(), format!("its folder {}: {cause}", folder.display())))
    })?;
    if !found.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    match (path.symlink_metadata(), occupied) {
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        (Err(error), _) => Err(failed(error)),
        (Ok(_), Occupied::Refuse) => Err(DeviceError::DiskExists { path: path.to_path_buf() }),
        (Ok(_), Occupied::Replace) => {
            check_beside(path).map_err(failed)?;
            lock_unused(path).map(Some)
        }
    }
}

/// Checks that a file can be created beside `path`: its longer path may exceed the limit.
fn check_beside(path: &Path) -> io::Result<()> {
    match unnamed_file::beside(path)?.symlink_metadata() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Locks the file at `path`, if it is a regular file that is not in use.
fn lock_unused(path: &Path) -> Result<File, DeviceError> {
    let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
    let in_use = || DeviceError::DiskInUse { path: path.to_path_buf() };
    let mut options = OpenOptions::new();
    let file = regular_file::open(path, options.read(true).write(true)).map_err(failed)?;
    file::lock(&file, Lock::Exclusive).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => in_use(),
        _ => failed(error),
    })?;
    // Another file may have been put there before this one was locked.
    let (locked, there) = (file.metadata().map_err(failed)?, path.metadata().map_err(failed)?);
    let is_same = (locked.dev(), locked.ino()) == (there.dev(), there.ino());
    if is_same { Ok(file) } else { Err(in_use()) }
}

/// Creates the file of a disk of `bytes` that will be at `path`. The file is locked exclusively, so
/// that no other process takes it between being named and its guest's take-over.
///
/// # Errors
/// If the file system does not support files without names, or is full.
pub(super) fn create(path: &Path, bytes: u64) -> Result<File, DeviceError> {
    let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(MODE);
    let file = unnamed_file::create(unnamed_file::folder_of(path), &mut options);
    let file = file.map_err(|cause| match cause.raw_os_error() {
        Some(libc::EOPNOTSUPP | libc::EISDIR) => failed(io::Error::other(
            "its file system has no files without names (O_TMPFILE), which a copied disk is until its guest runs: use \
             ext4, xfs, btrfs or tmpfs",
        )),
        _ => failed(cause),
    })?;
    file::lock(&file, Lock::Exclusive).map_err(failed)?;
    // The umask may have removed permissions that the guest's user needs.
    file.set_permissions(Permissions::from_mode(MODE)).map_err(failed)?;
    file.set_len(bytes).map_err(failed)?;
    Ok(file)
}

/// A file that is about to be named.
#[derive(Debug)]
pub(super) struct UnnamedFile<'a> {
    /// The open file, which has no name yet.
    pub(super) file: &'a File,
    /// The path that it is to have.
    pub(super) path: &'a Path,
    /// Whether an existing file with that name may be replaced.
    pub(super) occupied: Occupied,
}

/// A file that has its name, or a temporary name beside it.
struct Named {
    path: PathBuf,
    name: NameGuard,
    /// The file that it replaces, locked until the replacement is complete.
    old: Option<File>,
}

/// Durably names all `files`: first all places are checked, and files to be replaced are locked;
/// then each file gets its name, or a temporary name if it replaces another file; then the latter
/// are renamed.
///
/// # Errors
/// As [`check_place`]; after an error no file has a name, except those that had already replaced
/// another file. A file that has lost its name again cannot get another.
pub(super) fn give_names(files: &[UnnamedFile<'_>]) -> Result<(), DeviceError> {
    let places = files.iter().map(|file| check_place(file.path, file.occupied));
    let places = places.collect::<Result<Vec<_>, _>>()?;
    let named = files.iter().zip(places).map(|(file, old)| give_name(file, old));
    let mut named = named.collect::<Result<Vec<_>, _>>()?;
    for Named { path, name, old } in &mut named {
        let failed = |cause| DeviceError::Disk { path: path.clone(), cause };
        if old.is_some() {
            name.replace(path).map_err(failed)?;
        }
    }
    for Named { path, .. } in &named {
        let failed = |cause| DeviceError::Disk { path: path.clone(), cause };
        unnamed_file::sync_folder_of(path).map_err(failed)?;
    }
    named.into_iter().for_each(|named| named.name.keep());
    Ok(())
}

fn give_name(file: &UnnamedFile<'_>, old: Option<File>) -> Result<Named, DeviceError> {
    let path = file.path.to_path_buf();
    let name = match &old {
        Some(_) => unnamed_file::beside(&path),
        None => Ok(path.clone()),
    };
    match name.and_then(|name| NameGuard::link(file.file, name)) {
        Ok(name) => Ok(Named { path, name, old }),
        // Another process has created the file meanwhile.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(DeviceError::DiskExists { path })
        }
        Err(cause) => Err(DeviceError::Disk { path, cause }),
    }
}
