//! What can be done with a file that is open already, wherever its name leads by now.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

/// Returns the link in proc(5) that leads to an open file.
pub fn link_to(file: &impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
}

/// Opens an open file once more for reading, with these flags of open(2) and without waiting for
/// another process.
///
/// # Errors
/// The system's error.
pub fn open_again(file: &impl AsFd, flags: i32) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(flags | libc::O_NONBLOCK).open(link_to(file))
}

/// Returns whether both describe one file of this host.
pub fn is_same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

/// Returns the path without links at which an open file is.
///
/// # Errors
/// If it is not there any more.
pub fn path_of(file: &File) -> io::Result<PathBuf> {
    let path = fs::read_link(link_to(file))?;
    if !is_same(&file.metadata()?, &fs::metadata(&path)?) {
        return Err(io::Error::new(io::ErrorKind::NotFound, "it was replaced or removed"));
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_path_at_which_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("disk");
        let file = File::create(&path).unwrap();
        assert_eq!(path_of(&file).unwrap(), path);
        let moved = folder.path().canonicalize().unwrap().join("moved");
        std::fs::rename(&path, &moved).unwrap();
        assert_eq!(path_of(&file).unwrap(), moved);
        std::fs::remove_file(&moved).unwrap();
        assert!(path_of(&file).is_err());
        assert!(path_of(&tempfile::tempfile().unwrap()).is_err());
    }

    #[test]
    fn a_file_that_is_opened_again_is_the_same_one() {
        let folder = tempfile::tempdir().unwrap();
        let [path, other] = ["file", "other"].map(|name| folder.path().join(name));
        for path in [&path, &other] {
            fs::write(path, [7; 4096]).unwrap();
        }
        let file = File::open(&path).unwrap();
        fs::rename(&other, &path).unwrap();
        let [found, there] = [file.metadata().unwrap(), path.metadata().unwrap()];
        let again = open_again(&file, libc::O_DIRECTORY | libc::O_NOFOLLOW);
        assert!(again.is_err(), "with these flags");
        let again = open_again(&file, 0).unwrap().metadata().unwrap();
        assert!(is_same(&again, &found) && !is_same(&again, &there));
    }
}
