//! Checks whether a disk was written since its guest was saved or left it: the guest's memory must
//! match its disk.
//!
//! For a file, the modification time shows it. A guest's writes can become durable before that time
//! does, so a guest that starts on a file updates the time, durably, before its first write. A
//! block device has no such time; its kernel counts the sectors written and discarded since the
//! device appeared, unless counting is disabled (`queue/iostats`). The count misses writes of other
//! hosts; the [`super::digest`] of the device's ends and superblocks detects the most likely ones.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::digest::digest;
use super::names::{BOOT_ID, disk_at, place_in_sysfs, read};

/// Longest name of a count, in bytes: a UUID and a number.
const COUNT_BYTES_MAX: usize = 64;
/// Longest wait for a new modification time: file systems store times to two seconds, or better.
const BREAK_PATIENCE: Duration = Duration::from_secs(3);
/// Interval between attempts: most file systems store times to the tick of the kernel's clock.
const BREAK_INTERVAL: Duration = Duration::from_millis(4);
/// Indices of the sectors written and discarded in a device's `stat`
/// (Documentation/block/stat.rst); kernels before 4.18 do not count discarded sectors.
const SECTORS_CHANGED: [usize; 2] = [6, 13];

/// State of a disk when its guest last had it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seal {
    /// Modification time of a file: seconds since 1970, and nanoseconds.
    File(i64, i64),
    /// The name of a count (`count_at`) and the sectors written to a block device by that count.
    /// Earlier versions sealed a device with these alone.
    Device(String, u64),
    /// As `Seal::Device`, with the digest of some of the device's content.
    DeviceContent(String, u64, [u8; 16]),
}

impl Seal {
    /// Makes all writes to `file` durable, and returns its present state.
    ///
    /// # Errors
    /// If a system call fails.
    pub(super) fn of(file: &File) -> io::Result<Self> {
        file.sync_all()?;
        Ok(match Self::at_a_glance(file)? {
            Self::Device(count, sectors) => {
                let mut at = file;
                let digest = digest(file, at.seek(SeekFrom::End(0))?)?;
                Self::DeviceContent(count, sectors, digest.to_le_bytes())
            }
            seal => seal,
        })
    }

    /// Returns the present state of `file`, whose writes must be durable already. For a device,
    /// this only covers writes of this host.
    ///
    /// # Errors
    /// If a system call fails.
    pub(super) fn at_a_glance(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        if !found.file_type().is_block_device() {
            return Ok(Self::File(found.mtime(), found.mtime_nsec()));
        }
        let boot = fs::read_to_string(BOOT_ID)?;
        let place = place_in_sysfs(found.rdev()).canonicalize()?;
        let sectors = sectors_written(&place)?;
        Ok(Self::Device(count_at(disk_at(&place), boot.trim(), sectors), sectors))
    }

    /// Returns whether the sizes are within their bounds.
    pub(super) fn is_bounded(&self) -> bool {
        match self {
            Self::File(..) => true,
            Self::Device(count, _) | Self::DeviceContent(count, ..) => {
                count.len() <= COUNT_BYTES_MAX
            }
        }
    }

    /// Returns whether `file` is unchanged; `None` if that cannot be determined.
    ///
    /// # Errors
    /// If a system call fails.
    pub(super) fn holds_for(&self, file: &File) -> io::Result<Option<bool>> {
        let now = match self {
            Self::DeviceContent(..) => Self::of(file)?,
            Self::File(..) | Self::Device(..) => {
                file.sync_all()?;
                Self::at_a_glance(file)?
            }
        };
        Ok(self.is_unbroken(&now))
    }

    /// Returns whether a disk with the state `now` is unchanged; `None` if that cannot be
    /// determined.
    fn is_unbroken(&self, now: &Self) -> Option<bool> {
        if let (Self::DeviceContent(_, _, then), Self::DeviceContent(_, _, now)) = (self, now)
            && then != now
        {
            return Some(false);
        }
        match (self.count(), now.count()) {
            (Some((then, before)), Some((now, sectors))) => {
                let is_same_count =
                    !then.is_empty() && then == now || is_of_earlier_version(then, now);
                // Without the number of the device, another one may have taken its place unwritten.
                let is_evidence =
                    is_same_count && (before != sectors || sectors > 0 || is_numbered(then));
                is_evidence.then_some(before == sectors)
            }
            _ => Some(self == now),
        }
    }

