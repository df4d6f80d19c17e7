//! Which size a disk that is to grow gets.

use std::io;

use super::SECTOR_BYTES;

/// Returns the new size in bytes of a disk of which its guest knows the first `known` bytes: the
/// `wanted` size, or that of its block `device`.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`], if the disk cannot have that size.
pub(super) fn new_size(known: u64, wanted: Option<u64>, device: Option<u64>) -> io::Result<u64> {
    let there = device.map(|bytes| bytes - bytes % SECTOR_BYTES);
    let Some(bytes) = wanted.or(there) else {
        return Err(refusal("only a block device has a size of its own: give the new size"));
    };
    if !bytes.is_multiple_of(SECTOR_BYTES) {
        let what = format!("{bytes} bytes are not whole sectors of {SECTOR_BYTES}");
        return Err(refusal(&what));
    }
    if bytes < known {
        let what = format!(
            "it would shrink to {bytes} bytes, and the guest may have data in all of its {known}"
        );
        return Err(refusal(&what));
    }
    match there {
        Some(there) if bytes > there => {
            let what = format!(
                "the device has {there} bytes, not {bytes}: grow it first, a logical volume with lvextend"
            );
            Err(refusal(&what))
        }
        _ => Ok(bytes),
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
    fn a_disk_gets_a_larger_size_that_there_is() {
        assert_eq!(new_size(1024, Some(4096), None).unwrap(), 4096);
        assert_eq!(new_size(1024, Some(1024), None).unwrap(), 1024);
        assert_eq!(new_size(1024, Some(2048), Some(4096)).unwrap(), 2048);
        assert_eq!(new_size(1024, None, Some(4099)).unwrap(), 4096);
        for (wanted, device, why) in [
            (None, None, "give the new size"),
            (Some(512), None, "shrink"),
            (None, Some(512), "shrink"),
            (Some(2000), None, "whole sectors"),
            (Some(4096), Some(2048), "lvextend"),
        ] {
            let error = new_size(1024, wanted, device).unwrap_err();
            assert!(error.to_string().contains(why), "{error}");
        }
    }
}
