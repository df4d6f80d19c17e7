//! A file that has no name before it is complete, so that nothing is left of it whatever happens to the process that writes it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

/// Mode of the file: a guest's memory holds its secrets.
const MODE: u32 = 0o600;

/// A file that is being written.
#[derive(Debug)]
pub struct PartialFile {
    file: File,
    path: PathBuf,
    /// A name beside `path`, for the moment in which an old file is replaced.
    beside: PathBuf,
    /// Whether the file has that name, which is removed then: at once where the file system knows no files without a name.
    is_beside: bool,
}

impl PartialFile {
    /// A file that is to be at `path`.
    ///
    /// # Errors
    /// The file system refuses, or something that is no file has the name.
    pub fn create(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(ErrorKind::InvalidFilename)?;
        // Moving the file into place would replace a device or a pipe, not write to it.
        if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
            return Err(io::Error::other("something that is no file has this name"));
        }
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.partial", std::process::id()));
        let beside = path.with_file_name(hidden);
        match unnamed(folder(path)) {
            Ok(file) => Ok(Self { file, path: path.to_path_buf(), beside, is_beside: false }),
            Err(_) => Self::named(path, beside),
        }
    }

    /// As [`Self::create`], where every file needs a name.
    fn named(path: &Path, beside: PathBuf) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(MODE).open(&beside)?;
        Ok(Self { file, path: path.to_path_buf(), beside, is_beside: true })
    }

    /// What is written to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Brings the file to disk and gives it its name, unless `check`, asked in between, says no.
    ///
    /// # Errors
    /// What `check` says; or the file system refuses. Nothing is left then.
    pub fn publish(mut self, check: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.file.sync_all()?;
        check()?;
        self.give_name()?;
        File::open(folder(&self.path))?.sync_all()
    }

    fn give_name(&mut self) -> io::Result<()> {
        if !self.is_beside {
            match self.link(&self.path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                outcome => return outcome,
            }
            // Of a process with the same id that was killed here.
            let _none_there = fs::remove_file(&self.beside);
            self.link(&self.beside)?;
            self.is_beside = true;
        }
        fs::rename(&self.beside, &self.path)?;
        self.is_beside = false;
        Ok(())
    }

    fn link(&self, path: &Path) -> io::Result<()> {
        let descriptor = format!("/proc/self/fd/{}", self.file.as_raw_fd());
        let follow = AtFlags::AT_SYMLINK_FOLLOW;
        Ok(linkat(AT_FDCWD, descriptor.as_str(), AT_FDCWD, path, follow)?)
    }
}

impl Drop for PartialFile {
    fn drop(&mut self) {
        if self.is_beside {
            // Nothing more can be done about a file that cannot be removed.
            let _ = fs::remove_file(&self.beside);
        }
    }
}

/// The folder that a file is in.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    }
}

/// A file in `folder` that goes with its last descriptor (`O_TMPFILE` of open(2)).
fn unnamed(folder: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_TMPFILE).mode(MODE).open(folder)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    /// Both kinds of file, where the file system of temporary folders has both.
    const KINDS: [fn(&Path) -> PartialFile; 2] = [
        |path| PartialFile::create(path).unwrap(),
        |path| PartialFile::named(path, path.with_file_name(".guest.partial")).unwrap(),
    ];

    #[test]
    fn a_file_without_a_name_is_not_there_before_it_is_published() {
        let folder = tempfile::tempdir().unwrap();
        assert!(unnamed(folder.path()).is_ok(), "temporary folders must know such files");
        let path = folder.path().join("guest");
        let partial = PartialFile::create(&path).unwrap();
        partial.file().write_all(b"half").unwrap();
        assert_eq!(names(folder.path()), [""; 0]);

        partial.publish(|| Ok(())).unwrap();

        assert_eq!(names(folder.path()), ["guest"]);
        assert_eq!(fs::read(path).unwrap(), b"half");
    }

    #[test]
    fn an_old_file_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest");
        fs::write(&path, "old").unwrap();
        for create in KINDS {
            let partial = create(&path);
            partial.file().write_all(b"new").unwrap();
            let refused = partial.publish(|| Err(io::Error::other("changed its mind")));
            assert_eq!(refused.unwrap_err().to_string(), "changed its mind");
            assert_eq!(fs::read(&path).unwrap(), b"old");
            assert_eq!(names(folder.path()), ["guest"]);

            let partial = create(&path);
            partial.file().write_all(b"new").unwrap();
            partial.publish(|| Ok(())).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new");
            assert_eq!(names(folder.path()), ["guest"]);
            fs::write(&path, "old").unwrap();
        }
    }
}
