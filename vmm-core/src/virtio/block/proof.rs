//! Evidence that two hosts have the same disk, and not two disks with one path.
//!
//! A block device has names that are the same on every host: its WWID, its UUID in the device mapper, its serial number. A file
//! has none, so the source sets its access time to a random time in the future, and the destination must find that time on its
//! own file. This works on every file system that stores access times; the old time is restored soon.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::stat::{futimens, major, minor};
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use super::seal::Seal;
use crate::raw_io;

/// The file that identifies this boot of the host (proc(5)).
pub(super) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
/// Maximum number of names of a device.
const NAMES_MAX: usize = 8;
/// Longest name of a device, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// How far ahead of now an access time must be so that no read updates it (`relatime_need_update` in fs/inode.c), with room.
const AHEAD: Duration = Duration::from_secs(48 * 3600);
/// An access time that is further ahead than this is a mark.
const MARKED_AHEAD: Duration = Duration::from_secs(24 * 3600);
/// How long another guest's mark on the same file is waited for. One that stays longer was left by a process that was killed.
const MARK_PATIENCE: Duration = Duration::from_secs(10);
/// How often that is looked at.
const MARK_INTERVAL: Duration = Duration::from_millis(50);
/// The last second that every file system can store.
const LAST_SECOND: u64 = i32::MAX as u64;

/// Kinds of names, the most exact one first: where two hosts know several, the first that both know decides. A serial number
/// may be a controller's, or whatever its user typed.
const KINDS: [&str; 6] = ["boot", "wwid", "device/wwid", "dm/uuid", "device/serial", "serial"];

/// Evidence that both hosts have the same disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskProof {
    /// No evidence.
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
    /// The names of a block device; [`DiskProof::Absent`] for anything else.
    pub(super) fn of(file: &File) -> Self {
        match file.metadata() {
            Ok(found) if found.file_type().is_block_device() => {
                let names = names(found.rdev());
                if names.is_empty() { Self::Absent } else { Self::Device(names) }
            }
            _ => Self::Absent,
        }
    }

    /// Whether its bounds are kept.
    pub(super) fn is_bounded(&self) -> bool {
        match self {
            Self::Device(names) => {
                names.len() <= NAMES_MAX && names.iter().all(|name| name.len() <= NAME_BYTES_MAX)
            }
            Self::Sealed(seal) => seal.is_bounded(),
            Self::Absent | Self::AccessTime(..) | Self::Vouched => true,
        }
    }

    /// Whether `disk` is the one that this was said of; `None` when there is no telling.
    ///
    /// # Errors
    /// The disk's times cannot be read.
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

/// Whether a device is the same by the names that two hosts know it by; `None` when they have no kind of name in common.
fn is_same_device(known: &[String], here: &[String]) -> Option<bool> {
    let of_kind = |names: &[String], kind: &str| {
        let name = |name: &String| Some(name.strip_prefix(kind)?.strip_prefix(' ')?.to_owned());
        names.iter().find_map(name)
    };
    KINDS.iter().find_map(|kind| {
        let (known, here) = (of_kind(known, kind)?, of_kind(here, kind)?);
        // The number of a device means nothing to another kernel, nor after a reboot.
        let is_of_another_boot =
            *kind == "boot" && known.split(' ').next() != here.split(' ').next();
        (!is_of_another_boot).then(|| known == here)
    })
}

/// A file whose access time is evidence until this is dropped.
#[derive(Debug)]
pub struct Mark {
    file: Arc<File>,
    before: TimeSpec,
    here: (i64, i64),
}

impl Mark {
    /// Marks `file`, if it is a regular one. Waits while another guest that reads the same file has it marked.
    ///
    /// # Errors
    /// The access time cannot be set: the file belongs to another user, or its file system is read-only.
    pub(super) fn set(file: &Arc<File>) -> io::Result<Option<Self>> {
        if !file.metadata()?.is_file() {
            return Ok(None);
        }
        let before = unmarked_time(file)?;
        futimens(&**file, &random_time()?, &TimeSpec::UTIME_OMIT)?;
        // As the file system stores it, which may be less exact.
        let here = access_time(file)?;
        Ok(Some(Self { file: Arc::clone(file), before, here }))
    }

