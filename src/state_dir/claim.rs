//! Taking a guest's name: at most one live process holds it, and what a dead one left is removed.

use std::fs;
use std::io;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{GuestDir, GuestIdentity, HERE, HERE_PREPARED, PASSAGE, create};
use crate::durable;
use crate::ended::Ended;
use crate::file_lock::FileLock;

/// Longest path of a Unix socket, in bytes (`sun_path` of unix(7), less its terminating zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// How long a start waits while another process removes the files of a dead one.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);

/// Pause between two checks whether they are gone.
pub(super) const REMOVAL_PAUSE: Duration = Duration::from_millis(1);

/// Files that a guest's process creates in its folder, besides the lock.
const OWN_FILES: [&str; 9] = [
    "api.sock",
    "api-ro.sock",
    "guest.json",
    "guest.json.new",
    HERE,
    HERE_PREPARED,
    "console.log",
    "console.log.old",
    "lighter.log",
];

/// What became of the process that a guest's folder is of.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    /// It lives.
    Live,
    /// There is none, or its end was recorded before.
    Gone,
    /// It died with its guest, which is recorded now.
    Lost(GuestIdentity, Ended),
}

impl GuestDir {
    /// Records the end of a process that is gone and has not done so itself, and removes its files.
    pub(crate) fn settle(&self) -> Settled {
        if self.is_live() {
            return Settled::Live;
        }
        // A folder without a lock, or a link to one elsewhere, was not created by a guest's
        // process.
        let is_link = fs::symlink_metadata(&self.path).is_ok_and(|it| it.is_symlink());
        if is_link || !self.lock_file().exists() {
            return Settled::Gone;
        }
        if let Ok(Some(lock)) = FileLock::try_acquire_to_remove(&self.lock_file())
            && lock.is_at(&self.lock_file())
        {
            let lost = self.keep_evidence();
            drop(GuestClaim { dir: self.clone(), _lock: lock });
            tracing::info!(guest = %self.name, "removed the folder of a guest whose process is gone");
            return lost.map_or(Settled::Gone, |(process, ended)| Settled::Lost(process, ended));
        }
        Settled::Gone
    }

    /// Takes the name for this process, and removes files that a dead one left in the folder.
    ///
    /// # Errors
    /// If a live process has the name, the path is too long for a socket, or the folder cannot be
    /// created or locked.
    pub(crate) fn claim(&self) -> Result<GuestClaim> {
        // The longer of the two socket paths.
        let socket = self.readonly_socket();
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            bail!(
                "{} is too long for a Unix socket: choose a shorter --state-dir",
                socket.display()
            );
        }
        // Another process may be removing a dead one's folder right now, or may have removed this
        // one just before this process locked it. Retry then, for a limited time.
        let begun = Instant::now();
        while begun.elapsed() < REMOVAL_PATIENCE {
            match create(&self.path, PASSAGE) {
                // It was there, and is removed by such a process.
                Err(error) if is_taken(&error) && self.is_gone() => continue,
                created => created?,
            }
            let lock = match self.try_lock() {
                Ok(Some(lock)) => lock,
                Ok(None) if self.is_live() => {
                    bail!("{} is already running on this host", self.name)
                }
                Ok(None) => {
                    thread::sleep(REMOVAL_PAUSE);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot lock {}", self.lock_file().display()));
                }
            };
            if lock.is_at(&self.lock_file()) {
                self.keep_evidence();
                self.remove_own_files();
                return Ok(GuestClaim { dir: self.clone(), _lock: lock });
            }
        }
        bail!("{} is being removed by another process again and again", self.path.display())
    }

    /// Locks the name: with a new lock file, or the one that a dead process left; `None` if another
    /// process holds it.
    fn try_lock(&self) -> io::Result<Option<FileLock>> {
        // Not in the folder, which others may remove as long as it has no lock. No name of a guest
        // begins with a dot.
        let prepared = format!(".{}.{}.lock", self.name, std::process::id());
        match FileLock::create(&self.lock_file(), &self.path.with_file_name(prepared))? {
            Some(lock) => Ok(Some(lock)),
            None => FileLock::try_acquire(&self.lock_file()),
        }
    }

    /// Whether there is nothing at the path, or a folder that has appeared since.
    fn is_gone(&self) -> bool {
        let is_there = fs::symlink_metadata(&self.path);
        is_there.map_or_else(|error| error.kind() == io::ErrorKind::NotFound, |it| it.is_dir())
    }

    /// Removes the files that a guest's process creates, except the lock. Any other file is a
    /// user's and stays.
    fn remove_own_files(&self) {
        let inside = OWN_FILES.map(|name| self.path.join(name));
        for file in inside.iter().chain([&self.vsock]) {
            if let Err(error) = durable::remove_if_there(file) {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "a file of a guest that is gone is left"
                );
            }
        }
    }
}

/// A name that this process holds. Dropping it releases the name and removes the folder.
#[derive(Debug)]
pub(crate) struct GuestClaim {
    pub(super) dir: GuestDir,
    pub(super) _lock: FileLock,
}

impl GuestClaim {
    /// Returns the folder that belongs to the name.
    pub(crate) fn dir(&self) -> &GuestDir {
        &self.dir
    }
}

impl Drop for GuestClaim {
    fn drop(&mut self) {
        self.dir.remove_own_files();
        // The lock is removed last, while it is still held: a process that opened it before sees
        // that it is gone and tries again.
        let removed =
            fs::remove_file(self.dir.lock_file()).and_then(|()| fs::remove_dir(&self.dir.path));
        if let Err(error) = removed {
            tracing::warn!(folder = %self.dir.path.display(), %error, "cannot remove the guest's folder");
        }
    }
}

/// Whether a folder could not be created because something had its name.
fn is_taken(error: &anyhow::Error) -> bool {
    let error: Option<&io::Error> = error.downcast_ref();
    error.is_some_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
}
