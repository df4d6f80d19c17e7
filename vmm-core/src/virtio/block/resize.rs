//! Checks the new size of a disk.

use std::io;

use super::SECTOR_BYTES;

/// Returns the new size in bytes of a disk of which its guest knows the first `known` bytes: the
/// `wanted` size, or that of the file, image or block device, which is `there`.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`], if the disk cannot have that size.
pub(super) fn new_size(
    known: u64,
    wanted: Option<u64>,
    there: u64,
    is_device: bool,
) -> io::Result<u64> {
    let there = there - there % SECTOR_BYTES;
    let refused = |what: String| Err(refusal(&what));
    if there < known {
        return refused(format!("it has {there} bytes by now, and the guest knows {known}"));
    }
    match wanted {
        None if there == known && !is_device => {
            refused("it is as large as the guest knows: give the new size".to_owned())
        }
        None => Ok(there),
        Some(bytes) if !bytes.is_multiple_of(SECTOR_BYTES) => {
            refused(format!("{bytes} bytes are not whole sectors of {SECTOR_BYTES}"))
        }
        Some(bytes) if bytes < known => {
            refused(format!("it cannot shrink from {known} to {bytes} bytes"))
        }
        Some(bytes) if bytes > there && is_device => refused(format!(
            "the device has {there} bytes, not {bytes}: grow it first, with lvextend if it is a logical volume"
        )),
        Some(bytes) if bytes < there && bytes > known && !is_device => {
            refused(format!("it has {there} bytes by now: give that size or a larger one"))
        }
        Some(bytes) => Ok(bytes),
    }
}

/// Returns the error of a size that a disk cannot have.
pub(super) fn refusal(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_only_grows() {
        let (file, device) = (false, true);
        for (wanted, there, is_device, expected) in [
            (Some(4096), 1024, file, 4096),
            (Some(1024), 1024, file, 1024),
            (Some(1024), 4096, file, 1024),
            (Some(4096), 4096, file, 4096),
            (None, 4096, file, 4096),
            (Some(2048), 4096, device, 2048),
            (None, 4099, device, 4096),
            (None, 1024, device, 1024),
        ] {
            assert_eq!(new_size(1024, wanted, there, is_device).unwrap(), expected);
        }
        for (wanted, there, is_device, why) in [
            (None, 1024, file, "give the new size"),
            (Some(512), 1024, file, "cannot shrink"),
            (Some(2048), 4096, file, "a larger one"),
            (None, 512, device, "the guest knows 1024"),
            (Some(2000), 1024, file, "whole sectors"),
            (Some(4096), 2048, device, "lvextend"),
        ] {
            let error = new_size(1024, wanted, there, is_device).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
