//! A disk on its way here: a file without a name (`O_TMPFILE`) until its guest is this host's.
//!
//! So nothing half copied can be taken for a disk, and nothing is left behind, however the copy
//! ends: the kernel forgets the file with the last process that has it open.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::config::Occupied;
use crate::sys::file::{self, Lock};
use crate::unnamed_file::{self, TakenName};
use crate::virtio::DeviceError;

/// Like other programs' images of disks: for the user that the guest runs as alone.
const MODE: u32 = 0o600;

/// Checks that a disk could be made at `path`. Creates nothing. What is there and may be replaced
/// is locked for as long as the file that is returned is open.
///
/// # Errors
/// [`DeviceError::DiskExists`], [`DeviceError::DiskInUse`]; what the system answers.
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

/// Checks that there can be a file beside: it may be that the whole path gets too long.
fn check_beside(path: &Path) -> io::Result<()> {
    match unnamed_file::beside(path)?.symlink_metadata() {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Locks what is there, if it is a file that nobody uses.
fn lock_unused(path: &Path) -> Result<File, DeviceError> {
    let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
    let in_use = || DeviceError::DiskInUse { path: path.to_path_buf() };
    let mut options = OpenOptions::new();
    let file = regular_file::open(path, options.read(true).write(true)).map_err(failed)?;
    file::lock(&file, Lock::Exclusive).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => in_use(),
        _ => failed(error),
    })?;
    // Somebody may have put another file there before this one was locked.
    let (locked, there) = (file.metadata().map_err(failed)?, path.metadata().map_err(failed)?);
    let is_same = (locked.dev(), locked.ino()) == (there.dev(), there.ino());
    if is_same { Ok(file) } else { Err(in_use()) }
}

/// Makes the file for a disk of `bytes` that is to be at `path`. It is locked against everybody
/// else, so that nobody takes it between the moment in which it gets its name and that in which its
/// guest takes it over.
///
/// # Errors
/// The file system cannot have files without names, or has no room.
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
    // The mode is subject to the umask, which may take away what the guest's own user needs.
    file.set_permissions(Permissions::from_mode(MODE)).map_err(failed)?;
    file.set_len(bytes).map_err(failed)?;
    Ok(file)
}

/// A file that is to get its name.
#[derive(Debug)]
pub(super) struct Nameless<'a> {
    /// The file.
    pub(super) file: &'a File,
    /// Its name.
    pub(super) path: &'a Path,
    /// Whether something else may have that name.
    pub(super) occupied: Occupied,
}

/// A file that has its name, or one beside it.
struct Named {
    path: PathBuf,
    name: TakenName,
    /// What it replaces, locked until that is over.
    old: Option<File>,
}

/// Gives all `files` their names, and makes that durable: all places are checked, and what is to be
/// replaced is locked; then each file gets a name, beside its own where it replaces another; then
/// those take their places.
///
/// # Errors
/// As [`check_place`]; no file has a name then, but for those that had replaced another by then. A
/// file that has lost its name again cannot get another.
pub(super) fn give_names(files: &[Nameless<'_>]) -> Result<(), DeviceError> {
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

fn give_name(file: &Nameless<'_>, old: Option<File>) -> Result<Named, DeviceError> {
    let path = file.path.to_path_buf();
    let name = match &old {
        Some(_) => unnamed_file::beside(&path),
        None => Ok(path.clone()),
    };
    match name.and_then(|name| TakenName::link(file.file, name)) {
        Ok(name) => Ok(Named { path, name, old }),
        // Somebody was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(DeviceError::DiskExists { path })
        }
        Err(cause) => Err(DeviceError::Disk { path, cause }),
    }
}
