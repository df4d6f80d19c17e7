//! Pages that are missing from this process's memory: an access to one waits until this process has
//! placed the page (`linux/userfaultfd.h`).

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Result};
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use vmm_sys_util::ioctl::{
    _IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr, ioctl_with_mut_ref, ioctl_with_ref,
    ioctl_with_val,
};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iowr_nr};

use super::{
    Addresses, Api, Register, TYPE, UFFDIO_REGISTER, UFFDIO_UNREGISTER, agree, create, own,
};
use crate::sys::mapping::Part;
use crate::sys::{PAGE_BYTES, check};

ioctl_io_nr!(USERFAULTFD_IOC_NEW, TYPE, 0x00);
ioctl_ior_nr!(UFFDIO_WAKE, TYPE, 0x02, Addresses);
ioctl_iowr_nr!(UFFDIO_COPY, TYPE, 0x03, CopyArgument);
ioctl_iowr_nr!(UFFDIO_ZEROPAGE, TYPE, 0x04, ZeroArgument);

/// The requests on an open userfaultfd that this module makes, for the seccomp filter of the
/// process of an arriving guest: `UFFDIO_REGISTER`, `UFFDIO_UNREGISTER`, `UFFDIO_WAKE`,
/// `UFFDIO_COPY` and `UFFDIO_ZEROPAGE`.
pub const MISSING_REQUESTS: [u64; 5] =
    [0xc020_aa00, 0x8010_aa01, 0x8010_aa02, 0xc028_aa03, 0xc020_aa04];

/// Where a userfaultfd can be had by permission on a file (Linux 6.1).
const DEVICE: &str = "/dev/userfaultfd";
/// `UFFDIO_REGISTER_MODE_MISSING`: register memory for faults on missing pages.
const MODE_MISSING: u64 = 1 << 0;
/// Requests that must be possible on registered memory, as bits: `_UFFDIO_WAKE`, `_UFFDIO_COPY` and
/// `_UFFDIO_ZEROPAGE`. Pages of a pool lack the last.
const NEEDED: u64 = 1 << 0x02 | 1 << 0x03 | 1 << 0x04;
/// `UFFD_EVENT_PAGEFAULT`, the only event without further features.
const EVENT_PAGEFAULT: u8 = 0x12;
/// Bytes of an event (`struct uffd_msg`).
const EVENT_BYTES: usize = 32;
/// Offset of the address in an event of a fault.
const EVENT_ADDRESS: usize = 16;
/// Most events taken from the kernel at once.
const EVENTS_MAX: usize = 64;

/// `struct uffdio_copy`.
#[repr(C)]
#[derive(Debug, Default)]
struct CopyArgument {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    /// Bytes placed, or a negative error number.
    placed: i64,
}

/// `struct uffdio_zeropage`.
#[repr(C)]
#[derive(Debug, Default)]
struct ZeroArgument {
    range: Addresses,
    mode: u64,
    /// Bytes placed, or a negative error number.
    placed: i64,
}

const fn request(direction: u32, number: u32, bytes: usize) -> u64 {
    ioctl_expr(direction, TYPE, number, bytes as u32)
}

// The kernel's numbers, written out for seccomp, are those of the structures above.
const _: () = {
    const BOTH: u32 = _IOC_READ | _IOC_WRITE;
    assert!(size_of::<Api>() == 24 && size_of::<Addresses>() == 16);
    assert!(size_of::<Register>() == 32 && size_of::<ZeroArgument>() == 32);
    assert!(size_of::<CopyArgument>() == 40);
    let [register, unregister, wake, copy, zero] = MISSING_REQUESTS;
    assert!(register == request(BOTH, 0x00, size_of::<Register>()));
    assert!(unregister == request(_IOC_READ, 0x01, size_of::<Addresses>()));
    assert!(wake == request(_IOC_READ, 0x02, size_of::<Addresses>()));
    assert!(copy == request(BOTH, 0x03, size_of::<CopyArgument>()));
    assert!(zero == request(BOTH, 0x04, size_of::<ZeroArgument>()));
    assert!(request(_IOC_NONE, 0x00, 0) == 0xaa00);
};

