//! Asynchronous write-protection of this process's memory: userfaultfd (`linux/userfaultfd.h`,
//! Documentation/admin-guide/mm/userfaultfd.rst), which libc lacks.

pub(crate) mod missing;

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

/// The requests that enable and end write-protection (`UFFDIO_REGISTER` and `UFFDIO_UNREGISTER` of
/// `linux/userfaultfd.h`), for the seccomp filter of a guest process that uses a template.
pub const WRITE_PROTECTION_REQUESTS: [u64; 2] = [0xc020_aa00, 0x8010_aa01];

/// `UFFD_API`: the version of the kernel's interface.
const API: u64 = 0xaa;
/// `UFFD_FEATURE_WP_ASYNC`: on a write to a protected page the kernel removes the protection, and
/// the writer continues.
const WP_ASYNC: u64 = 1 << 15;
/// `UFFDIO_REGISTER_MODE_WP`: register memory for write-protection.
const MODE_WP: u64 = 1 << 1;
/// `UFFD_USER_MODE_ONLY`: this process handles no faults of the kernel, which would require a
/// privilege (`vm.unprivileged_userfaultfd`). With `WP_ASYNC` it handles no faults at all.
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

/// Makes a userfaultfd by the system call, with these flags besides the usual ones.
fn create(flags: libc::c_int) -> Result<File> {
    let flags = flags | libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the call takes only flags and creates a descriptor.
    let made = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    // SAFETY: this is the call's result.
    unsafe { own(made) }
}

/// Takes what a call returned: a new descriptor, or a negative number on failure.
///
/// # Safety
/// `made` must be the result of the last system call of this thread, and that must be one that
/// creates a descriptor.
unsafe fn own(made: libc::c_long) -> Result<File> {
    let descriptor = RawFd::try_from(made).ok().filter(|made| *made >= 0);
    let descriptor = descriptor.ok_or_else(Error::last_os_error)?;
    // SAFETY: the kernel has just created the descriptor, so nothing else owns it.
    Ok(unsafe { File::from_raw_fd(descriptor) })
}

/// Agrees with the kernel on the interface and on `features`, which must come first.
fn agree(file: &File, features: u64) -> Result<()> {
    let mut argument = Api { api: API, features, ioctls: 0 };
    // SAFETY: the kernel reads and writes one `struct uffdio_api`.
    check(unsafe { ioctl_with_mut_ref(file, UFFDIO_API(), &mut argument) })
}

/// Lets memory of this process be write-protected without disturbing writers. [`super::pagemap`]
/// sets the protection and reports what was written since.
#[derive(Debug)]
pub(crate) struct Userfaultfd {
    file: File,
}

impl Userfaultfd {
    /// Opens a userfaultfd for asynchronous write-protection.
    ///
    /// # Errors
    /// `EINVAL` from a kernel before 6.7, `ENOSYS` from one that was built without it, `EPERM` if
    /// this process may not have one; otherwise the error from the kernel.
    pub(crate) fn open() -> Result<Self> {
        let file = create(USER_MODE_ONLY)?;
        agree(&file, WP_ASYNC)?;
        Ok(Self { file })
    }

    /// Registers `addresses`, whole pages, so that they can be protected.
    ///
    /// # Errors
    /// `EBUSY` if another userfaultfd has registered them, `ENOMEM` if the process has reached its
    /// limit of mappings; otherwise the error from the kernel.
    pub(crate) fn register(&self, addresses: &Range<u64>) -> Result<()> {
        let mut argument = Register { range: addresses.into(), mode: MODE_WP, ioctls: 0 };
        // SAFETY: the kernel reads and writes one `struct uffdio_register`. Memory keeps its
        // content, and no access to it ever waits for this process: in this mode the kernel itself
        // removes protections.
        check(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_REGISTER(), &mut argument) })
    }

    /// Removes all protections at `addresses`, all of which must be registered, or anonymous.
    ///
    /// # Errors
    /// The error from the kernel.
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
