//! A file that gets its name only when it is complete, so that nothing is left of it if the process
//! that writes it dies.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::format::{MAGIC, TEMPLATE_MAGIC};
use crate::unnamed_file::{self, NameGuard};

/// Mode of the file: a guest's memory holds its secrets.
const MODE: u32 = 0o600;

/// A file that is being written.
#[derive(Debug)]
pub struct PartialFile {
    file: File,
    path: PathBuf,
    /// A temporary name next to `path`: used only while an old file is replaced, or from the start
    /// where the file system does not support files without a name.
    beside: Option<NameGuard>,
}

impl PartialFile {
    /// Creates a file that will be published at `path`.
    ///
    /// # Errors
    /// If the file system refuses, or the name belongs to something other than a saved guest, a
    /// template or an empty file.
    pub fn create(path: &Path) -> io::Result<Self> {
        path.file_name().ok_or(ErrorKind::InvalidFilename)?;
        may_be_replaced(path)?;
        match unnamed(path) {
            Ok(file) => Ok(Self { file, path: path.to_path_buf(), beside: None }),
            Err(_) => Self::named(path),
        }
    }

    /// As [`Self::create`], for file systems where every file needs a name.
    fn named(path: &Path) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        let (file, beside) = unnamed_file::create_beside(path, options.write(true).mode(MODE))?;
        Ok(Self { file, path: path.to_path_buf(), beside: Some(beside) })
    }

    /// The file to write to.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Flushes the file to disk, runs `check`, and gives the file its name if `check` succeeds.
    ///
    /// # Errors
    /// The error of `check`, or of the file system. No file is left then, unless it had its name
    /// already and only the name could not be made durable.
    pub fn publish(mut self, check: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        self.file.sync_all()?;
        check()?;
        self.give_name()?;
        unnamed_file::sync_folder_of(&self.path)
    }

    fn give_name(&mut self) -> io::Result<()> {
        if self.beside.is_none() {
            match NameGuard::link(&self.file, self.path.clone()) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                outcome => return outcome.map(NameGuard::keep),
            }
        }
        may_be_replaced(&self.path)?;
        let mut beside = match self.beside.take() {
            Some(beside) => beside,
            None => NameGuard::link(&self.file, unnamed_file::beside(&self.path)?)?,
        };
        beside.replace(&self.path)
    }
}

/// Refuses to replace a file that we did not write: it may be a guest's disk. An empty file may be
/// replaced.
fn may_be_replaced(path: &Path) -> io::Result<()> {
    // A rename would replace a device or a pipe instead of writing to it.
    match fs::metadata(path) {
        Ok(there) if !there.is_file() => {
            return Err(io::Error::other("something that is not a file has this name"));
        }
        Ok(there) if there.len() == 0 => return Ok(()),
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let mut magic = [0; MAGIC.len()];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut magic));
    if read.is_ok() && [MAGIC, TEMPLATE_MAGIC].contains(&magic) {
        return Ok(());
    }
    let error =
        "a file that is neither a saved guest nor a template has this name, and is not replaced";
    Err(io::Error::other(error))
}

/// Creates a file in the folder of `path` that disappears with its last descriptor.
fn unnamed(path: &Path) -> io::Result<File> {
    let folder = unnamed_file::folder_of(path);
    unnamed_file::create(folder, OpenOptions::new().write(true).mode(MODE))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::io::Write;

    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    }

    /// Both kinds of file, if the file system of the temporary folder supports both.
    const KINDS: [fn(&Path) -> PartialFile; 2] =
        [|path| PartialFile::create(path).unwrap(), |path| PartialFile::named(path).unwrap()];

    #[test]
    fn a_file_without_a_name_is_not_there_before_it_is_published() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("guest");
        assert!(unnamed(&path).is_ok(), "temporary folders must know such files");
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
        let old = b"LIGHTER\nold";
        fs::write(&path, old).unwrap();
        for create in KINDS {
            let partial = create(&path);
            partial.file().write_all(b"new").unwrap();
            let refused = partial.publish(|| Err(io::Error::other("changed its mind")));
            assert_eq!(refused.unwrap_err().to_string(), "changed its mind");
            assert_eq!(fs::read(&path).unwrap(), old);
            assert_eq!(names(folder.path()), ["guest"]);

            let partial = create(&path);
            partial.file().write_all(b"new").unwrap();
            partial.publish(|| Ok(())).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new");
            assert_eq!(names(folder.path()), ["guest"]);
            fs::write(&path, old).unwrap();
        }
    }

    #[test]
    fn a_file_of_another_kind_is_not_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (path, disk) = (folder.path().join("guest"), vec![0; 4096]);
        for content in [disk.as_slice(), b"short", b"LIGHTER"] {
            let partial = PartialFile::create(&path).unwrap();
            // The file appears while the guest is written, and is there at the next attempt.
            fs::write(&path, content).unwrap();
            for error in [partial.publish(|| Ok(())), PartialFile::create(&path).map(drop)] {
                let error = error.unwrap_err().to_string();
                assert!(error.contains("neither a saved guest nor a template"), "{error}");
            }
            assert_eq!(fs::read(&path).unwrap(), content);
            assert_eq!(names(folder.path()), ["guest"]);
            fs::remove_file(&path).unwrap();
        }
        fs::write(&path, b"LIGHTPL\n and more").unwrap();
        PartialFile::create(&path).unwrap().publish(|| Ok(())).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"", "what is empty is replaced, too");
        PartialFile::create(&path).unwrap().publish(|| Ok(())).unwrap();
    }
}
