//! A block device that a copied disk overwrites.
//!
//! Unlike a new file ([`super::staged`]), it has old content, which is zeroed first, because zero
//! pages are not sent. Others may use it, so it is locked and claimed before it is written. A copy
//! that ends early leaves a part of the disk on it.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::config::{Access, BlockConfig, Occupied};
use super::disk::Disk;
use crate::sys::file::{self, Clearing, write_zero_bytes};
use crate::virtio::DeviceError;

/// Size of one step of zeroing, in bytes: a process that ends waits for one step at most.
const STEP_BYTES: u64 = 16 << 20;

/// Returns whether there is a block device at `path`.
pub(super) fn is_at(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| found.file_type().is_block_device())
}

/// Opens the block device that the disk of `config` would overwrite, without locking it.
///
/// # Errors
/// [`DeviceError::DiskExists`] if it must be kept; [`DeviceError::DiskOfHost`];
/// [`DeviceError::DiskSize`] if it is too small; or if it cannot be opened.
pub(super) fn open(config: &BlockConfig, occupied: Occupied) -> Result<Disk, DeviceError> {
    let disk = Disk::open_present(config.path(), Access::ReadWrite)?;
    // A file may have taken its place meanwhile.
    if occupied == Occupied::Refuse || !disk.store().is_device() {
        return Err(DeviceError::DiskExists { path: config.path().to_path_buf() });
    }
    disk.expect_bytes(config.bytes())?;
    Ok(disk)
}

/// Zeroes the first `bytes` of `file`, in steps; asks before each of them whether it `is_wanted`.
///
/// # Errors
/// `Interrupted` if it is not wanted any more; otherwise the error from the system.
pub(super) fn clear(file: &File, bytes: u64, is_wanted: impl Fn() -> bool) -> io::Result<()> {
    let mut at = 0;
    while at < bytes {
        if !is_wanted() {
            return Err(ErrorKind::Interrupted.into());
        }
        let step = STEP_BYTES.min(bytes - at);
        // The device may do it by itself, or the kernel writes zeros: both only to whole blocks.
        file::clear(file, at, step, Clearing::PunchHole)
            .or_else(|_| file::clear(file, at, step, Clearing::Zero))
            .or_else(|_| write_zero_bytes(file, at, step))?;
        at += step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn all_that_the_disk_covers_is_zeroed_and_nothing_behind_it() {
        let file = tempfile::tempfile().unwrap();
        let bytes = 2 * STEP_BYTES + 512;
        for at in [0, STEP_BYTES - 1, bytes - 1, bytes] {
            file.write_all_at(&[7], at).unwrap();
        }
        clear(&file, bytes, || true).unwrap();
        let byte = |at| {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            byte[0]
        };
        assert_eq!([0, STEP_BYTES - 1, bytes - 1, bytes].map(byte), [0, 0, 0, 7]);
    }

    #[test]
    fn zeroing_ends_when_it_is_not_wanted_any_more() {
        let file = tempfile::tempfile().unwrap();
        let bytes = 3 * STEP_BYTES;
        file.write_all_at(&[7], bytes - 1).unwrap();
        let steps = Cell::new(0);
        let is_wanted = || steps.replace(steps.get() + 1) < 2;
        let ended = clear(&file, bytes, is_wanted).unwrap_err();
        assert_eq!(ended.kind(), ErrorKind::Interrupted);
        let mut byte = [0];
        file.read_exact_at(&mut byte, bytes - 1).unwrap();
        assert_eq!((steps.get(), byte), (3, [7]));
    }
}
