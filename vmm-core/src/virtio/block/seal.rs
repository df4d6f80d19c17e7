//! Checks whether a disk was written since its guest was saved or left it: the guest's memory must
//! match its disk.
//!
//! For a file, the modification time shows it. A guest's writes can become durable before that time
//! does, so a guest that starts on a file updates the time, durably, before its first write. A
//! block device has no such time; its kernel counts the sectors written and discarded since the
//! host booted, unless counting is disabled (`queue/iostats`). The count misses writes of other
//! hosts; the [`super::digest`] of the device's ends and superblocks detects the most likely ones.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use serde::{Deserialize, Serialize};

use super::digest::digest;
use super::names::{BOOT_ID, place_in_sysfs};

/// Longest boot id of a host, in bytes: a UUID.
const BOOT_BYTES_MAX: usize = 64;
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
    /// Boot id of the host and the sectors written to a block device since that boot. Earlier
    /// versions sealed a device with these alone.
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
            Self::Device(boot, sectors) => {
                let mut at = file;
                let digest = digest(file, at.seek(SeekFrom::End(0))?)?;
                Self::DeviceContent(boot, sectors, digest.to_le_bytes())
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
        Ok(Self::Device(boot.trim().to_owned(), sectors_written(found.rdev())?))
    }

    /// Returns whether the sizes are within their bounds.
    pub(super) fn is_bounded(&self) -> bool {
        match self {
            Self::File(..) => true,
            Self::Device(boot, _) | Self::DeviceContent(boot, ..) => boot.len() <= BOOT_BYTES_MAX,
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
            (Some((then, _)), Some((now, _))) if then != now => None,
            // Nothing was ever written, or writes are not counted.
            (Some((_, 0)), Some((_, 0))) => None,
            (Some(then), Some(now)) => Some(then == now),
            _ => Some(self == now),
        }
    }

    /// Returns the host's boot id and the sectors written since that boot; `None` for a file.
    fn count(&self) -> Option<(&str, u64)> {
        match self {
            Self::File(..) => None,
            Self::Device(boot, sectors) | Self::DeviceContent(boot, sectors, _) => {
                Some((boot, *sectors))
            }
        }
    }
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

fn sectors_written(device: u64) -> io::Result<u64> {
    let stat = fs::read_to_string(stat_path(device))?;
    sectors_changed(&stat).ok_or_else(|| io::Error::other("its statistics have an unknown form"))
}

fn sectors_changed(stat: &str) -> Option<u64> {
    let fields: Vec<&str> = stat.split_whitespace().collect();
    let [written, discarded] = SECTORS_CHANGED.map(|index| fields.get(index));
    let discarded = discarded.map_or(Ok(0), |field| field.parse());
    Some(written?.parse::<u64>().ok()?.wrapping_add(discarded.ok()?))
}

fn stat_path(device: u64) -> PathBuf {
    place_in_sysfs(device).join("stat")
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
    fn write_counts_of_a_device_are_valid_for_one_host_boot() {
        let here = Seal::Device("a".to_owned(), 7);
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(here.holds_for(file.as_file()).unwrap(), Some(false), "a file is no device");
        assert!(!Seal::Device("x".repeat(BOOT_BYTES_MAX + 1), 0).is_bounded());
        let seal = |boot: &str, sectors| Seal::Device(boot.to_owned(), sectors);
        assert_eq!(here.is_unbroken(&seal("a", 7)), Some(true));
        assert_eq!(here.is_unbroken(&seal("a", 8)), Some(false));
        assert_eq!(here.is_unbroken(&seal("b", 7)), None, "after a reboot");
        assert_eq!(seal("a", 0).is_unbroken(&seal("a", 0)), None, "it may not be counted");
        let content = |boot: &str, sectors, digest| {
            Seal::DeviceContent(boot.to_owned(), sectors, [digest; 16])
        };
        assert!(!content(&"x".repeat(BOOT_BYTES_MAX + 1), 0, 0).is_bounded());
        assert_eq!(content("a", 7, 1).is_unbroken(&content("a", 7, 1)), Some(true));
        assert_eq!(
            content("a", 7, 1).is_unbroken(&content("a", 7, 2)),
            Some(false),
            "by another host"
        );
        assert_eq!(content("a", 0, 1).is_unbroken(&content("a", 0, 2)), Some(false));
        assert_eq!(content("a", 7, 1).is_unbroken(&content("a", 8, 1)), Some(false));
        assert_eq!(content("a", 7, 1).is_unbroken(&content("b", 7, 1)), None, "after a reboot");
        assert_eq!(content("a", 7, 1).is_unbroken(&content("b", 7, 2)), Some(false));
        assert_eq!(here.is_unbroken(&content("a", 7, 1)), Some(true), "by an earlier version");
        assert_eq!(here.is_unbroken(&Seal::File(1, 2)), Some(false));
        let stat = "4 0 32 1 9 2 800 3 0 4 4 5 0 64 0 0 0";
        assert_eq!(sectors_changed(stat), Some(864));
        assert_eq!(sectors_changed("4 0 32 1 9 2 800 3 0 4 4"), Some(800));
        assert_eq!(sectors_changed("4 0"), None);
        // Any block devices of this host; there may be none.
        let devices = fs::read_dir("/sys/dev/block").into_iter().flatten().flatten();
        for device in devices {
            let name = device.file_name().into_string().unwrap();
            let numbers: Vec<u64> = name.split(':').map(|number| number.parse().unwrap()).collect();
            sectors_written(nix::sys::stat::makedev(numbers[0], numbers[1])).unwrap();
        }
    }
}
