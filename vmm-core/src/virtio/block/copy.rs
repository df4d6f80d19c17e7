//! Copies a disk's content to a file: shares blocks with the disk if the file system supports that,
//! and keeps holes.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use nix::sys::stat::futimens;
use nix::sys::time::TimeSpec;
use rustix::fs::ioctl_ficlone;

use crate::sys::file::{self, Extent};

/// Size of one read and write, in bytes.
const PIECE_BYTES: usize = 1 << 20;

/// Copies the first `bytes` of `from` to the empty file `to`. Calls `step` with the number of bytes
/// done so far, after each piece and at the end.
///
/// # Errors
/// If `step` fails, or a system call fails.
pub fn copy_content(
    from: &File,
    to: &File,
    bytes: u64,
    mut step: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return step(bytes);
    }
    // The cache of a block device may keep what was there before a write that bypassed it.
    file::forget_cached(from);
    to.set_len(bytes)?;
    let mut piece = vec![0; PIECE_BYTES];
    let mut at = 0;
    while let Some((data, end)) = next_data(from, at, bytes)? {
        at = data;
        while at < end {
            let length = (end - at).min(PIECE_BYTES as u64);
            let piece = &mut piece[..length as usize];
            from.read_exact_at(piece, at)?;
            // A block device does not report holes, so pieces of zeros are detected here.
            if piece.iter().any(|byte| *byte != 0) {
                to.write_all_at(piece, at)?;
            }
            at += length;
            step(at)?;
        }
    }
    step(bytes)
}

/// Returns the next range of `file`'s first `bytes`, from `at` on, that may contain anything but
/// zeros; `None` if there is none.
///
/// # Errors
/// If a system call fails.
pub(super) fn next_data(file: &File, at: u64, bytes: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= bytes {
        return Ok(None);
    }
    let data = match file::seek_extent(file, at, Extent::Data) {
        Ok(Some(data)) if data < bytes => data,
        Ok(_) => return Ok(None),
        // A block device, or a file system that does not report holes.
        Err(error) if error.kind() == ErrorKind::InvalidInput => return Ok(Some((at, bytes))),
        Err(error) => return Err(error),
    };
    let hole = file::seek_extent(file, data, Extent::Hole)?;
    // A file that is truncated concurrently must not yield an empty range: the caller would never
    // advance.
    Ok(Some((data, hole.unwrap_or(bytes).clamp(data + 1, bytes))))
}

/// Sets the modification time of a copy, in seconds since 1970, from which its seal recognizes it:
/// see [`super::Seal::File`].
///
/// # Errors
/// If the system call fails.
pub fn date(copy: &File, modified_unix_s: i64) -> io::Result<()> {
    Ok(futimens(copy, &TimeSpec::UTIME_OMIT, &TimeSpec::new(modified_unix_s, 0))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn file() -> File {
        tempfile::tempfile().unwrap()
    }

    #[test]
    fn a_copy_has_the_content_the_holes_and_the_time_that_it_is_given() {
        let (from, to) = (file(), file());
        from.set_len((64 << 20) + 512).unwrap();
        let content: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        from.write_all_at(&content, 9 << 20).unwrap();
        from.write_all_at(&[5; 512], 64 << 20).unwrap();
        let mut steps = Vec::new();
        let bytes = (64 << 20) + 512;
        let step = |at| {
            steps.push(at);
            Ok(())
        };
        copy_content(&from, &to, bytes, step).unwrap();
        date(&to, 1_000_000_000).unwrap();
        let read = |file: &File| {
            let mut all = vec![0; bytes as usize];
            file.read_exact_at(&mut all, 0).unwrap();
            all
        };
        assert!(read(&from) == read(&to));
        let found = to.metadata().unwrap();
        assert_eq!((found.len(), found.mtime(), found.mtime_nsec()), (bytes, 1_000_000_000, 0));
        assert!(found.blocks() * 512 < 8 << 20, "{} blocks", found.blocks());
        assert_eq!(steps.last(), Some(&bytes));
    }

    #[test]
    fn the_progress_callback_can_stop_a_copy() {
        let (from, to) = (file(), file());
        from.write_all_at(&[1; 4096], 0).unwrap();
        let stop = |_| Err(ErrorKind::Interrupted.into());
        assert_eq!(
            copy_content(&from, &to, 4096, stop).unwrap_err().kind(),
            ErrorKind::Interrupted
        );
    }
}
