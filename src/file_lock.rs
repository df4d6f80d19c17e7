//! File locks that end with their process: open-file-description locks, so that a crash frees them
//! and a check does not take them.
//!
//! A process that owns the locked resource locks all bytes of the file. A process that only cleans
//! up after a dead one locks the first byte: this excludes the others, and tells them that the lock
//! will soon be free.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use regular_file::opened::is_same;

/// A lock that this process holds until it drops the lock or exits.
#[derive(Debug)]
pub(crate) struct FileLock {
    /// The open file that holds the lock. The lock belongs to it, so threads do not matter, nor
    /// children that did not inherit it.
    file: File,
}

impl FileLock {
    /// Takes the lock at `path`, creating the file; `None` if a live process holds it.
    ///
    /// # Errors
    /// If the file cannot be opened, or the file system has no locks.
    pub(crate) fn try_acquire(path: &Path) -> io::Result<Option<Self>> {
        Self::try_lock(path, &all_bytes())
    }

    /// Creates the file at `path` with the lock held from the beginning, so that no other process
    /// finds it unlocked; `None` if there is a file. It is prepared at `place`, a path on the same
    /// file system that only this process uses.
    ///
    /// # Errors
    /// If a file cannot be created or linked, or the file system has no locks.
    pub(crate) fn create(path: &Path, place: &Path) -> io::Result<Option<Self>> {
        let Some(lock) = Self::try_acquire(place)? else { return Ok(None) };
        let linked = fs::hard_link(place, path);
        fs::remove_file(place)?;
        match linked {
            Ok(()) => Ok(Some(lock)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes the lock at `path` to clean up after a dead process; `None` if another process holds
    /// it. Meanwhile [`Self::is_held`] returns false.
    ///
    /// # Errors
    /// Like [`Self::try_acquire`].
    pub(crate) fn try_acquire_to_remove(path: &Path) -> io::Result<Option<Self>> {
        Self::try_lock(path, &first_byte())
    }

    fn try_lock(path: &Path, lock: &libc::flock) -> io::Result<Option<Self>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)?;
        match fcntl(&file, FcntlArg::F_OFD_SETLK(lock)) {
            Ok(_) => Ok(Some(Self { file })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Whether `path` still names the locked file: false if another process has removed it since.
    pub(crate) fn is_at(&self, path: &Path) -> bool {
        match (self.file.metadata(), fs::metadata(path)) {
            (Ok(held), Ok(there)) => is_same(&held, &there),
            _ => false,
        }
    }

    /// Whether a live process holds the lock at `path`, without taking it. Returns true if that
    /// cannot be determined, e.g. without a free file descriptor: treating a live process as dead
    /// does harm, checking again later does not.
    pub(crate) fn is_held(path: &Path) -> bool {
        // Opened for reading: the file system may have become read-only.
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) => {
                return !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                );
            }
        };
        let mut lock = all_bytes();
        match fcntl(&file, FcntlArg::F_OFD_GETLK(&mut lock)) {
            Ok(_) => i32::from(lock.l_type) != libc::F_UNLCK && lock.l_len != first_byte().l_len,
            Err(_) => true,
        }
    }

    /// Whether process `pid` holds the lock at `path`. Such a lock belongs to an open file rather
    /// than to a process, so its holder is the process that has the file open with the lock on it
    /// (proc_pid_fdinfo(5)).
    ///
    /// # Errors
    /// If there is no such file or process, or the process is another user's.
    pub(crate) fn is_held_by(path: &Path, pid: u32) -> io::Result<bool> {
        let there = fs::metadata(path)?;
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let number = entry?.file_name().display().to_string();
            // A descriptor that has been closed since does not hold the lock.
            let is_it = fs::metadata(format!("/proc/{pid}/fd/{number}"))
                .is_ok_and(|open| is_same(&open, &there));
            let says_locked = || {
                fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}"))
                    .is_ok_and(|info| info.contains("OFDLCK"))
            };
            if is_it && says_locked() {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// An exclusive lock on the first byte.
fn first_byte() -> libc::flock {
    libc::flock { l_len: 1, ..all_bytes() }
}

/// An exclusive lock on every byte.
fn all_bytes() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_exclusive_seen_by_others_and_ends_with_its_holder() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert!(!FileLock::is_held(&path));

        let lock = FileLock::try_acquire(&path).unwrap().unwrap();
        assert!(FileLock::is_held(&path));
        assert!(FileLock::try_acquire(&path).unwrap().is_none());

        drop(lock);
        assert!(!FileLock::is_held(&path));
        assert!(FileLock::try_acquire(&path).unwrap().is_some());
    }

    #[test]
    fn a_lock_file_that_is_created_is_locked_before_it_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let (path, place) = (folder.path().join("lock"), folder.path().join("new"));
        let lock = FileLock::create(&path, &place).unwrap().unwrap();
        assert!(FileLock::is_held(&path) && lock.is_at(&path) && !place.exists());
        assert!(FileLock::create(&path, &place).unwrap().is_none(), "there is one");
        assert!(FileLock::is_held(&path) && !place.exists());
        let elsewhere = folder.path().join("gone").join("lock");
        let error = FileLock::create(&elsewhere, &place).unwrap_err();
        assert!(error.kind() == io::ErrorKind::NotFound && !place.exists());
    }

    #[test]
    fn a_cleanup_holds_the_lock_exclusively_and_does_not_own_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let removing = FileLock::try_acquire_to_remove(&path).unwrap().unwrap();
        assert!(FileLock::try_acquire_to_remove(&path).unwrap().is_none());
        assert!(FileLock::try_acquire(&path).unwrap().is_none());
        assert!(!FileLock::is_held(&path));
        drop(removing);
        let _owning = FileLock::try_acquire(&path).unwrap().unwrap();
        assert!(FileLock::try_acquire_to_remove(&path).unwrap().is_none());
    }

    #[test]
    fn the_lock_holder_is_distinguished_from_a_process_that_only_opened_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let own = std::process::id();
        assert!(FileLock::is_held_by(&path, own).is_err(), "no such file");
        let _looking = File::create(&path).unwrap();
        assert!(!FileLock::is_held_by(&path, own).unwrap());
        let _lock = FileLock::try_acquire(&path).unwrap().unwrap();
        assert!(FileLock::is_held_by(&path, own).unwrap());
        assert!(!FileLock::is_held_by(&path, std::os::unix::process::parent_id()).unwrap());
    }

    #[test]
    fn a_removed_lock_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let lock = FileLock::try_acquire(&path).unwrap().unwrap();
        assert!(lock.is_at(&path));
        std::fs::remove_file(&path).unwrap();
        assert!(!lock.is_at(&path));
        let other = FileLock::try_acquire(&path).unwrap().unwrap();
        assert!(other.is_at(&path) && !lock.is_at(&path));
    }
}
