//! Files that have no name before they are complete (`O_TMPFILE` of open(2)): the kernel forgets
//! such a file with its last descriptor, so nothing is left of it, whatever happens to the process
//! that writes it. Then it gets its name at once, by `linkat`, or takes the place of another file,
//! by `rename` from a name beside it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

use crate::sys::file;

/// Makes a file without a name in `folder`, opened as `options` say.
///
/// # Errors
/// `EOPNOTSUPP` or `EISDIR` where the file system has no such files; otherwise the system's answer.
pub(crate) fn create(folder: &Path, options: &mut OpenOptions) -> io::Result<File> {
    options.custom_flags(libc::O_TMPFILE | libc::O_CLOEXEC).open(folder)
}

/// The folder that a file is in.
pub(crate) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// Makes the names in the folder of `path` durable.
///
/// # Errors
/// The system's answer.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    File::open(folder_of(path))?.sync_all()
}

/// A name that nobody else uses, in the folder of `path` and as long whatever `path` is.
///
/// # Errors
/// The host has no entropy yet.
pub(crate) fn beside(path: &Path) -> io::Result<PathBuf> {
    let mut number = [0; 8];
    file::fill_random(&mut number)?;
    let name = format!(".lighter-{:016x}.partial", u64::from_ne_bytes(number));
    Ok(folder_of(path).join(name))
}

/// A file's name, which is taken away again unless it is kept.
#[derive(Debug)]
pub(crate) struct TakenName {
    path: PathBuf,
    kept: bool,
}

impl TakenName {
    /// The name that a file has got already.
    pub(crate) fn of(path: PathBuf) -> Self {
        Self { path, kept: false }
    }

    /// Gives `file` a name that nobody has.
    ///
    /// # Errors
    /// `AlreadyExists`; otherwise the system's answer.
    pub(crate) fn link(file: &File, path: PathBuf) -> io::Result<Self> {
        let own = format!("/proc/self/fd/{}", file.as_raw_fd());
        linkat(AT_FDCWD, own.as_str(), AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW)?;
        Ok(Self::of(path))
    }

    /// Moves the file to `path`, in the place of what is there, and keeps it there: this cannot be
    /// undone.
    ///
    /// # Errors
    /// The system's answer; the file has its old name then.
    pub(crate) fn replace(&mut self, path: &Path) -> io::Result<()> {
        fs::rename(&self.path, path)?;
        self.kept = true;
        Ok(())
    }

    /// The file keeps the name.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for TakenName {
    fn drop(&mut self) {
        if !self.kept {
            // Nothing more can be done about a file that cannot be removed.
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
        let name = TakenName::link(&make(), path.clone()).unwrap();
        let second = TakenName::link(&make(), path.clone()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AlreadyExists);
        assert!(path.exists());
        drop(name);
        assert!(!path.exists());
        TakenName::link(&make(), path.clone()).unwrap().keep();
        let mut other = TakenName::link(&make(), beside(&path).unwrap()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        other.replace(&path).unwrap();
        drop(other);
        assert!(path.exists());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
