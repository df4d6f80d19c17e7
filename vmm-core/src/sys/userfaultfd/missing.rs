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
ioctl_iowr_nr!(UFFDIO_ZEROPAGE, TYPE, 0x04, RangeArgument);
ioctl_iowr_nr!(UFFDIO_CONTINUE, TYPE, 0x07, RangeArgument);

/// The requests on an open userfaultfd that this module makes, for the seccomp filter of the
/// process of an arriving guest: `UFFDIO_REGISTER`, `UFFDIO_UNREGISTER`, `UFFDIO_WAKE`,
/// `UFFDIO_COPY`, `UFFDIO_ZEROPAGE` and `UFFDIO_CONTINUE`.
pub const MISSING_REQUESTS: [u64; 6] =
    [0xc020_aa00, 0x8010_aa01, 0x8010_aa02, 0xc028_aa03, 0xc020_aa04, 0xc020_aa07];

/// Where a userfaultfd can be had by permission on a file (Linux 6.1).
const DEVICE: &str = "/dev/userfaultfd";
/// `UFFDIO_REGISTER_MODE_MISSING`: register memory for faults on pages without content.
const MODE_MISSING: u64 = 1 << 0;
/// `UFFDIO_REGISTER_MODE_MINOR`: register memory for faults on pages that are in their file, and
/// not mapped.
const MODE_MINOR: u64 = 1 << 2;
/// `UFFD_FEATURE_MINOR_HUGETLBFS` (Linux 5.13).
const MINOR_HUGETLBFS: u64 = 1 << 9;
/// Requests that must be possible on memory registered as missing, as bits: `_UFFDIO_WAKE`,
/// `_UFFDIO_COPY` and `_UFFDIO_ZEROPAGE`.
const NEEDED_FOR_CONTENT: u64 = 1 << 0x02 | 1 << 0x03 | 1 << 0x04;
/// The same for minor faults: `_UFFDIO_WAKE` and `_UFFDIO_CONTINUE`.
const NEEDED_FOR_MAPPING: u64 = 1 << 0x02 | 1 << 0x07;
/// `UFFD_EVENT_PAGEFAULT`, the only event without features for others.
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

/// `struct uffdio_zeropage`, and `struct uffdio_continue`.
#[repr(C)]
#[derive(Debug, Default)]
struct RangeArgument {
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
    assert!(size_of::<Register>() == 32 && size_of::<RangeArgument>() == 32);
    assert!(size_of::<CopyArgument>() == 40);
    let [register, unregister, wake, copy, zero, map] = MISSING_REQUESTS;
    assert!(register == request(BOTH, 0x00, size_of::<Register>()));
    assert!(unregister == request(_IOC_READ, 0x01, size_of::<Addresses>()));
    assert!(wake == request(_IOC_READ, 0x02, size_of::<Addresses>()));
    assert!(copy == request(BOTH, 0x03, size_of::<CopyArgument>()));
    assert!(zero == request(BOTH, 0x04, size_of::<RangeArgument>()));
    assert!(map == request(BOTH, 0x07, size_of::<RangeArgument>()));
    assert!(request(_IOC_NONE, 0x00, 0) == 0xaa00);
};

/// What accesses to registered memory wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Absent pages of anonymous memory: for [`MissingPages::copy`] or [`MissingPages::zero`].
    ForContent,
    /// Pages of a pool's file that are there, and were unmapped: for [`MissingPages::map`]. Those
    /// that are not there are zeros, without a wait.
    ForMapping,
}

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
        // A kernel without that feature can still report missing pages of anonymous memory.
        agree(&file, MINOR_HUGETLBFS).or_else(|_| agree(&file, 0))?;
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
    /// waits; present pages are not affected.
    ///
    /// # Errors
    /// `Unsupported` or `EINVAL` for memory of another kind, `EBUSY` if another userfaultfd has
    /// registered it; otherwise the error from the kernel.
    pub(crate) fn register(&self, part: Part<'_>, waiting: Waiting) -> Result<()> {
        let range = Addresses::from(&part.addresses());
        let (mode, needed) = match waiting {
            Waiting::ForContent => (MODE_MISSING, NEEDED_FOR_CONTENT),
            Waiting::ForMapping => (MODE_MINOR, NEEDED_FOR_MAPPING),
        };
        let mut argument = Register { range, mode, ioctls: 0 };
        // SAFETY: the kernel reads and writes one `struct uffdio_register`. The part is guest
        // memory, which is only ever accessed as volatile, so a page may get any content; accesses
        // that wait are no matter of memory safety.
        check(unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_REGISTER(), &mut argument) })?;
        if argument.ioctls & needed == needed {
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
            let addresses = to..to + bytes;
            let mut argument = CopyArgument { to, from, bytes, mode: 0, placed: 0 };
            // SAFETY: the kernel reads and writes one `struct uffdio_copy`, and reads `rest`. It
            // writes only to memory that is registered with this file, which is guest memory, and
            // only where no page is mapped; anything else is an error.
            let result = unsafe { ioctl_with_mut_ref(&self.file, UFFDIO_COPY(), &mut argument) };
            done += self.settled(check(result), argument.placed, &addresses, PAGE_BYTES)?;
        }
        Ok(())
    }

    /// Places zeros at `addresses`, whole pages, as [`Self::copy`] does; they take no memory until
    /// they are written.
    ///
    /// # Errors
    /// As [`Self::copy`].
    pub(crate) fn zero(&self, addresses: &Range<u64>) -> Result<()> {
        self.over(UFFDIO_ZEROPAGE(), addresses, PAGE_BYTES)
    }

    /// Maps the huge page at `addresses`, which is in its file, unless it is mapped already, and
    /// wakes those who wait for it.
    ///
    /// # Errors
    /// `ENOENT` if the memory is not registered here, `EFAULT` if the page is not in its file.
    /// Otherwise the error from the kernel.
    pub(crate) fn map(&self, addresses: &Range<u64>) -> Result<()> {
        self.over(UFFDIO_CONTINUE(), addresses, (addresses.end - addresses.start) as usize)
    }

    /// Makes a request that gives pages of `page` bytes to all of `addresses`.
    fn over(&self, request: libc::c_ulong, addresses: &Range<u64>, page: usize) -> Result<()> {
        let mut start = addresses.start;
        while start < addresses.end {
            let rest = start..addresses.end;
            let mut argument = RangeArgument { range: (&rest).into(), mode: 0, placed: 0 };
            // SAFETY: the kernel reads and writes one `struct uffdio_zeropage` or `struct
            // uffdio_continue`. It maps pages only into memory that is registered with this file,
            // which is guest memory, and only where no page is mapped; anything else is an error.
            let result = unsafe { ioctl_with_mut_ref(&self.file, request, &mut argument) };
            start += self.settled(check(result), argument.placed, &rest, page)? as u64;
        }
        Ok(())
    }

    /// Returns how many bytes at the start of `addresses` have pages of `page` bytes after a
    /// request that has given `placed` of them some; 0 if it must be tried again.
    fn settled(
        &self,
        result: Result<()>,
        placed: i64,
        addresses: &Range<u64>,
        page: usize,
    ) -> Result<usize> {
        let start = addresses.start;
        let Err(error) = result else { return Ok((addresses.end - start) as usize) };
        match error.raw_os_error() {
            // It stopped at a page that is present, or while another thread changes mappings.
            Some(libc::EAGAIN) => Ok(usize::try_from(placed).unwrap_or(0)),
            Some(libc::EEXIST) => {
                self.wake(&(start..start + page as u64))?;
                Ok(page)
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
            UFFDIO_CONTINUE(),
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
