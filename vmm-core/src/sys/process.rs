//! What the kernel is asked to do with the memory of another process: `process_madvise(2)`.

use std::io::{Error, Result};
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes huge pages of what is at `addresses` of `process`, a pidfd (`MADV_COLLAPSE`, Linux 6.1).
///
/// # Errors
/// The kernel's answer.
pub(crate) fn collapse(process: BorrowedFd<'_>, addresses: &Range<u64>) -> Result<()> {
    let part = libc::iovec {
        iov_base: addresses.start as usize as *mut libc::c_void,
        iov_len: (addresses.end - addresses.start) as usize,
    };
    let (process, advice) = (process.as_raw_fd(), libc::MADV_COLLAPSE);
    // SAFETY: the kernel reads the one iovec, whose address is of the other process and means
    // nothing in this one; that process reads the same afterwards.
    let done = unsafe {
        libc::syscall(libc::SYS_process_madvise, process, &raw const part, 1_usize, advice, 0_u32)
    };
    if done < 0 { Err(Error::last_os_error()) } else { Ok(()) }
}
