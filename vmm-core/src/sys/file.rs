//! Raw system calls on files: positioned I/O directly between files and guest memory, holes, locks;
//! and the host's entropy.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vm_memory::bitmap::Bitmap;

use super::sectors::aligned_memory;
use super::{RamSlice, check};

/// Most buffers that one call takes (`UIO_MAXIOV` of `linux/uio.h`).
pub(crate) const SLICES_MAX: usize = 1024;
/// Zeros written at a time, in bytes.
const ZEROS_BYTES: u64 = 64 << 10;
/// How long a lease may take to be given up.
const LEASE_PATIENCE: Duration = Duration::from_secs(3);
/// Interval between attempts to open a file despite a lease.
const LEASE_INTERVAL: Duration = Duration::from_millis(2);

/// Direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the file into guest memory.
    In,
    /// From guest memory to the file.
    Out,
}

/// How a range of a file is cleared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clearing {
    /// The range is given back to the file system and reads as zeros.
    PunchHole,
    /// The range reads as zeros and stays allocated.
    Zero,
}

/// The kind of extent to look for in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// Data that was written.
    Data,
    /// A hole, or the file's end.
    Hole,
}

/// The mode of a lock on a whole file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lock {
    /// Others may lock the file shared.
    Shared,
    /// Others may not lock the file.
    Exclusive,
    /// Releases the lock that this open file has.
    None,
}

/// Moves all bytes between `slices` and `file` from `offset` on. Guest memory that is written is
/// marked dirty, even if the call fails half-way.
///
/// # Errors
/// `UnexpectedEof` if the file ends before; otherwise the error from the system.
pub(crate) fn transfer(
    file: &File,
    offset: u64,
    slices: &[RamSlice<'_>],
    direction: Direction,
) -> io::Result<()> {
    let mut offset = offset;
    for batch in slices.chunks(SLICES_MAX) {
        transfer_batch(file, &mut offset, batch, direction)?;
    }
    Ok(())
}

fn transfer_batch(
    file: &File,
    offset: &mut u64,
    slices: &[RamSlice<'_>],
    direction: Direction,
) -> io::Result<()> {
    // The guards keep the mappings in place as long as the kernel may use the pointers.
    let guards: Vec<_> = slices.iter().map(RamSlice::ptr_guard_mut).collect();
    let mut vectors: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() })
        .collect();
    let result = transfer_vectors(file, offset, &mut vectors, direction);
    if direction == Direction::In {
        slices.iter().for_each(|slice| slice.bitmap().mark_dirty(0, slice.len()));
    }
    result
}

/// Repeats the call until all bytes are moved. The vectors must point to memory that stays mapped.
fn transfer_vectors(
    file: &File,
    offset: &mut u64,
    vectors: &mut [libc::iovec],
    direction: Direction,
) -> io::Result<()> {
    let mut rest = vectors;
    while !rest.is_empty() {
        let at = i64::try_from(*offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let (fd, count) = (file.as_raw_fd(), rest.len() as libc::c_int);
        // SAFETY: each vector is a slice of guest memory whose guard the caller holds, so it is
        // mapped and belongs to the guest alone; the kernel reads the vectors themselves and keeps
        // neither. The guest may write the same memory concurrently, which affects only the data:
        // no Rust reference to it exists.
        let moved = unsafe {
            match direction {
                Direction::In => libc::preadv(fd, rest.as_ptr(), count, at),
                Direction::Out => libc::pwritev(fd, rest.as_ptr(), count, at),
            }
        };
        match usize::try_from(moved) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(moved) => {
                *offset += moved as u64;
                rest = advance(rest, moved);
            }
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
    Ok(())
}

/// Skips the first `bytes` of `vectors`.
pub(crate) fn advance(vectors: &mut [libc::iovec], bytes: usize) -> &mut [libc::iovec] {
    let (mut left, mut whole) = (bytes, 0);
    for vector in vectors.iter_mut() {
        if left < vector.iov_len {
            vector.iov_base = vector.iov_base.cast::<u8>().wrapping_add(left).cast();
            vector.iov_len -= left;
            break;
        }
        left -= vector.iov_len;
        whole += 1;
    }
    &mut vectors[whole..]
}

/// Clears a range of a file or of a block device.
///
/// # Errors
/// `Unsupported` if the file system cannot do it; otherwise the error from the system.
pub(crate) fn clear(file: &File, offset: u64, bytes: u64, how: Clearing) -> io::Result<()> {
    let mode = match how {
        Clearing::PunchHole => libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE,
        Clearing::Zero => libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE,
    };
    let range = |number: u64| i64::try_from(number).map_err(|_| io::ErrorKind::InvalidInput);
    let (offset, bytes) = (range(offset)?, range(bytes)?);
    // SAFETY: fallocate accesses no memory of ours.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, bytes) })
}

/// As [`clear`]; writes zeros where the file system cannot clear.
///
/// # Errors
/// The error from the system.
pub(crate) fn clear_or_write(
    file: &File,
    offset: u64,
    bytes: u64,
    how: Clearing,
) -> io::Result<()> {
    match clear(file, offset, bytes, how) {
        Err(error) if is_unsupported(&error) => write_zero_bytes(file, offset, bytes),
        cleared => cleared,
    }
}

/// Gives a range back to the file system, which may read as anything then; does nothing where that
/// is not supported.
///
/// # Errors
/// The error from the system.
pub(crate) fn discard(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    match clear(file, offset, bytes, Clearing::PunchHole) {
        Err(error) if is_unsupported(&error) => Ok(()),
        cleared => cleared,
    }
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS))
}

