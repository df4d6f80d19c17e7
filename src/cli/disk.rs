//! `--disk PATH[,ro][,serial=TEXT][,queues=N][,cache=MODE][,engine=HOW]`, and `[[disk]]` in a
//! guest's file.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use vmm_core::virtio::block::{CacheMode, EngineChoice};

use super::fault::Fault;
use super::options::each_once;

/// Longest serial number, in bytes (`VIRTIO_BLK_ID_BYTES` of `linux/virtio_blk.h`).
const SERIAL_BYTES_MAX: usize = 20;
/// Most request queues. vCPUs of a guest that has more of them share queues.
pub(crate) const QUEUES_MAX: u16 = 8;

/// What the guest may do with a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DiskAccess {
    /// Read and write.
    ReadWrite,
    /// Read, but not write (`ro`).
    ReadOnly,
}

/// A disk as typed.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DiskArg {
    /// The file or block device.
    pub(crate) path: PathBuf,
    /// What was asked for, if anything.
    #[serde(rename = "read-only", default, deserialize_with = "access")]
    access: Option<DiskAccess>,
    /// Serial number; empty when none was given.
    #[serde(default)]
    pub(crate) serial: String,
    /// Request queues; one for each vCPU when absent, but no more than there can be.
    #[serde(default)]
    pub(crate) queues: Option<u16>,
    /// Whether its bytes go through the host's cache.
    #[serde(default)]
    pub(crate) cache: CacheMode,
    /// How requests are carried out.
    #[serde(default)]
    pub(crate) engine: EngineChoice,
}

fn access<'de, D: Deserializer<'de>>(from: D) -> Result<Option<DiskAccess>, D::Error> {
    let is_read_only = bool::deserialize(from)?;
    Ok(Some(if is_read_only { DiskAccess::ReadOnly } else { DiskAccess::ReadWrite }))
}

/// Returns whether the name of the file at `path` says that it is an installation image.
fn is_iso(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("iso"))
}

impl DiskArg {
    /// Returns what the guest may do with the disk: unless something else was asked for, it only
    /// reads an installation image, which other guests need unchanged.
    pub(crate) fn access(&self) -> DiskAccess {
        let by_name = if is_iso(&self.path) { DiskAccess::ReadOnly } else { DiskAccess::ReadWrite };
        self.access.unwrap_or(by_name)
    }

    /// Whether any host could have such a disk, the guest's disk number `index`.
    ///
    /// # Errors
    /// What no disk can have.
    pub(crate) fn check(&self, index: usize) -> Result<(), Fault> {
        let fault = |key, what| Err(Fault::of_item(("disk", index), key, what));
        if self.path.as_os_str().is_empty() {
            return fault("path", "a disk needs a path".to_owned());
        }
        let is_printable = self.serial.chars().all(|c| c.is_ascii_graphic());
        if self.serial.len() > SERIAL_BYTES_MAX || !is_printable {
            let what = format!(
                "a serial number has at most {SERIAL_BYTES_MAX} printable characters of ASCII"
            );
            return fault("serial", what);
        }
        if self.queues.is_some_and(|queues| !(1..=QUEUES_MAX).contains(&queues)) {
            return fault("queues", format!("a disk has 1 to {QUEUES_MAX} queues"));
        }
        Ok(())
    }
}

impl FromStr for DiskArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',');
        let path = PathBuf::from(parts.next().unwrap_or_default());
        if path.as_os_str().is_empty() {
            return Err("a disk needs a path".to_owned());
        }
        let mut disk = Self {
            path,
            access: None,
            serial: String::new(),
            queues: None,
            cache: CacheMode::Writeback,
            engine: EngineChoice::Auto,
        };
        for option in each_once(parts)? {
            match option.split_once('=') {
                None if option == "ro" => disk.access = Some(DiskAccess::ReadOnly),
                Some(("serial", serial)) => disk.serial = serial.to_owned(),
                Some(("cache", cache)) => disk.cache = cache.parse()?,
                Some(("engine", engine)) => disk.engine = engine.parse()?,
                Some(("queues", queues)) => match queues.parse() {
                    Ok(queues @ 1..=QUEUES_MAX) => disk.queues = Some(queues),
                    _ => {
                        return Err(format!("a disk has 1 to {QUEUES_MAX} queues, not `{queues}`"));
                    }
                },
                _ => {
                    return Err(format!(
                        "`{option}` is not a disk option: ro, serial=TEXT, queues=N, cache=writeback|none, \
                         engine=auto|io_uring|sync"
                    ));
                }
            }
        }
        Ok(disk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_path_with_options() {
        let disk: DiskArg = "/d/a.raw,ro,serial=a-1".parse().unwrap();
        assert_eq!((disk.access(), disk.serial.as_str()), (DiskAccess::ReadOnly, "a-1"));
        let plain: DiskArg = "a.raw".parse().unwrap();
        let tuned: DiskArg = "a.raw,queues=2,engine=sync,cache=none".parse().unwrap();
        assert_eq!((tuned.queues, tuned.engine), (Some(2), EngineChoice::Sync));
        assert_eq!((plain.cache, tuned.cache), (CacheMode::Writeback, CacheMode::None));
        assert_eq!((plain.access(), plain.path), (DiskAccess::ReadWrite, PathBuf::from("a.raw")));
    }

    #[test]
    fn an_installation_image_is_only_read_unless_asked_for() {
        let access = |path: &str| path.parse::<DiskArg>().unwrap().access();
        for path in ["/d/debian.iso", "a.b.ISO,serial=cd"] {
            assert_eq!(access(path), DiskAccess::ReadOnly, "{path}");
        }
        for path in ["/d/iso", "/d/a.iso.raw", "/d.iso/a"] {
            assert_eq!(access(path), DiskAccess::ReadWrite, "{path}");
        }
        let asked_for: DiskArg =
            toml::from_str("path = \"/d/own.iso\"\nread-only = false").unwrap();
        assert_eq!(asked_for.access(), DiskAccess::ReadWrite);
    }

    #[test]
    fn invalid_disks_are_refused() {
        assert!("".parse::<DiskArg>().unwrap_err().contains("path"));
        assert!("a.raw,rw".parse::<DiskArg>().unwrap_err().contains("`rw`"));
        assert!("a.raw,ro,ro".parse::<DiskArg>().unwrap_err().contains("given twice"));
        assert!("a.raw,serial".parse::<DiskArg>().is_err());
        assert!("a.raw,queues=9".parse::<DiskArg>().unwrap_err().contains("1 to 8"));
        assert!("a.raw,engine=fast".parse::<DiskArg>().unwrap_err().contains("io_uring"));
        assert!(
            "a.raw,cache=full"
                .parse::<DiskArg>()
                .unwrap_err()
                .contains("cache mode: writeback, none")
        );
    }
}