/// Reports accesses to missing pages of registered memory, and places pages there. Dropping it
/// unregisters the memory: threads that wait then find zeros.
///
/// It can be polled: it is readable when a thread has begun to wait.
#[derive(Debug)]
pub struct MissingPages {
    file: File,
}

impl MissingPages {
    /// Opens a userfaultfd that reports the kernel's own accesses too, which are those of KVM and
    /// of system calls on guest memory.
    ///
    /// # Errors
    /// `EPERM` if this process may neither open `/dev/userfaultfd` nor has `CAP_SYS_PTRACE`,
    /// `ENOSYS` from a kernel that was built without it; otherwise the error from the kernel.
    pub fn open() -> Result<Self> {
        let file = Self::by_device().or_else(|_| create(0))?;
        // Faults on missing pages of anonymous memory take no feature.
        agree(&file, 0)?;
        Ok(Self { file })
    }

    fn by_device() -> Result<File> {
        let device = OpenOptions::new().read(true).write(true).open(DEVICE)?;
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the request takes only flags and creates a descriptor.
        let made =
            unsafe { ioctl_with_val(&device, USERFAULTFD_IOC_NEW(), flags as libc::c_ulong) };
        // SAFETY: this is the call's result.
        unsafe { own(made.into()) }
    }

    /// Registers a part of guest memory. From now on, a thread that accesses an absent page of it
    /// waits for [`Self::copy`] or [`Self::zero`]; present pages are not affected.
    ///
    /// # Errors
    /// `Unsupported` for pages of a pool, `EINVAL` for pages of a file, `EBUSY` if another
    /// userfaultfd has registered the memory; otherwise the error from the kernel.
    pub(crate) fn register(&self, part: Part<'_>) -> Result<()> {
        let range = Addresses::from(&part.addresses());
        let mut argument = Register { range, mode: MODE_MISSING, ioctls: 0 };
        // SAFETY: the kernel reads and writes one `struct uffdio_register`. The part is guest
        // memory, which is only ever accessed as volatile, so a page may get any content; accesses
        // that wait are no matter of memory safety.
        check(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_REGISTER(), &mut argument) })?;
        if argument.ioctls & NEEDED == NEEDED {
            return Ok(());
        }
        self.unregister(part)?;
        Err(ErrorKind::Unsupported.into())
    }

    /// Ends the registration of a part. Threads that wait for a page of it find zeros.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn unregister(&self, part: Part<'_>) -> Result<()> {
        let argument = Addresses::from(&part.addresses());
        // SAFETY: the kernel reads one `struct uffdio_range`. Memory keeps its content.
        check(unsafe { ioctl_with_ref(&self.file, UFFDIO_UNREGISTER(), &argument) })
    }

    /// Places `content`, whole pages, from `address` on, a page boundary, and wakes those who wait
    /// for these pages. A page that is present keeps its content.
    ///
    /// # Errors
    /// `ENOENT` if the memory is not registered here, `ENOMEM` if the host has no page; some pages
    /// may be placed then. Otherwise the error from the kernel.
    pub(crate) fn copy(&self, address: u64, content: &[u8]) -> Result<()> {
        let mut done = 0;
        while let Some(rest) = content.get(done..).filter(|rest| !rest.is_empty()) {
            let to = address + done as u64;
            let (from, bytes) = (rest.as_ptr() as u64, rest.len() as u64);
            let mut argument = CopyArgument { to, from, bytes, mode: 0, placed: 0 };
            // SAFETY: the kernel reads and writes one `struct uffdio_copy`, and reads `rest`. It
            // writes only to memory that is registered with this file, which is guest memory, and
            // only where no page is mapped; anything else is an error.
            let result = unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_COPY(), &mut argument) };
            done += self.settled(check(result), argument.placed, to, rest.len())?;
        }
        Ok(())
    }

    /// Places zeros at `addresses`, whole pages, as [`Self::copy`] does; they take no memory until
    /// they are written.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub(crate) fn zero(&self, addresses: &Range<u64>) -> Result<()> {
        let mut start = addresses.start;
        while start < addresses.end {
            let range = Addresses::from(&(start..addresses.end));
            let mut argument = ZeroArgument { range, mode: 0, placed: 0 };
            // SAFETY: the kernel reads and writes one `struct uffdio_zeropage`. It maps pages only
            // into memory that is registered with this file, which is guest memory, and only where
            // no page is mapped; anything else is an error.
            let result =
                unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_ZEROPAGE(), &mut argument) };
            let bytes = (addresses.end - start) as usize;
            start += self.settled(check(result), argument.placed, start, bytes)? as u64;
        }
        Ok(())
    }

    /// Returns how many of the `bytes` from `address` on have pages after a request that has placed
    /// `placed` of them; 0 if it must be tried again.
    fn settled(
        &self,
        result: Result<()>,
        placed: i64,
        address: u64,
        bytes: usize,
    ) -> Result<usize> {
        let Err(error) = result else { return Ok(bytes) };
        match error.raw_os_error() {
            // It stopped at a page that is present, or while another thread changes mappings.
            Some(libc::EAGAIN) => Ok(usize::try_from(placed).unwrap_or(0)),
            Some(libc::EEXIST) => {
                self.wake(&(address..address + PAGE_BYTES as u64))?;
                Ok(PAGE_BYTES)
            }
            _ => Err(error),
        }
    }

    /// Wakes those who wait for a page at `addresses`: they try again, and wait again, as reported
    /// by a new event, if it is still absent.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn wake(&self, addresses: &Range<u64>) -> Result<()> {
        let argument = Addresses::from(addresses);
        // SAFETY: the kernel reads one `struct uffdio_range`, and changes no memory.
        check(unsafe { ioctl_with_ref(&self.file, UFFDIO_WAKE(), &argument) })
    }

    /// Returns the addresses of the pages for which threads have begun to wait since the last call;
    /// several threads may wait for one page. Returns at once.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn waited_for(&self) -> Result<Vec<u64>> {
        let mut bytes = [0; EVENT_BYTES * EVENTS_MAX];
        let mut found = Vec::new();
        loop {
            let count = match (&self.file).read(&mut bytes) {
                Ok(0) => return Ok(found),
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(found),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            for event in bytes[..count].as_chunks::<EVENT_BYTES>().0 {
                found.push(address(event).ok_or(ErrorKind::InvalidData)?);
            }
        }
    }
}

