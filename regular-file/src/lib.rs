//! Opens, reads and replaces regular files safely.
//!
//! Certificates, records and guest definitions are small files in folders that other programs write
//! to as well. In such a place, opening a named pipe blocks forever, a folder opens and fails later
//! with an obscure error, and a huge file fills memory. [`open`] and [`read`] refuse all of these
//! immediately, with a clear message. [`replace`] writes such a file atomically, and a [`log::Log`]
//! is appended to line by line. [`opened`] finds, opens and compares files that are open already.
//! This crate depends on no other crate of the project; every crate that reads files which another
//! program may have put there uses it.

pub mod log;
pub mod opened;

use std::fs::{self, File, FileType, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The extension of a file that is being written before it replaces another. Readers ignore it.
pub const UNFINISHED: &str = "new";

/// Opens the regular file at `path` with `options`, without ever blocking on another process.
///
/// # Errors
/// The system's error, or [`ErrorKind::InvalidInput`] if the path is not a regular file.
pub fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let opened = options.custom_flags(libc::O_NONBLOCK).open(path);
    let file = opened.map_err(|error| match error.raw_os_error() {
        // open(2) returns this for a socket, and for a pipe without a reader.
        Some(libc::ENXIO) => refusal("a socket or a pipe"),
        _ => error,
    })?;
    let kind = file.metadata()?.file_type();
    if kind.is_file() { Ok(file) } else { Err(refusal(name(kind))) }
}

/// Opens the regular file at `path` for reading, where an untrusted program has chosen the path.
/// Never opens anything but a regular file: opening some devices has side effects (a watchdog is
/// armed). Does not wait for a lease that the other program holds on the file.
///
/// # Errors
/// As [`open`].
pub fn open_untrusted(path: &Path) -> io::Result<File> {
    Found::at(path)?.open()
}

/// A regular file that was found and is not open yet. Whatever its path leads to meanwhile, it
/// stays the same file.
#[derive(Debug)]
pub struct Found(File);

impl Found {
    /// Finds the regular file at `path`.
    ///
    /// # Errors
    /// As [`open`].
    pub fn at(path: &Path) -> io::Result<Self> {
        let found = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path)?;
        let kind = found.metadata()?.file_type();
        if kind.is_file() { Ok(Self(found)) } else { Err(refusal(name(kind))) }
    }

    /// Returns a descriptor of the file, with which its content cannot be read (`O_PATH`).
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0
    }

    /// Opens the file for reading, as [`open_untrusted`] does.
    ///
    /// # Errors
    /// The system's error.
    pub fn open(&self) -> io::Result<File> {
        opened::open_again(&self.0, 0)
    }
}

/// Reads the whole content of the regular file at `path`, which may have `bytes_max` bytes at most.
///
/// # Errors
/// As [`open`], and [`ErrorKind::FileTooLarge`] if the file is longer.
pub fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    read_opened(&mut open(path, OpenOptions::new().read(true))?, bytes_max)
}

/// Reads a text file, like [`read`].
///
/// # Errors
/// As [`read`], and [`ErrorKind::InvalidData`] if the file is not valid UTF-8.
pub fn read_text(path: &Path, bytes_max: u64) -> io::Result<String> {
    let text = String::from_utf8(read(path, bytes_max)?);
    text.map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is not valid UTF-8"))
}

/// Reads the rest of an open file, which may have `bytes_max` bytes at most.
///
/// # Errors
/// The system's error, and [`ErrorKind::FileTooLarge`] if there is more.
pub fn read_opened(file: &mut File, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        let text = format!("it is too large: more than {bytes_max} bytes");
        return Err(io::Error::new(ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// Replaces the file at `path` by one that only this user can read and write. A reader finds the
/// old content or the new one, even after a crash of the host. The content is on disk when this
/// returns.
///
/// # Errors
/// The system's error. The old content is then still in place, unless only the flush of the folder
/// failed: then the new content is in place, and a crash of the host may bring the old one back.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_after(path, bytes, File::sync_all)?;
    sync_folder_of(path)
}

/// Like [`replace`], without waiting for the disk: for content that is of no use after a crash of
/// the host.
///
/// # Errors
/// The system's error; the old content is then still in place.
pub fn replace_unflushed(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_after(path, bytes, |_| Ok(())).map(drop)
}

/// Waits until the directory entries in the folder of `path` are on disk.
///
/// # Errors
/// The system's error.
pub fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Creates the folder at `path`, whose parent must exist, unless it exists already. It is on disk
/// when this returns.
///
/// # Errors
/// The system's error, and [`ErrorKind::NotADirectory`] if there is anything else at this path.
/// That includes a link to a folder: code that lists the parent does not count a link as a folder.
pub fn create_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
        Err(_) if !path.symlink_metadata()?.is_dir() => {
            let what = "it is a file or a link, not a folder";
            return Err(io::Error::new(ErrorKind::NotADirectory, what));
        }
        // The process that created it may have ended before it was on disk.
        Ok(()) | Err(_) => {}
    }
    sync_folder_of(path)
}