    /// What the destination must find.
    pub fn proof(&self) -> DiskProof {
        DiskProof::AccessTime(self.here.0, self.here.1)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        let restored = access_time(&self.file).and_then(|now| match now == self.here {
            true => Ok(futimens(&*self.file, &self.before, &TimeSpec::UTIME_OMIT)?),
            // Another guest's mark by now.
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

/// The access time of `file` when it has no mark; now, when it has one that stays.
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

/// A random time in the future.
fn random_time() -> io::Result<TimeSpec> {
    let mut random = [0; 16];
    raw_io::fill_random(&mut random)?;
    let [seconds, nanoseconds] = [&random[..8], &random[8..]]
        .map(|half| half.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte)));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = (now + AHEAD).as_secs();
    let span = LAST_SECOND.saturating_sub(first).max(1);
    Ok(TimeSpec::new((first + seconds % span) as i64, (nanoseconds % 1_000_000_000) as i64))
}

/// The names of a block device, from sysfs; those of a partition include its first sector.
fn names(device: u64) -> Vec<String> {
    let Ok(place) = place_in_sysfs(device).canonicalize() else { return Vec::new() };
    let disk = disk_at(&place);
    let mut names = names_at(disk);
    if disk != place {
        // One whose start is not known is not known itself.
        let start = read(&place.join("start"));
        names = start.map_or_else(Vec::new, |start| {
            names.iter().map(|name| format!("{name} from sector {start}")).collect()
        });
    }
    // The same kernel: two nodes on one host.
    if let Some(boot) = read(Path::new(BOOT_ID)) {
        names.push(format!("boot {boot} {}:{}", major(device), minor(device)));
    }
    names
}

/// The folder of a block device in sysfs.
pub(super) fn place_in_sysfs(device: u64) -> PathBuf {
    PathBuf::from(format!("/sys/dev/block/{}:{}", major(device), minor(device)))
}

/// The folder of the disk whose folder, or that of a partition of it, is `place`.
pub(super) fn disk_at(place: &Path) -> &Path {
    match place.join("partition").exists() {
        true => place.parent().unwrap_or(place),
        false => place,
    }
}

fn names_at(place: &Path) -> Vec<String> {
    let named = |file: &&str| Some(format!("{file} {}", read(&place.join(file))?));
    KINDS.iter().filter_map(named).collect()
}

/// The line in a file of sysfs, if there is one that says something.
fn read(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.trim();
    (!line.is_empty() && line.len() <= NAME_BYTES_MAX / 2).then(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::super::config::Access;
    use super::*;

    fn open(path: &Path) -> Disk {
        Disk::open_present(path, Access::ReadWrite).unwrap()
    }

    /// A file of some bytes, and one like it.
    fn twins() -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
        for path in [&one, &other] {
            fs::write(path, [7; 4096]).unwrap();
        }
        (folder, one, other)
    }

    #[test]
    fn a_marked_file_is_told_from_its_like_also_while_it_is_read_and_written() {
        use std::os::unix::fs::FileExt;
        let (_folder, one, other) = twins();
        let disk = open(&one);
        let mark = Mark::set(disk.shared_file()).unwrap().unwrap();
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
        let first = Mark::set(disk.shared_file()).unwrap().unwrap().proof();
        assert_eq!(fs::metadata(&one).unwrap().accessed().unwrap(), before);
        assert_eq!(first.holds_for(&disk).unwrap(), Some(false), "it is gone");
        let second = Mark::set(disk.shared_file()).unwrap().unwrap().proof();
        assert_ne!(first, second);
    }

    #[test]
    fn a_proof_that_is_absent_is_none_and_the_users_word_is_one() {
        let (_folder, one, _) = twins();
        let disk = open(&one);
        assert_eq!(DiskProof::Absent.holds_for(&disk).unwrap(), None);
        assert_eq!(DiskProof::Vouched.holds_for(&disk).unwrap(), Some(true));
        let device = DiskProof::Device(vec!["wwid naa.5000".to_owned()]);
        assert_eq!(device.holds_for(&disk).unwrap(), Some(false), "a file is no device");
    }

    #[test]
    fn the_most_exact_name_that_both_hosts_know_decides() {
        let same = |known: &[&str], here: &[&str]| {
            let [known, here] = [known, here]
                .map(|names| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
            is_same_device(&known, &here)
        };
        assert_eq!(same(&["wwid a", "serial s"], &["serial s", "wwid b"]), Some(false));
        assert_eq!(same(&["wwid a", "serial s"], &["serial t", "wwid a"]), Some(true));
        assert_eq!(same(&["serial s"], &["wwid a", "serial s"]), Some(true));
        assert_eq!(same(&["serial s"], &["wwid a"]), None);
        assert_eq!(same(&["boot 1 7:0"], &["boot 1 7:0"]), Some(true), "two nodes on one host");
        assert_eq!(same(&["boot 1 7:0", "wwid a"], &["boot 1 7:1", "wwid a"]), Some(false));
        assert_eq!(same(&["boot 1 7:0"], &["boot 2 7:0"]), None, "after a reboot");
        assert_eq!(same(&["boot 1 7:0", "wwid a"], &["boot 2 7:1", "wwid a"]), Some(true));
    }

    #[test]
    fn a_second_mark_waits_for_the_first_and_one_that_stays_is_taken_over() {
        let (_folder, one, _) = twins();
        let disk = open(&one);
        let first = Mark::set(disk.shared_file()).unwrap().unwrap();
        let file = Arc::clone(disk.shared_file());
        let second = std::thread::spawn(move || Mark::set(&file).unwrap().unwrap());
        assert_eq!(first.proof().holds_for(&disk).unwrap(), Some(true));
        drop(first);
        let second = second.join().unwrap();
        assert_eq!(second.proof().holds_for(&disk).unwrap(), Some(true));
        // As a process that was killed.
        std::mem::forget(second);
        let third = Mark::set(disk.shared_file()).unwrap().unwrap();
        assert_eq!(third.proof().holds_for(&disk).unwrap(), Some(true));
        drop(third);
        assert!(fs::metadata(&one).unwrap().accessed().unwrap() <= SystemTime::now());
    }

    #[test]
    fn a_device_has_one_of_the_names() {
        // Any block device of this host; there need not be one.
        let devices = fs::read_dir("/sys/dev/block").into_iter().flatten().flatten();
        for device in devices {
            let name = device.file_name().into_string().unwrap();
            let numbers: Vec<u64> = name.split(':').map(|number| number.parse().unwrap()).collect();
            let names = names(nix::sys::stat::makedev(numbers[0], numbers[1]));
            assert!(names.iter().any(|name| name.starts_with("boot ")), "{names:?}");
            assert!(DiskProof::Device(names).is_bounded());
        }
    }

    #[test]
    fn more_names_than_there_can_be_are_out_of_bounds() {
        assert!(!DiskProof::Device(vec![String::new(); NAMES_MAX + 1]).is_bounded());
        assert!(!DiskProof::Device(vec!["x".repeat(NAME_BYTES_MAX + 1)]).is_bounded());
    }
}
