//! A disk on its way here: a file without a name (`O_TMPFILE`) until its guest is this host's.
//!
//! So nothing half copied can be taken for a disk, and nothing is left behind, however the copy ends: the
//! kernel forgets the file with the last process that has it open.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

use super::config::Occupied;
use crate::raw_io::{self, Lock};
use crate::virtio::DeviceError;

/// Like other programs' images of disks: for the user that the guest runs as alone.
const MODE: u32 = 0o600;

/// Checks that a disk could be made at `path`. Creates nothing.
///
/// # Errors
/// [`DeviceError::DiskExists`], [`DeviceError::DiskInUse`]; what the system answers.
pub(super) fn check_place(path: &Path, occupied: Occupied) -> Result<(), DeviceError> {
    let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
    let folder = folder_of(path)?;
    let found = folder.metadata().map_err(|cause| {
        failed(io::Error::new(cause.kind(), format!("its folder {}: {cause}", folder.display())))
    })?;
    if !found.is_dir() {
        return Err(failed(io::ErrorKind::NotADirectory.into()));
    }
    match (path.symlink_metadata(), occupied) {
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        (Err(error), _) => Err(failed(error)),
        (Ok(_), Occupied::Refuse) => Err(DeviceError::DiskExists { path: path.to_path_buf() }),
        (Ok(_), Occupied::Replace) => check_unused(path),
    }
}

/// Checks that what is there is a file that nobody uses.
fn check_unused(path: &Path) -> Result<(), DeviceError> {
    let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
    let mut options = OpenOptions::new();
    let file = regular_file::open(path, options.read(true).write(true)).map_err(failed)?;
    match raw_io::lock(&file, Lock::Exclusive) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            Err(DeviceError::DiskInUse { path: path.to_path_buf() })
        }
        Err(error) => Err(failed(error)),
    }
}

/// Makes the file for a disk of `bytes` that is to be at `path`.
///
/// # Errors
/// The file system cannot have files without names, or has no room.
pub(super) fn create(path: &Path, bytes: u64) -> Result<File, DeviceError> {
    let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC)
        .mode(MODE)
        .open(folder_of(path)?)
        .map_err(|cause| match cause.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::EISDIR) => failed(io::Error::other(
                "its file system has no files without names (O_TMPFILE), which a copied disk is until its guest runs: use \
                 ext4, xfs, btrfs or tmpfs",
            )),
            _ => failed(cause),
        })?;
    // The mode is subject to the umask, which may take away what the guest's own user needs.
    file.set_permissions(std::fs::Permissions::from_mode(MODE)).map_err(failed)?;
    file.set_len(bytes).map_err(failed)?;
    Ok(file)
}

/// Gives the file its name, and makes that durable.
///
/// # Errors
/// As [`check_place`]; the file has no name then.
pub(super) fn give_name(file: &File, path: &Path, occupied: Occupied) -> Result<(), DeviceError> {
    let failed = |cause| DeviceError::Disk { path: path.to_path_buf(), cause };
    check_place(path, occupied)?;
    match (link(file, path), occupied) {
        (Err(error), Occupied::Refuse) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(DeviceError::DiskExists { path: path.to_path_buf() });
        }
        (Err(error), Occupied::Replace) if error.kind() == io::ErrorKind::AlreadyExists => {
            let beside = name_beside(path);
            link(file, &beside).map_err(failed)?;
            std::fs::rename(&beside, path).map_err(|error| {
                // What cannot be renamed can still be removed, or nothing can be done.
                let _ = std::fs::remove_file(&beside);
                failed(error)
            })?;
        }
        (linked, _) => linked.map_err(failed)?,
    }
    File::open(folder_of(path)?).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn link(file: &File, path: &Path) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(linkat(AT_FDCWD, own.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)?)
}

/// A name that nobody else uses, for the moment before the file takes the place of another.
fn name_beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".lighter-{}", std::process::id()));
    name.into()
}

fn folder_of(path: &Path) -> Result<&Path, DeviceError> {
    path.parent().ok_or_else(|| DeviceError::Disk {
        path: path.to_path_buf(),
        cause: io::ErrorKind::InvalidInput.into(),
    })
}
