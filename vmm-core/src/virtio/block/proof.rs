//! Whether two hosts speak of the same disk, or only of the same path.
//!
//! A block device has names that all hosts know it by: its WWID, its UUID in the device mapper, its serial number. A file has
//! none. The source sets its access time to one in the future that nobody can guess, and the destination finds that time in its
//! own file, or has another file. That works on every file system that keeps times; the time of before is put back soon.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::disk::Disk;
use crate::raw_io;

/// Most names of a device.
const NAMES_MAX: usize = 8;
/// Longest name of a device, in bytes.
const NAME_BYTES_MAX: usize = 256;
/// An access time so far ahead is put off by no read (`relatime_need_update` in fs/inode.c).
const AHEAD: Duration = Duration::from_secs(48 * 3600);
/// The last second that every file system can keep.
const LAST_SECOND: u64 = i32::MAX as u64;

/// By what a disk is told apart from others at its path on other hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskProof {
    /// By nothing.
    #[default]
    Absent,
    /// By these names of a block device, one of which is enough.
    Device(Vec<String>),
    /// By this access time of a file: seconds since 1970, and nanoseconds.
    AccessTime(i64, i64),
    /// By the word of the user.
    Vouched,
}

impl DiskProof {
    /// What can be told of `file` as long as it is this one: the names of a device.
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
            Self::Absent | Self::AccessTime(..) | Self::Vouched => true,
        }
    }

    /// Whether `disk` is the one that this was said of; `None` when that cannot be told.
    ///
    /// # Errors
    /// The system's answer.
    pub(super) fn holds_for(&self, disk: &Disk) -> io::Result<Option<bool>> {
        let found = disk.file().metadata()?;
        Ok(match self {
            Self::Absent => None,
            Self::Vouched => Some(true),
            Self::Device(known) => match Self::of(disk.file()) {
                Self::Device(names) => Some(names.iter().any(|name| known.contains(name))),
                _ => Some(false),
            },
            Self::AccessTime(seconds, nanoseconds) => {
                Some((found.atime(), found.atime_nsec()) == (*seconds, *nanoseconds))
            }
        })
    }
}

/// A file whose access time is a proof until this is dropped.
#[derive(Debug)]
pub struct Mark {
    file: Arc<File>,
    before: TimeSpec,
    proof: DiskProof,
}

impl Mark {
    /// Marks `file`, if it is a regular one.
    ///
    /// # Errors
    /// The system's answer: the file is somebody else's, for example.
    pub(super) fn set(file: &Arc<File>) -> io::Result<Option<Self>> {
        let found = file.metadata()?;
        if !found.is_file() {
            return Ok(None);
        }
        let before = TimeSpec::new(found.atime(), found.atime_nsec());
        futimens(&**file, &secret_time()?, &TimeSpec::UTIME_OMIT)?;
        // As the file system keeps it, which may be less exact.
        let kept = file.metadata()?;
        let proof = DiskProof::AccessTime(kept.atime(), kept.atime_nsec());
        Ok(Some(Self { file: Arc::clone(file), before, proof }))
    }

    /// What the other host must find.
    pub fn proof(&self) -> DiskProof {
        self.proof.clone()
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if let Err(error) = futimens(&*self.file, &self.before, &TimeSpec::UTIME_OMIT) {
            tracing::warn!(%error, "the access time of a disk stays in the future");
        }
    }
}

/// A time in the future that nobody can guess.
fn secret_time() -> io::Result<TimeSpec> {
    let mut random = [0; 16];
    raw_io::fill_random(&mut random)?;
    let [seconds, nanoseconds] = [&random[..8], &random[8..]]
        .map(|half| half.iter().fold(0_u64, |word, byte| word << 8 | u64::from(*byte)));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let first = (now + AHEAD).as_secs();
    let span = LAST_SECOND.saturating_sub(first).max(1);
    Ok(TimeSpec::new((first + seconds % span) as i64, (nanoseconds % 1_000_000_000) as i64))
}

/// The names of a block device by which other hosts know it, from sysfs; a partition's have its first sector, too.
fn names(device: u64) -> Vec<String> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let place = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
    let Ok(place) = place.canonicalize() else { return Vec::new() };
    let mut names = match read(&place.join("partition")).and_then(|_| read(&place.join("start"))) {
        Some(start) => {
            let disk = place.parent().map(names_at).unwrap_or_default();
            disk.into_iter().map(|name| format!("{name} from sector {start}")).collect()
        }
        None => names_at(&place),
    };
    // The same kernel: two nodes on one host.
    if let Some(boot) = read(Path::new("/proc/sys/kernel/random/boot_id")) {
        names.push(format!("boot {boot} device {major}:{minor}"));
    }
    names
}

fn names_at(place: &Path) -> Vec<String> {
    let files = ["wwid", "device/wwid", "dm/uuid", "serial", "device/serial"];
    let named = |file: &str| Some(format!("{file} {}", read(&place.join(file))?));
    files.into_iter().filter_map(named).collect()
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
