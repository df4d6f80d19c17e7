//! Evidence that two hosts have the same disk, and not two disks with one path.
//!
//! A block device has names that are the same on every host ([`super::names`]): its WWID, its UUID
//! in the device mapper, its serial number. A file has none, so the source sets its access time to
//! a random time in the future, and the destination must find that time on its own file. This works
//! on every file system that stores access times; the old time is restored soon.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::names::{is_same_device, names_of};
use super::seal::Seal;
use crate::sys::file;

/// Maximum number of names of a device.
pub(super) const NAMES_MAX: usize = 8;
/// Longest name of a device, in bytes.
pub(super) const NAME_BYTES_MAX: usize = 256;
/// How far ahead of now an access time must be so that no read updates it (`relatime_need_update`
/// in fs/inode.c), with room.
const AHEAD: Duration = Duration::from_secs(48 * 3600);
/// An access time further ahead than this is a mark.
const MARKED_AHEAD: Duration = Duration::from_secs(24 * 3600);
/// How long to wait for the removal of another guest's mark on the same file. A mark that stays
/// longer was left by a process that was killed.
const MARK_PATIENCE: Duration = Duration::from_secs(10);
/// Interval between checks for that mark.
const MARK_INTERVAL: Duration = Duration::from_millis(50);
/// The last second that every file system can store.
const LAST_SECOND: u64 = i32::MAX as u64;

/// Evidence that both hosts have the same disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskProof {
    /// No evidence, as for a file of which no access time has been recorded.
    #[default]
    Absent,
    /// The names of a block device: the kind and the name, with a space between.
    Device(Vec<String>),
    /// The access time of a file: seconds since 1970, and nanoseconds.
    AccessTime(i64, i64),
    /// The user said so (`--unsafe`).
    Vouched,
    /// In a saved guest: what the disk looked like when it was saved.
    Sealed(Seal),
}

impl DiskProof {
    /// Returns the names of a block device; [`DiskProof::Absent`] for anything else.
    pub(super) fn of(file: &File) -> Self {
        match file.metadata() {
            Ok(found) if found.file_type().is_block_device() => {
                let names = names_of(found.rdev());
                if names.is_empty() { Self::Absent } else { Self::Device(names) }
            }
            _ => Self::Absent,
        }
    }

    /// Returns whether the number and lengths of the names, or the size of the seal, are within
    /// their bounds.
    pub(super) fn is_bounded(&self) -> bool {
        match self {
            Self::Device(names) => {
                names.len() <= NAMES_MAX && names.iter().all(|name| name.len() <= NAME_BYTES_MAX)
            }
            Self::Sealed(seal) => seal.is_bounded(),
            Self::Absent | Self::AccessTime(..) | Self::Vouched => true,
        }
    }

    /// Returns whether this is evidence of `disk`; `None` if that cannot be determined.
    ///
    /// # Errors
    /// If the disk's times cannot be read.
    pub(super) fn holds_for(&self, disk: &Disk) -> io::Result<Option<bool>> {
        let found = disk.file().metadata()?;
        Ok(match self {
            Self::Absent | Self::Sealed(_) => None,
            Self::Vouched => Some(true),
            Self::Device(known) => match Self::of(disk.file()) {
                Self::Device(names) => is_same_device(known, &names),
                _ => Some(false),
            },
            Self::AccessTime(seconds, nanoseconds) => {
                Some((found.atime(), found.atime_nsec()) == (*seconds, *nanoseconds))
            }
        })
    }
}

/// A file whose access time is evidence until this is dropped.
#[derive(Debug)]
pub struct Mark {
    file: Arc<File>,
    before: TimeSpec,
    here: (i64, i64),
}

impl Mark {
    /// Marks `file`, if it is a regular one. Waits while another guest that reads the same file has
    /// it marked.
    ///
    /// # Errors
    /// The access time cannot be set: the file belongs to another user, or its file system is
    /// read-only.
    pub(super) fn set(file: &Arc<File>) -> io::Result<Option<Self>> {
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let before = unmarked_time(file)?;
        futimens(&**file, &random_time()?, &TimeSpec::UTIME_OMIT)?;
        // Read back, because the file system may store it with less precision.
        let here = access_time(file)?;
        Ok(Some(Self { file: Arc::clone(file), before, here }))
    }

    /// Returns the evidence that the destination must find.
    pub fn proof(&self) -> DiskProof {
        DiskProof::AccessTime(self.here.0, self.here.1)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let restored = access_time(&self.file).and_then(|now| match now == self.here {
            true => Ok(futimens(&*self.file, &self.before, &TimeSpec::UTIME_OMIT)?),
            // Another guest has set its own mark since.
            false => Ok(()),
        });
        if let Err(error) = restored {
            tracing::warn!(%error, "the access time of a disk stays in the future");
        }
    }
}