/// Writes `bytes` zeros from `offset` on.
///
/// # Errors
/// The error from the system.
pub(crate) fn write_zero_bytes(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    // Aligned, for files with `O_DIRECT`.
    let zeros = aligned_memory(bytes.min(ZEROS_BYTES) as usize)?;
    let zeros = zeros.as_ref().into_slice();
    let mut done = 0;
    while done < bytes {
        let now = (bytes - done).min(ZEROS_BYTES);
        file.write_all_at(&zeros[..now as usize], offset + done)?;
        done += now;
    }
    Ok(())
}

/// Returns where the next extent begins, from `from` on; `None` if there is none before the file's
/// end. Changes the file's position, which positioned I/O does not use.
///
/// # Errors
/// `InvalidInput` if the file or its file system does not support it; otherwise the error from the
/// system.
pub(crate) fn seek_extent(file: &File, from: u64, what: Extent) -> io::Result<Option<u64>> {
    let whence = match what {
        Extent::Data => libc::SEEK_DATA,
        Extent::Hole => libc::SEEK_HOLE,
    };
    let from = i64::try_from(from).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: lseek accesses no memory of ours.
    let found = unsafe { libc::lseek(file.as_raw_fd(), from, whence) };
    match u64::try_from(found) {
        Ok(found) => Ok(Some(found)),
        Err(_) => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            error => Err(error),
        },
    }
}

/// Locks or unlocks a whole file for this open file description (`F_OFD_SETLK`): the lock ends when
/// the last copy of the descriptor is closed, and works between processes and within one.
///
/// # Errors
/// `WouldBlock` if another lock is in the way; otherwise the error from the system.
pub(crate) fn lock(file: &File, lock: Lock) -> io::Result<()> {
    lock_part(file, 0, 0, lock)
}

/// As [`lock`], for the `bytes` from `start` on; 0 `bytes` are all that follow, however long the
/// file becomes.
///
/// # Errors
/// Like [`lock`].
pub(crate) fn lock_part(file: &File, start: u64, bytes: u64, lock: Lock) -> io::Result<()> {
    let kind = match lock {
        Lock::Shared => libc::F_RDLCK,
        Lock::Exclusive => libc::F_WRLCK,
        Lock::None => libc::F_UNLCK,
    };
    let number = |number: u64| i64::try_from(number).map_err(|_| io::ErrorKind::InvalidInput);
    let part = libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: number(start)?,
        l_len: number(bytes)?,
        l_pid: 0,
    };
    // SAFETY: the kernel reads one `flock`, which outlives the call.
    let result =
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const part) });
    match result {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            Err(io::ErrorKind::WouldBlock.into())
        }
        result => result,
    }
}

/// Returns whether another open file description has locked any part of the file.
///
/// # Errors
/// The error from the system.
pub(crate) fn is_locked(file: &File) -> io::Result<bool> {
    let mut found = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut found))?;
    Ok(i32::from(found.l_type) != libc::F_UNLCK)
}

/// Calls `open`, which does not wait for others, and again while another process has a lease on the
/// file: an NFS server that has delegated it to a client recalls the delegation, and refuses other
/// opens until then.
///
/// # Errors
/// That of `open`; `WouldBlock` if the lease is not given up soon.
pub(crate) fn despite_lease(mut open: impl FnMut() -> io::Result<File>) -> io::Result<File> {
    let deadline = Instant::now() + LEASE_PATIENCE;
    loop {
        match open() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Err(_) if Instant::now() < deadline => std::thread::sleep(LEASE_INTERVAL),
            Err(_) => {
                let text = "an NFS client or another process has a lease on it: try again";
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            opened => return opened,
        }
    }
}

