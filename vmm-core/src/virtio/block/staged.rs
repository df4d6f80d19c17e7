//! A disk that is being copied to this host: a file without a name (`O_TMPFILE`) until its guest
//! runs here.
//!
//! So no half-copied file can be mistaken for a disk, and nothing is left behind, however the copy
//! ends: the kernel deletes the file when the last process closes it. Where every file needs a
//! name, as on NFS, it has a temporary one, which stays behind if the process is killed.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use regular_file::opened;

use super::config::Occupied;
use super::qcow2;
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
    options.read(true).write(true);
    let opened = file::despite_lease(|| regular_file::open(path, &mut options));
    let file = opened.map_err(failed)?;
    file::lock(&file, Lock::Exclusive).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => in_use(),
        _ => failed(error),
    })?;
    // Another file may have been put there before this one was locked.
    let (locked, there) = (file.metadata().map_err(failed)?, path.metadata().map_err(failed)?);
    if opened::is_same(&locked, &there) { Ok(file) } else { Err(in_use()) }
}

/// The file that was created for an arriving disk.
#[derive(Debug)]
pub(super) struct Staged {
    file: Arc<File>,
    /// Its temporary name, where every file needs a name.
    temporary: Mutex<Option<NameGuard>>,
}

impl Staged {
    /// Creates the file of a disk of `bytes` that will be at `path`. The file is locked
    /// exclusively, so that no other process takes it between being named and its guest's
    /// take-over.
    ///
    /// # Errors
    /// If the file system is full, or a system call fails.
    pub(super) fn create(path: &Path, bytes: u64) -> Result<Self, DeviceError> {
        let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
        let file = unnamed_file::create(unnamed_file::folder_of(path), &mut options());
        let file = match file {
            Err(error) if unnamed_file::is_unsupported(&error) => return Self::named(path, bytes),
            file => file.map_err(failed)?,
        };
        Self::new(path, file, None, bytes).map_err(failed)
    }

    /// As [`Self::create`], for file systems where every file needs a name.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub(super) fn named(path: &Path, bytes: u64) -> Result<Self, DeviceError> {
        let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
        let (file, name) = unnamed_file::create_beside(path, &mut options()).map_err(failed)?;
        Self::new(path, file, Some(name), bytes).map_err(failed)
    }

    fn new(path: &Path, file: File, temporary: Option<NameGuard>, bytes: u64) -> io::Result<Self> {
        file::lock(&file, Lock::Exclusive)?;
        // The umask may have removed permissions that the guest's user needs.
        file.set_permissions(Permissions::from_mode(MODE))?;
        let file = Arc::new(file);
        match qcow2::is_named(path) {
            true => qcow2::create(path, &file, bytes)?,
            false => file.set_len(bytes)?,
        }
        Ok(Self { file, temporary: Mutex::new(temporary) })
    }

    /// Returns the open file.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Removes the temporary name, if the file still has one.
    pub(super) fn abandon(&self) {
        drop(self.take_name());
    }

    fn take_name(&self) -> Option<NameGuard> {
        self.temporary.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(MODE);
    options
}

/// A file that is about to be named.
#[derive(Debug)]
pub(super) struct UnnamedFile<'a> {
    /// The file, which has no name yet, or a temporary one.
    pub(super) staged: &'a Staged,
    /// The path that it is to have.
    pub(super) path: &'a Path,
    /// Whether an existing file with that name may be replaced.
    pub(super) occupied: Occupied,
}

/// A file that has its name, or a temporary name beside it.
struct Named {
    path: PathBuf,
    name: NameGuard,
    /// The empty file at `path` that it replaces if the name was free, but the file already has a
    /// temporary one: a rename without this could replace another process's new file.
    reserved: Option<NameGuard>,
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
    for Named { path, name, reserved, old } in &mut named {
        let failed = |cause| DeviceError::Disk { path: path.clone(), cause };
        if old.is_some() || reserved.is_some() {
            name.replace(path).map_err(failed)?;
        }
    }
    for Named { path, .. } in &named {
        let failed = |cause| DeviceError::Disk { path: path.clone(), cause };
        unnamed_file::sync_folder_of(path).map_err(failed)?;
    }
    for Named { name, reserved, .. } in named {
        [Some(name), reserved].into_iter().flatten().for_each(NameGuard::keep);
    }
    Ok(())
}

fn give_name(file: &UnnamedFile<'_>, old: Option<File>) -> Result<Named, DeviceError> {
    let path = file.path.to_path_buf();
    let open = file.staged.file();
    let named = match (file.staged.take_name(), &old) {
        (Some(name), Some(_)) => Ok((name, None)),
        (Some(name), None) => NameGuard::reserve(path.clone()).map(|empty| (name, Some(empty))),
        (None, Some(_)) => {
            unnamed_file::beside(&path).and_then(|name| Ok((NameGuard::link(open, name)?, None)))
        }
        (None, None) => NameGuard::link(open, path.clone()).map(|name| (name, None)),
    };
    match named {
        Ok((name, reserved)) => Ok(Named { path, name, reserved, old }),
        // Another process has created the file meanwhile.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(DeviceError::DiskExists { path })
        }
        Err(cause) => Err(DeviceError::Disk { path, cause }),
    }
}