/// Writes `bytes` to a temporary name, and moves the file into place once `flush` has succeeded.
/// Returns the written file.
fn replace_after(
    path: &Path,
    bytes: &[u8],
    flush: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<File> {
    let beside = beside(path);
    // A link at this name, in a folder that others may write, must not redirect the write.
    if beside.symlink_metadata().is_ok_and(|found| found.is_symlink()) {
        fs::remove_file(&beside)?;
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = open(&beside, &mut options)?;
    let written = file.write_all(bytes).and_then(|()| flush(&file));
    let in_place = written.and_then(|()| fs::rename(&beside, path));
    in_place.map(|()| file).inspect_err(|_| {
        // The rest of the file is useless, and takes space on a disk that may be full.
        let _removed = fs::remove_file(&beside);
    })
}

/// Returns the name under which a file is written before it replaces `path`.
fn beside(path: &Path) -> PathBuf {
    path.with_added_extension(UNFINISHED)
}

fn refusal(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, format!("it is {what}, not a file"))
}

fn name(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creates a named pipe; with nix or libc this would take more code.
    fn pipe(path: &Path) {
        let made = std::process::Command::new("mkfifo").arg(path).status().unwrap();
        assert!(made.success());
    }

    #[test]
    fn what_is_no_file_is_named_and_never_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        pipe(&fifo);
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (path, what) in [
            (fifo.as_path(), "it is a pipe, not a file"),
            (folder.path(), "it is a folder, not a file"),
            (&socket, "it is a socket or a pipe, not a file"),
            (Path::new("/dev/zero"), "it is a device, not a file"),
        ] {
            assert_eq!(read(path, 10).unwrap_err().to_string(), what, "{}", path.display());
        }
        // Opening either would fail with another error, so neither was opened.
        for (path, what) in [
            (&*socket, "it is a socket, not a file"),
            (Path::new("/dev/tty"), "it is a device, not a file"),
        ] {
            assert_eq!(open_untrusted(path).unwrap_err().to_string(), what);
        }
        let both = open(&fifo, OpenOptions::new().read(true).write(true)).unwrap_err();
        assert_eq!(both.kind(), ErrorKind::InvalidInput);
        let missing = read(&folder.path().join("missing"), 10).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    }

    #[test]
    fn the_file_that_is_opened_is_the_one_that_was_found() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["file", "other"].map(|name| folder.path().join(name));
        fs::write(&path, "found").unwrap();
        fs::write(&other, "other").unwrap();
        let found = Found::at(&path).unwrap();
        assert!(read_opened(&mut found.file().try_clone().unwrap(), 10).is_err(), "not open yet");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(&other, &path).unwrap();
        assert_eq!(read_opened(&mut found.open().unwrap(), 10).unwrap(), b"found");
        assert_eq!(read_opened(&mut open_untrusted(&path).unwrap(), 10).unwrap(), b"other");
    }

    #[test]
    fn a_file_is_read_up_to_its_limit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "0123456789").unwrap();
        assert_eq!(read(&path, 10).unwrap(), b"0123456789");
        assert_eq!(read_text(&path, 10).unwrap(), "0123456789");
        assert_eq!(read_opened(&mut open_untrusted(&path).unwrap(), 10).unwrap(), b"0123456789");
        assert_eq!(read(&path, 9).unwrap_err().kind(), ErrorKind::FileTooLarge);
        std::fs::write(&path, [0xff]).unwrap();
        assert_eq!(read_text(&path, 10).unwrap_err().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_else_is_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace(&path, b"a long first text").unwrap();
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        replace_unflushed(&path, b"newer").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"newer");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let taken = folder.path().join("taken");
        fs::create_dir_all(taken.join("by a folder")).unwrap();
        assert!(replace(&taken, b"new").is_err() && replace_unflushed(&taken, b"new").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "nothing half done is left");
        pipe(&folder.path().join("other.new"));
        assert!(replace(&folder.path().join("other"), b"").is_err(), "not into a pipe");
    }

    #[test]
    fn a_folder_is_made_once_and_never_through_a_link() {
        let parent = tempfile::tempdir().unwrap();
        let [folder, link, file] = ["folder", "link", "file"].map(|name| parent.path().join(name));
        create_folder(&folder).unwrap();
        fs::write(folder.join("kept"), "").unwrap();
        create_folder(&folder).unwrap();
        assert!(folder.join("kept").exists());
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        fs::write(&file, "").unwrap();
        for other in [link, file] {
            assert_eq!(create_folder(&other).unwrap_err().kind(), ErrorKind::NotADirectory);
        }
        assert_eq!(
            create_folder(&parent.path().join("no/folder")).unwrap_err().kind(),
            ErrorKind::NotFound
        );
    }
}