impl AsFd for MissingPages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Returns the address of the page whose absence an event reports; `None` for another event.
fn address(event: &[u8; EVENT_BYTES]) -> Option<u64> {
    let address = event.get(EVENT_ADDRESS..)?.first_chunk::<8>()?;
    let address = u64::from_ne_bytes(*address) & !(PAGE_BYTES as u64 - 1);
    (event[0] == EVENT_PAGEFAULT).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_requests_are_what_seccomp_lets_through() {
        let requests = [
            UFFDIO_REGISTER(),
            UFFDIO_UNREGISTER(),
            UFFDIO_WAKE(),
            UFFDIO_COPY(),
            UFFDIO_ZEROPAGE(),
        ];
        assert_eq!(requests, MISSING_REQUESTS);
        assert_eq!(USERFAULTFD_IOC_NEW(), 0xaa00);
    }

    #[test]
    fn both_ways_lead_to_one() {
        for file in [MissingPages::by_device(), create(0)] {
            let file = file.expect("this test needs Linux 6.1, and root");
            agree(&file, 0).unwrap();
            assert!(MissingPages { file }.waited_for().unwrap().is_empty());
        }
    }

    #[test]
    fn only_faults_have_an_address() {
        let mut event = [0; EVENT_BYTES];
        event[EVENT_ADDRESS..][..8].copy_from_slice(&0x7000_1234_u64.to_ne_bytes());
        assert_eq!(address(&event), None);
        event[0] = EVENT_PAGEFAULT;
        assert_eq!(address(&event), Some(0x7000_1000));
    }
}
