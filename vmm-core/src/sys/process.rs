//! System calls on the memory of another process: `process_madvise(2)`.

use std::io::{Error, Result};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::MADV_COLLAPSE;

/// Collapses the memory at `addresses` of `process`, a pidfd, into huge pages (`MADV_COLLAPSE`,
/// Linux 6.1).
///
/// # Errors
/// The error from the kernel.
pub(crate) fn collapse(process: BorrowedFd<'_>, addresses: &Range<u64>) -> Result<()> {
    let part = libc::iovec {
        iov_base: addresses.start as usize as *mut libc::c_void,
        iov_len: (addresses.end - addresses.start) as usize,
    };
    let (process, advice) = (process.as_raw_fd(), MADV_COLLAPSE);
    // SAFETY: the kernel reads one iovec, whose address belongs to the other process and is not
    // accessed in this one; the other process reads the same content afterwards.
    let done = unsafe {
        libc::syscall(libc::SYS_process_madvise, process, &raw const part, 1_usize, advice, 0_u32)
    };
    if done < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
