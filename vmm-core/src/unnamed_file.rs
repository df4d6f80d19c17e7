//! Files without a name until they are complete (`O_TMPFILE` of open(2)). The kernel frees such a
//! file with its last descriptor, so nothing is left of it if the process that writes it dies. A
//! complete file gets its name in one step: by `linkat`, or by `rename` from a temporary name if it
//! replaces another file. Where every file needs a name, as on NFS, it has a temporary one from the
//! start, which stays if the process is killed.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use regular_file::opened::link_to;

use crate::sys::file;

/// Creates a file without a name in `folder`, with these `options`.
///
/// # Errors
/// `EOPNOTSUPP` or `EISDIR` if the file system does not support such files; otherwise the error
/// from the system.
pub(crate) fn create(folder: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC).open(folder)
}

/// Returns whether `error` of [`create`] means that the file system has no files without names.
pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR))
}

/// Creates a file with a temporary name in the folder of `path`, with these `options`.
///
/// # Errors
/// As [`beside`], or the error from the system.
pub(crate) fn create_beside(
    path: &Path,
    options: &mut OpenOptions,
) -> io::Result<(File, NameGuard)> {
    let name = beside(path)?;
    let file = options.create_new(true).open(&name)?;
    Ok((file, NameGuard::of(name)))
}

/// Returns the folder of a file.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Makes the names in the folder of `path` durable.
///
/// # Errors
/// The error from the system.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// Returns an unused temporary path in the folder of `path`. The length of the file's name does not
/// depend on `path`, so a name that is as long as possible is no problem; the whole path may still
/// be too long.
///
/// # Errors
/// If the host has no entropy yet.
pub(crate) fn beside(path: &Path) -> io::Result<PathBuf> {
    let mut number = [0; 8];
    file::fill_random(&mut number)?;
    let name = format!(".lighter-{:016x}.partial", u64::from_ne_bytes(number));
    Ok(folder_of(path).join(name))
}

/// A file's name, which is removed on drop unless it is kept.
#[derive(Debug)]
pub(crate) struct NameGuard {
    path: PathBuf,
    kept: bool,
}

impl NameGuard {
    /// Takes over a name that a file already has.
    fn of(path: PathBuf) -> Self {
        Self { path, kept: false }
    }

    /// Gives `file` the name `path`, which must be unused.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is in use; otherwise the error from the system.
    pub(crate) fn link(file: &File, path: PathBuf) -> io::Result<Self> {
        linkat(AT_FDCWD, &link_to(file), AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW)?;
        Ok(Self::of(path))
    }

    /// Gives the name `path`, which must be unused, to an empty file that is to be replaced.
    ///
    /// # Errors
    /// As [`NameGuard::link`].
    pub(crate) fn reserve(path: PathBuf) -> io::Result<Self> {
        OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self::of(path))
    }

    /// Renames the file to `path`, replacing a file that is there, and keeps that name. This cannot
    /// be undone.
    ///
    /// # Errors
    /// The error from the system; the file then still has its old name.
    pub(crate) fn replace(&mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.kept = true;
        Ok(())
    }

    /// Leaves the name in place.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for NameGuard {
    fn drop(&mut self) {
        if !self.kept {
            // A file that cannot be removed stays; there is nothing more to do.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_not_kept_is_free_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        let make = || create(folder.path(), OpenOptions::new().write(true)).unwrap();
        let name = NameGuard::link(&make(), path.clone()).unwrap();
        let second = NameGuard::link(&make(), path.clone()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AlreadyExists);
        assert!(path.exists());
        drop(name);
        assert!(!path.exists());
        NameGuard::link(&make(), path.clone()).unwrap().keep();
        let mut other = NameGuard::link(&make(), beside(&path).unwrap()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        other.replace(&path).unwrap();
        drop(other);
        assert!(path.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
