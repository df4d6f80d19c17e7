//! How hosts name a disk to each other: its path and its names on one host mean little on another.

use std::path::Path;

use migrate::protocol::front::{DiskFeatures, SoughtDisk};
use migrate::text::PeerText;
use vmm_core::virtio::block::{DiskIdentity, with_disks_below};

/// Returns the disk at `path`, which has no links, for a question to another host; `None` if there
/// is no disk.
pub(crate) fn describe(path: &Path) -> Option<SoughtDisk> {
    let features = match DiskIdentity::for_all_hosts(path)? {
        DiskIdentity::File { inode, born_unix_ns } => DiskFeatures::File { inode, born_unix_ns },
        DiskIdentity::Device { names, bytes } => DiskFeatures::Device { names, bytes },
    };
    Some(SoughtDisk { path: PeerText::new(&path.display().to_string()), features })
}

/// Returns whether the disk at `path` on this host, or one below it, may be the disk `sought` of
/// another one.
pub(crate) fn may_be_at(sought: &SoughtDisk, path: &Path) -> bool {
    with_disks_below(path).iter().any(|disk| may_be(sought, disk))
}

fn may_be(sought: &SoughtDisk, path: &Path) -> bool {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let Some(here) = DiskIdentity::for_all_hosts(&path) else { return false };
    let there = match sought.features.clone() {
        DiskFeatures::File { inode, born_unix_ns } => DiskIdentity::File { inode, born_unix_ns },
        DiskFeatures::Device { names, bytes } => DiskIdentity::Device { names, bytes },
    };
    there.may_be(&here, Path::new(sought.path.as_str()) == path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_found_by_what_was_said_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let [disk, other, link] = ["disk.raw", "other.raw", "link"].map(|name| folder.join(name));
        assert_eq!(describe(&disk), None);
        for path in [&disk, &other] {
            std::fs::write(path, "content").unwrap();
        }
        std::os::unix::fs::symlink(&disk, &link).unwrap();
        let sought = describe(&disk).unwrap();
        assert!(may_be_at(&sought, &disk) && may_be_at(&sought, &link));
        assert!(!may_be_at(&sought, &other) && !may_be_at(&sought, Path::new("/nowhere")));
    }
}
