//! Recognizes a disk on this host, even after a reboot or at another path.

use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::names::{
    bytes_of, is_same_here, lasting_names_of, may_be_same_device, may_overlap, names_of,
};

/// Features that identify a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskIdentity {
    /// A regular file: its inode, and its creation time where the file system records it.
    File {
        /// Inode number in the file system.
        inode: u64,
        /// Creation time in nanoseconds since 1970; `None` if the file system does not record it.
        born_unix_ns: Option<u64>,
    },
    /// A block device.
    Device {
        /// Its names, each after its kind and a space; none where the kernel knows none.
        names: Vec<String>,
        /// Size in bytes.
        bytes: u64,
    },
}

impl DiskIdentity {
    /// Returns the identity of the disk at `path`; `None` if there is none.
    pub fn at(path: &Path) -> Option<Self> {
        Self::of(&fs::metadata(path).ok()?)
    }

    /// Returns the identity of the disk with this metadata; `None` for anything but a file or a
    /// block device.
    pub(super) fn of(found: &Metadata) -> Option<Self> {
        Self::named_by(lasting_names_of, found)
    }

    /// Returns the identity by which this host and others recognize the disk at `path`; `None` if
    /// there is none. Two state folders on one machine count as two hosts.
    pub fn for_all_hosts(path: &Path) -> Option<Self> {
        Self::named_by(names_of, &fs::metadata(path).ok()?)
    }

    fn named_by(names_of: fn(u64) -> Vec<String>, found: &Metadata) -> Option<Self> {
        if found.is_file() {
            let born = found.created().ok().and_then(|born| born.duration_since(UNIX_EPOCH).ok());
            let born_unix_ns = born.and_then(|born| u64::try_from(born.as_nanos()).ok());
            return Some(Self::File { inode: found.ino(), born_unix_ns });
        }
        let is_device = found.file_type().is_block_device();
        is_device.then(|| {
            let (names, bytes) = (names_of(found.rdev()), bytes_of(found.rdev()));
            Self::Device { names, bytes }
        })
    }

    /// Returns whether the disk that is now `other` is this one. `same_path` says whether its path
    /// is the same, which decides for a device without names. A file without a known creation time
    /// is only recognized at its own path: another file may have its inode number.
    pub fn is_same(&self, other: &Self, same_path: bool) -> bool {
        match (self, other) {
            (Self::File { born_unix_ns, .. }, Self::File { .. }) => {
                self == other && (same_path || born_unix_ns.is_some())
            }
            (Self::Device { names, bytes }, Self::Device { names: others, bytes: its }) => {
                is_same_here(names, others).unwrap_or(same_path && bytes == its)
            }
            _ => false,
        }
    }

    /// Returns whether the disk that is now `other` is this one, or one is a partition of the
    /// other.
    pub fn overlaps(&self, other: &Self, same_path: bool) -> bool {
        let is_part = match (self, other) {
            (Self::Device { names, .. }, Self::Device { names: others, .. }) => {
                may_overlap(names, others) == Some(true)
            }
            _ => false,
        };
        is_part || self.is_same(other, same_path)
    }