/// Clears `O_NONBLOCK`, with which a file was opened whose path is not trusted, and `O_DIRECT`: up
/// to Linux 5.14, io_uring answers reads of such a file that would block with EAGAIN, every time.
///
/// # Errors
/// If the system refuses.
pub(crate) fn make_blocking(file: &File) -> io::Result<()> {
    fcntl(file, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(())
}

/// Sets `O_DIRECT`, for this open file wherever it is used.
///
/// # Errors
/// `InvalidInput` if the file system does not support it; otherwise the error from the system.
pub(crate) fn make_direct(file: &File) -> io::Result<()> {
    fcntl(file, FcntlArg::F_SETFL(OFlag::O_DIRECT))?;
    Ok(())
}

/// Returns whether `file` is open for reading and writing at any place.
///
/// # Errors
/// If the system refuses.
pub(crate) fn may_write(file: &File) -> io::Result<bool> {
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    Ok(flags & (OFlag::O_ACCMODE | OFlag::O_APPEND) == OFlag::O_RDWR)
}

/// Returns the number of bytes to multiples of which offsets, lengths and memory must be aligned
/// with `O_DIRECT`; `None` if the kernel does not say so (before Linux 6.1), or there is no such.
pub(crate) fn direct_alignment(file: &File) -> Option<u64> {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    let (nothing, flags) = (c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: the path is a string that ends with zero, and the kernel writes one `statx`, which
    // is valid whatever it writes.
    let found = unsafe {
        let mask = libc::STATX_DIOALIGN;
        match libc::statx(file.as_raw_fd(), nothing, flags, mask, found.as_mut_ptr()) {
            0 => found.assume_init(),
            _ => return None,
        }
    };
    let is_told = found.stx_mask & libc::STATX_DIOALIGN != 0 && found.stx_dio_offset_align != 0;
    is_told.then(|| found.stx_dio_offset_align.max(found.stx_dio_mem_align).into())
}

/// Drops what this host has cached of a file, except dirty pages: another host may have written it
/// since. A refusal is ignored, as the call is only advice.
pub(crate) fn forget_cached(file: &File) {
    // SAFETY: posix_fadvise accesses no memory of ours.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
}

/// Fills `bytes` with the host's entropy, without blocking: it is available once the host has
/// booted.
///
/// # Errors
/// If the host has no entropy yet.
pub(crate) fn fill_random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: the kernel writes at most the length of `bytes`, which we borrow mutably.
    let filled =
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), libc::GRND_NONBLOCK) };
    // Requests of up to 256 bytes are never cut short (getrandom(2)).
    match usize::try_from(filled) {
        Ok(filled) if filled == bytes.len() => Ok(()),
        Ok(_) => Err(io::ErrorKind::Interrupted.into()),
        Err(_) => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(start: usize, len: usize) -> libc::iovec {
        libc::iovec { iov_base: start as *mut libc::c_void, iov_len: len }
    }

    #[test]
    fn a_short_transfer_continues_in_the_middle_of_a_buffer() {
        let left = |bytes| {
            let mut vectors = [vector(100, 10), vector(200, 20)];
            let rest = advance(&mut vectors, bytes);
            rest.iter().map(|rest| (rest.iov_base as usize, rest.iov_len)).collect::<Vec<_>>()
        };
        assert_eq!(left(0), [(100, 10), (200, 20)]);
        assert_eq!(left(4), [(104, 6), (200, 20)]);
        assert_eq!(left(10), [(200, 20)]);
        assert_eq!(left(29), [(219, 1)]);
        assert_eq!(left(30), []);
    }

    #[test]
    fn locks_exclude_each_other_within_one_process() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let other = file.reopen().unwrap();
        lock(file.as_file(), Lock::Exclusive).unwrap();
        let refused = lock(&other, Lock::Shared).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
        lock(file.as_file(), Lock::None).unwrap();
        lock(&other, Lock::Shared).unwrap();
        lock(file.as_file(), Lock::Shared).unwrap();
        assert!(lock(&other, Lock::Exclusive).is_err());
    }

    #[test]
    fn a_lock_is_for_a_part_or_for_all_and_others_see_it() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let [one, other, third] = [(); 3].map(|()| file.reopen().unwrap());
        assert!(!is_locked(&one).unwrap());
        lock_part(&one, 512, 512, Lock::Exclusive).unwrap();
        assert!(!is_locked(&one).unwrap() && is_locked(&other).unwrap());
        lock_part(&other, 1024, 0, Lock::Exclusive).unwrap();
        for (start, bytes) in [(0, 0), (1023, 1), (u64::MAX >> 2, 1)] {
            let refused = lock_part(&third, start, bytes, Lock::Shared).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::WouldBlock, "{start}");
        }
        lock_part(&third, 0, 512, Lock::Exclusive).unwrap();
        let absurd = lock_part(&third, u64::MAX, 1, Lock::Shared).unwrap_err();
        assert_eq!(absurd.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn entropy_differs() {
        let (mut one, mut two) = ([0; 256], [0; 256]);
        fill_random(&mut one).unwrap();
        fill_random(&mut two).unwrap();
        assert_ne!(one, two);
    }
}