    /// Returns the name of the count, and the sectors written; `None` for a file.
    fn count(&self) -> Option<(&str, u64)> {
        match self {
            Self::File(..) => None,
            Self::Device(count, sectors) | Self::DeviceContent(count, sectors, _) => {
                Some((count, *sectors))
            }
        }
    }
}

/// Returns the name of the count by which `sectors` were written to the disk whose sysfs folder is
/// `disk`: the host's `boot`, and the number of the device (`diskseq`, Linux 5.15), which changes
/// when a device is removed, or another file is put behind a loop device, and the count begins at 0
/// again. The name is empty if sectors are not counted.
fn count_at(disk: &Path, boot: &str, sectors: u64) -> String {
    let is_counted = match read(&disk.join("queue/iostats")).as_deref() {
        Some("1") => true,
        // A driver without blk-mq may count in spite of this, as the device mapper does up to
        // Linux 6.3.
        _ => sectors > 0 && !disk.join("mq").exists(),
    };
    match read(&disk.join("diskseq")) {
        _ if !is_counted => String::new(),
        Some(number) => format!("{boot} {number}"),
        None => boot.to_owned(),
    }
}

/// Returns whether the name of a count contains the number of the device.
fn is_numbered(count: &str) -> bool {
    count.contains(' ')
}

/// Returns whether `then` is the boot alone, which earlier versions used as name, of the count
/// `now`.
fn is_of_earlier_version(then: &str, now: &str) -> bool {
    now.split_once(' ').is_some_and(|(boot, _)| boot == then)
}

/// Durably breaks all seals of a regular file before it is written.
///
/// # Errors
/// If a system call fails, or the file's modification time does not change.
pub(super) fn break_all(file: &File) -> io::Result<()> {
    let before = file.metadata()?;
    if !before.is_file() {
        return Ok(());
    }
    let start = Instant::now();
    loop {
        // Sets both times to now: write permission is enough for that, but not for setting only
        // one.
        futimens(file, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW)?;
        if file.metadata()?.modified()? != before.modified()? {
            return file.sync_all();
        }
        if start.elapsed() > BREAK_PATIENCE {
            return Err(io::Error::other("its modification time does not change"));
        }
        std::thread::sleep(BREAK_INTERVAL);
    }
}

/// Returns the sectors written to the block device whose sysfs folder is `place`.
fn sectors_written(place: &Path) -> io::Result<u64> {
    let stat = fs::read_to_string(place.join("stat"))?;
    sectors_changed(&stat).ok_or_else(|| io::Error::other("its statistics have an unknown form"))
}