    /// Returns whether this disk of another host may be the disk `here` of this one; both are from
    /// [`Self::for_all_hosts`]. In doubt the same path decides: two hosts that write one disk
    /// destroy its content.
    pub fn may_be(&self, here: &Self, same_path: bool) -> bool {
        match (self, here) {
            (
                Self::File { inode, born_unix_ns: born },
                Self::File { inode: its, born_unix_ns: its_birth },
            ) => {
                let births = born.zip(*its_birth);
                inode == its && births.map_or(same_path, |(one, other)| one == other)
            }
            (Self::Device { names, bytes }, Self::Device { names: others, bytes: its }) => {
                may_be_same_device(names, others).unwrap_or(same_path && bytes == its)
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_takes_the_place_of_another_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        assert_eq!(DiskIdentity::at(&path), None);
        fs::write(&path, "old").unwrap();
        let old = DiskIdentity::at(&path).unwrap();
        fs::write(&path, "written").unwrap();
        assert!(old.is_same(&DiskIdentity::at(&path).unwrap(), true));
        let unborn = DiskIdentity::File { inode: 7, born_unix_ns: None };
        assert!(unborn.is_same(&unborn, true) && !unborn.is_same(&unborn, false));
        let (link, moved) = (folder.path().join("link.raw"), folder.path().join("moved.raw"));
        fs::hard_link(&path, &link).unwrap();
        fs::rename(&path, &moved).unwrap();
        for other in [&link, &moved] {
            assert!(old.is_same(&DiskIdentity::at(other).unwrap(), false), "{other:?}");
        }
        fs::rename(&moved, &path).unwrap();
        let new = folder.path().join("new.raw");
        fs::write(&new, "new").unwrap();
        fs::rename(&new, &path).unwrap();
        assert!(!old.is_same(&DiskIdentity::at(&path).unwrap(), true));
        assert_eq!(DiskIdentity::at(folder.path()), None);
        assert_eq!(DiskIdentity::at(Path::new("/dev/null")), None);
    }

    #[test]
    fn a_device_is_recognized_by_its_name_or_else_by_path_and_size() {
        let device = |names: &[&str], bytes| DiskIdentity::Device {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            bytes,
        };
        let volume = device(&["dm/uuid LVM-x"], 7);
        assert!(volume.is_same(&device(&["dm/uuid LVM-x", "below/wwid 1"], 9), false));
        assert!(!volume.is_same(&device(&["dm/uuid LVM-y"], 7), true));
        let (lun, part) = (device(&["wwid 1"], 9), device(&["wwid 1 from sector 8"], 7));
        assert!(lun.overlaps(&part, false) && part.overlaps(&lun, false));
        assert!(!lun.is_same(&part, false) && !lun.overlaps(&volume, false));
        assert!(!part.overlaps(&device(&["wwid 1 from sector 16"], 7), false));
        assert!(volume.overlaps(&volume, false), "as before, by its UUID alone");
        let nameless = device(&[], 7);
        assert!(nameless.is_same(&nameless, true) && !nameless.is_same(&nameless, false));
        assert!(!nameless.is_same(&device(&[], 8), true));
        assert!(!volume.is_same(&DiskIdentity::File { inode: 1, born_unix_ns: None }, true));
    }

    #[test]
    fn a_disk_that_another_host_may_have_as_well_is_recognized() {
        let file = |inode, born_unix_ns| DiskIdentity::File { inode, born_unix_ns };
        for (here, same_path, may_be) in [
            (file(7, Some(1)), false, true),
            (file(7, Some(2)), true, false),
            (file(8, Some(1)), true, false),
            (file(7, None), true, true),
            (file(7, None), false, false),
        ] {
            assert_eq!(file(7, Some(1)).may_be(&here, same_path), may_be, "{here:?}");
        }
        let device = |names: &[&str]| DiskIdentity::Device {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            bytes: 7,
        };
        let lun = device(&["wwid 1", "serial a"]);
        assert!(lun.may_be(&device(&["wwid 1"]), false));
        assert!(!lun.may_be(&device(&["wwid 2", "serial a"]), true));
        let (nameless, volume) = (device(&[]), device(&["dm/uuid LVM-x"]));
        assert!(nameless.may_be(&lun, true) && !nameless.may_be(&lun, false));
        assert!(volume.may_be(&volume, false) && !volume.may_be(&device(&["dm/uuid y"]), true));
        assert!(!lun.may_be(&file(7, None), true));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.raw");
        assert_eq!(DiskIdentity::for_all_hosts(&path), None);
        fs::write(&path, "content").unwrap();
        assert_eq!(DiskIdentity::for_all_hosts(&path), DiskIdentity::at(&path));
    }
}
