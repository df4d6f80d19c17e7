//! Asynchronous write-protection of this process's memory: userfaultfd (`linux/userfaultfd.h`,
//! Documentation/admin-guide/mm/userfaultfd.rst), which libc lacks.

use std::fs::File;
use std::io::{Error, Result};
use std::ops::Range;
use std::os::fd::{FromRawFd, RawFd};

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iowr_nr};

use super::check;

/// `UFFDIO`: the type of the requests.
const TYPE: u32 = 0xaa;

ioctl_iowr_nr!(UFFDIO_API, TYPE, 0x3f, Api);
ioctl_iowr_nr!(UFFDIO_REGISTER, TYPE, 0x00, Register);
ioctl_ior_nr!(UFFDIO_UNREGISTER, TYPE, 0x01, Addresses);

/// The requests with which memory is write-protected (`UFFDIO_REGISTER` and `UFFDIO_UNREGISTER` of
/// `linux/userfaultfd.h`), for the confinement of the process of a guest that has a template.
pub const WRITE_PROTECTION_REQUESTS: [u64; 2] = [0xc020_aa00, 0x8010_aa01];

/// `UFFD_API`.
const API: u64 = 0xaa;
/// `UFFD_FEATURE_WP_ASYNC`: whoever writes to a protected page takes the protection away and goes
/// on.
const WP_ASYNC: u64 = 1 << 15;
/// `UFFDIO_REGISTER_MODE_WP`.
const MODE_WP: u64 = 1 << 1;
/// `UFFD_USER_MODE_ONLY`: faults of the kernel are never handed to this process, for which others
/// need a right (`vm.unprivileged_userfaultfd`). With `WP_ASYNC` none is.
const USER_MODE_ONLY: libc::c_int = 1;

/// `struct uffdio_api`.
#[repr(C)]
#[derive(Debug, Default)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Debug, Default)]
struct Addresses {
    start: u64,
    len: u64,
}

impl From<&Range<u64>> for Addresses {
    fn from(range: &Range<u64>) -> Self {
        Self { start: range.start, len: range.end.saturating_sub(range.start) }
    }
}

/// `struct uffdio_register`.
#[repr(C)]
#[derive(Debug, Default)]
struct Register {
    range: Addresses,
    mode: u64,
    ioctls: u64,
}

/// Has memory of this process write-protected, of which whoever writes to it notices nothing. What
/// is protected, and what was written since, is for [`super::pagemap`] to do and to tell.
#[derive(Debug)]
pub(crate) struct Userfaultfd {
    file: File,
}

impl Userfaultfd {
    /// Opens one.
    ///
    /// # Errors
    /// `EINVAL` of a kernel before 6.7, `ENOSYS` of one that was built without it, `EPERM` where
    /// this process may not; otherwise the kernel's answer.
    pub(crate) fn open() -> Result<Self> {
        // SAFETY: the call takes flags alone and makes a descriptor.
        let made = unsafe {
            libc::syscall(
                libc::SYS_userfaultfd,
                USER_MODE_ONLY | libc::O_CLOEXEC | libc::O_NONBLOCK,
            )
        };
        let descriptor = RawFd::try_from(made).ok().filter(|made| *made >= 0);
        let descriptor = descriptor.ok_or_else(Error::last_os_error)?;
        // SAFETY: the kernel has just made it, and nobody else has it.
        let file = unsafe { File::from_raw_fd(descriptor) };
        let mut argument = Api { api: API, features: WP_ASYNC, ioctls: 0 };
        // SAFETY: the kernel reads and writes one `struct uffdio_api`.
        check(unsafe { ioctl_with_mut_ref(&file, UFFDIO_API(), &mut argument) })?;
        Ok(Self { file })
    }

    /// Lets pages at `addresses`, whole ones, be protected.
    ///
    /// # Errors
    /// `EBUSY` when another userfaultfd has them, `ENOMEM` when the process has as many mappings as
    /// it may have; otherwise the kernel's answer.
    pub(crate) fn register(&self, addresses: &Range<u64>) -> Result<()> {
        let mut argument = Register { range: addresses.into(), mode: MODE_WP, ioctls: 0 };
        // SAFETY: the kernel reads and writes one `struct uffdio_register`. Memory keeps its
        // content, and no access to it ever waits for this process: in this mode the kernel itself
        // takes protections away.
        check(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_REGISTER(), &mut argument) })
    }

    /// Takes all protections at `addresses` away; all of them must have been registered, or be
    /// anonymous.
    ///
    /// # Errors
    /// The kernel's answer.
    pub(crate) fn unregister(&self, addresses: &Range<u64>) -> Result<()> {
        let argument = Addresses::from(addresses);
        // SAFETY: the kernel reads one `struct uffdio_range`. Memory keeps its content.
        check(unsafe { ioctl_with_ref(&self.file, UFFDIO_UNREGISTER(), &argument) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_are_what_seccomp_lets_through() {
        let requests = [UFFDIO_REGISTER(), UFFDIO_UNREGISTER()];
        assert_eq!(requests, WRITE_PROTECTION_REQUESTS);
    }
}