fn sectors_changed(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.split_whitespace().collect();
    let [written, discarded] = SECTORS_CHANGED.map(|index| fields.get(index));
    let discarded = discarded.map_or(Ok(0), |field| field.parse());
    Some(written?.parse::<u64>().ok()?.wrapping_add(discarded.ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_written_file_is_distinguished_from_one_that_was_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let file = file.as_file();
        file.write_all_at(&[7; 4096], 0).unwrap();
        let seal = Seal::of(file).unwrap();
        file.read_exact_at(&mut [0; 512], 0).unwrap();
        assert_eq!(seal.holds_for(file).unwrap(), Some(true));
        std::thread::sleep(Duration::from_millis(20));
        file.write_all_at(&[8; 512], 0).unwrap();
        assert_eq!(seal.holds_for(file).unwrap(), Some(false));
    }

    #[test]
    fn a_seal_is_broken_before_anything_is_written() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let seal = Seal::of(file.as_file()).unwrap();
        break_all(file.as_file()).unwrap();
        assert_eq!(seal.holds_for(file.as_file()).unwrap(), Some(false));
    }

    #[test]
    fn a_count_of_writes_is_valid_for_one_device_of_one_host_boot() {
        let here = Seal::Device("a 3".to_owned(), 7);
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(here.holds_for(file.as_file()).unwrap(), Some(false), "a file is no device");
        assert_eq!(here.is_unbroken(&Seal::File(1, 2)), Some(false));
        let seal = |(count, sectors): (&str, u64)| Seal::Device(count.to_owned(), sectors);
        for (then, now, is_unbroken) in [
            (("a 3", 7), ("a 3", 7), Some(true)),
            (("a 3", 7), ("a 3", 8), Some(false)),
            (("a 3", 0), ("a 3", 0), Some(true)),
            (("a 3", 0), ("a 4", 0), None),
            (("a 3", 7), ("b 3", 7), None),
            // A kernel that does not number devices.
            (("a", 7), ("a", 7), Some(true)),
            (("a", 0), ("a", 8), Some(false)),
            (("a", 0), ("a", 0), None),
            // A seal of an earlier version.
            (("a", 7), ("a 3", 7), Some(true)),
            (("a", 0), ("a 3", 8), Some(false)),
            (("a", 0), ("a 3", 0), None),
            (("a", 7), ("b 3", 7), None),
            // What is written is not counted, at one of the times or at both.
            (("", 7), ("", 7), None),
            (("", 0), ("a 3", 0), None),
            (("a 3", 7), ("", 7), None),
        ] {
            assert_eq!(seal(then).is_unbroken(&seal(now)), is_unbroken, "{then:?} {now:?}");
        }
    }

    #[test]
    fn a_device_with_other_content_was_written_whatever_was_counted() {
        let content = |count: &str, sectors, digest| {
            Seal::DeviceContent(count.to_owned(), sectors, [digest; 16])
        };
        for count in ["a 3", "a", ""] {
            assert_eq!(content(count, 0, 1).is_unbroken(&content("a 3", 0, 2)), Some(false));
        }
        assert_eq!(content("a 3", 7, 1).is_unbroken(&content("a 3", 7, 1)), Some(true));
        assert_eq!(content("a 3", 7, 1).is_unbroken(&content("a 3", 8, 1)), Some(false));
        assert_eq!(content("a 3", 7, 1).is_unbroken(&content("b 3", 7, 1)), None, "a reboot");
        let earlier = Seal::Device("a".to_owned(), 7);
        assert_eq!(earlier.is_unbroken(&content("a 3", 7, 1)), Some(true));
        let long = "x".repeat(COUNT_BYTES_MAX + 1);
        assert!(!content(&long, 0, 1).is_bounded() && !Seal::Device(long, 0).is_bounded());
        let longest = format!("{} {}", "x".repeat(36), u64::MAX);
        assert!(content(&longest, 0, 1).is_bounded());
    }

    #[test]
    fn a_count_is_named_if_the_driver_counts() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let count = |sectors| count_at(folder.path(), "a", sectors);
        assert_eq!((count(0), count(7)), (String::new(), "a".to_owned()), "nothing is known");
        write("queue/iostats", "1\n");
        assert_eq!(count(0), "a");
        write("diskseq", "3\n");
        assert_eq!(count(0), "a 3");
        write("queue/iostats", "0\n");
        assert_eq!((count(0), count(7)), (String::new(), "a 3".to_owned()), "by its driver");
        fs::create_dir(folder.path().join("mq")).unwrap();
        assert_eq!((count(0), count(7)), (String::new(), String::new()));
    }

    #[test]
    fn written_and_discarded_sectors_are_read_from_statistics() {
        let stat = "4 0 32 1 9 2 800 3 0 4 4 5 0 64 0 0 0";
        assert_eq!(sectors_changed(stat), Some(864));
        assert_eq!(sectors_changed("4 0 32 1 9 2 800 3 0 4 4"), Some(800));
        assert_eq!(sectors_changed("4 0"), None);
        // Any block devices of this host; there may be none.
        for device in fs::read_dir("/sys/dev/block").into_iter().flatten().flatten() {
            sectors_written(&device.path()).unwrap();
        }
    }
}