fn access_time(file: &File) -> io::Result<(i64, i64)> {
    let found = file.metadata()?;
    Ok((found.atime(), found.atime_nsec()))
}

/// Returns the access time of `file` once it has no mark; the current time if a mark stays.
fn unmarked_time(file: &File) -> io::Result<TimeSpec> {
    let start = Instant::now();
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanoseconds) = access_time(file)?;
        if seconds <= (now + MARKED_AHEAD).as_secs() as i64 {
            return Ok(TimeSpec::new(seconds, nanoseconds));
        }
        if start.elapsed() > MARK_PATIENCE {
            return Ok(TimeSpec::from_duration(now));
        }
        std::thread::sleep(MARK_INTERVAL);
    }
}

/// Returns a random time in the future.
fn random_time() -> io::Result<TimeSpec> {
    let mut random = [0; 16];
    file::fill_random(&mut random)?;
    let [seconds, nanoseconds] = [&random[..8], &random[8..]]
        .map(|half| half.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte)));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = (now + AHEAD).as_secs();
    let span = LAST_SECOND.saturating_sub(first).max(1);
    Ok(TimeSpec::new((first + seconds % span) as i64, (nanoseconds % 1_000_000_000) as i64))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::super::config::Access;
    use super::*;

    fn open(path: &Path) -> Disk {
        Disk::open_present(path, Access::ReadWrite).unwrap()
    }

    /// A file of some bytes, and another one with the same content.
    fn twins() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        for path in [&one, &other] {
            fs::write(path, [7; 4096]).unwrap();
        }
        (folder, one, other)
    }

    #[test]
    fn a_marked_file_is_distinguished_from_a_copy_even_while_in_use() {
        use std::os::unix::fs::FileExt;
        let (_folder, one, other) = twins();
        let disk = open(&one);
        let mark = Mark::set(disk.store().file()).unwrap().unwrap();
        assert_eq!(mark.proof().holds_for(&open(&one)).unwrap(), Some(true));
        assert_eq!(mark.proof().holds_for(&open(&other)).unwrap(), Some(false));
        disk.file().write_all_at(&[8; 512], 0).unwrap();
        disk.file().read_exact_at(&mut [0; 512], 0).unwrap();
        assert_eq!(mark.proof().holds_for(&open(&one)).unwrap(), Some(true));
    }

    #[test]
    fn marks_differ_and_the_time_of_before_comes_back() {
        let (_folder, one, _) = twins();
        let before = fs::metadata(&one).unwrap().accessed().unwrap();
        let disk = open(&one);
        let first = Mark::set(disk.store().file()).unwrap().unwrap().proof();
        assert_eq!(fs::metadata(&one).unwrap().accessed().unwrap(), before);
        assert_eq!(first.holds_for(&disk).unwrap(), Some(false), "it is gone");
        let second = Mark::set(disk.store().file()).unwrap().unwrap().proof();
        assert_ne!(first, second);
    }

    #[test]
    fn a_missing_proof_is_none_and_the_users_confirmation_is_one() {
        let (_folder, one, _) = twins();
        let disk = open(&one);
        assert_eq!(DiskProof::Absent.holds_for(&disk).unwrap(), None);
        assert_eq!(DiskProof::Vouched.holds_for(&disk).unwrap(), Some(true));
        let device = DiskProof::Device(vec!["wwid naa.5000".to_owned()]);
        assert_eq!(device.holds_for(&disk).unwrap(), Some(false), "a file is no device");
    }

    #[test]
    fn a_second_mark_waits_for_the_first_and_one_that_stays_is_taken_over() {
        let (_folder, one, _) = twins();
        let disk = open(&one);
        let first = Mark::set(disk.store().file()).unwrap().unwrap();
        let file = Arc::clone(disk.store().file());
        let second = std::thread::spawn(move || Mark::set(&file).unwrap().unwrap());
        assert_eq!(first.proof().holds_for(&disk).unwrap(), Some(true));
        drop(first);
        let second = second.join().unwrap();
        assert_eq!(second.proof().holds_for(&disk).unwrap(), Some(true));
        // As left by a process that was killed.
        std::mem::forget(second);
        let third = Mark::set(disk.store().file()).unwrap().unwrap();
        assert_eq!(third.proof().holds_for(&disk).unwrap(), Some(true));
        drop(third);
        assert!(fs::metadata(&one).unwrap().accessed().unwrap() <= SystemTime::now());
    }

    #[test]
    fn more_names_than_there_can_be_are_out_of_bounds() {
        assert!(!DiskProof::Device(vec![String::new(); NAMES_MAX + 1]).is_bounded());
        assert!(!DiskProof::Device(vec!["x".repeat(NAME_BYTES_MAX + 1)]).is_bounded());
    }
}
