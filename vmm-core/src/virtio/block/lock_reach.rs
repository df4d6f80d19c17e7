//! Which programs are kept away by the lock on a disk.

use std::fs::File;

use nix::sys::statfs::{self, FsType, fstatfs};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// File systems that propagate locks to other hosts (statfs(2) lists their numbers; nix lacks some
/// of them).
const NETWORK_FILE_SYSTEMS: [FsType; 7] = [
    statfs::NFS_SUPER_MAGIC,
    statfs::OCFS2_SUPER_MAGIC,
    FsType(0x0116_1970), // GFS2
    FsType(0x00c3_6400), // Ceph
    FsType(0xff53_4d42), // CIFS
    FsType(0xfe53_4d42), // SMB2
    FsType(0x0bd0_0bd0), // Lustre
];

/// Which programs are kept away by the lock on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LockReach {
    /// Programs of this host. Another host that has access to the same block device is not kept
    /// away.
    Host,
    /// Programs of all hosts that mount the file system, unless it is mounted without lock
    /// propagation.
    FileSystem,
}

impl LockReach {
    /// Returns the reach of a lock on `file`; `Host` if the system call fails.
    pub(super) fn of(file: &File) -> Self {
        let is_file = file.metadata().is_ok_and(|found| found.is_file());
        let kind = fstatfs(file).map(|found| found.filesystem_type());
        match kind {
            Ok(kind) if is_file && NETWORK_FILE_SYSTEMS.contains(&kind) => Self::FileSystem,
            Ok(_) | Err(_) => Self::Host,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_local_file_is_locked_on_its_host() {
        assert_eq!(LockReach::of(&tempfile::tempfile().unwrap()), LockReach::Host);
        assert_eq!(LockReach::of(&File::open("/dev/null").unwrap()), LockReach::Host);
    }
}
