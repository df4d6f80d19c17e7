//! Raw system calls on taps and network interfaces: the ioctls of `linux/if_tun.h` and
//! `linux/sockios.h`, and frames straight into and out of guest memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use vm_memory::bitmap::Bitmap;

use super::{RamSlice, check};

/// Most buffers of a frame (`UIO_MAXIOV` of `linux/uio.h`), without the one that catches what is
/// too long.
pub(crate) const SLICES_MAX: usize = 1023;
/// Longest name of an interface, in bytes, without the zero behind it.
pub(crate) const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

/// `SIOCBRADDIF` of `linux/sockios.h`.
const ADD_TO_BRIDGE: libc::c_ulong = 0x89a2;
/// `ETHTOOL_GDRVINFO` of `linux/ethtool.h`.
const GET_DRIVER: u32 = 3;
/// Bytes of `struct ethtool_drvinfo`, and where in it the driver's name is.
const DRIVER_INFO_BYTES: usize = 196;
const DRIVER_NAME: std::ops::Range<usize> = 4..36;

/// Whether there is such a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// As if the cable were plugged in.
    On,
    /// As if it were not.
    Off,
}

/// What came of receiving a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// A frame of so many bytes.
    Frame(usize),
    /// A frame that was longer than the buffers; it is lost.
    TooLong,
}

/// Attaches `tun`, an open `/dev/net/tun`, to the interface `name`, or makes it; a `%d` in the name
/// becomes a number. Returns the name.
///
/// # Errors
/// The system's answer; `InvalidInput` for a name that no interface can have.
pub(crate) fn attach(tun: &File, name: &str, flags: libc::c_int) -> io::Result<String> {
    let mut request = request(name)?;
    // TUNSETIFF looks at the lower 16 bits, which is what a `short` has.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    let bytes = request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8);
    Ok(String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned())
}

/// Sets how many bytes of virtio-net's header are before each frame.
///
/// # Errors
/// The system's answer.
pub(crate) fn set_header_bytes(tun: &File, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one `int`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// Sets what the frames that are read may leave to the reader (`TUN_F_*`).
///
/// # Errors
/// The system's answer.
pub(crate) fn set_offloads(tun: &File, offloads: libc::c_uint) -> io::Result<()> {
    let offloads = libc::c_ulong::from(offloads);
    // SAFETY: the argument is a number.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
}

/// Plugs the tap in, or out.
///
/// # Errors
/// The system's answer: kernels before 5.0 cannot.
pub(crate) fn set_carrier(tun: &File, carrier: Carrier) -> io::Result<()> {
    let on = libc::c_int::from(carrier == Carrier::On);
    // SAFETY: the kernel reads one `int`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETCARRIER, &raw const on) })
}

/// A socket on which the system is asked about interfaces. The family does not matter to the
/// system; a guest's process that is confined may have Unix sockets only for vsock.
pub(crate) fn control() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// The index of an interface.
///
/// # Errors
/// `ENODEV` when there is none; `InvalidInput` for a name that no interface can have.
pub(crate) fn index(control: &OwnedFd, name: &str) -> io::Result<libc::c_int> {
    let answer = ask(control, libc::SIOCGIFINDEX, request(name)?)?;
    // SAFETY: SIOCGIFINDEX fills in this field, and any bytes are a valid number.
    Ok(unsafe { answer.ifr_ifru.ifru_ifindex })
}

/// The MTU of an interface.
///
/// # Errors
/// As [`index`].
pub(crate) fn mtu(control: &OwnedFd, name: &str) -> io::Result<u32> {
    let answer = ask(control, libc::SIOCGIFMTU, request(name)?)?;
    // SAFETY: SIOCGIFMTU fills in this field, and any bytes are a valid number.
    Ok(u32::try_from(unsafe { answer.ifr_ifru.ifru_mtu }).unwrap_or(0))
}

/// Sets the MTU of an interface.
///
/// # Errors
/// The system's answer.
pub(crate) fn set_mtu(control: &OwnedFd, name: &str, mtu: u32) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu as libc::c_int;
    ask(control, libc::SIOCSIFMTU, request).map(drop)
}

/// Sets the hardware address of an interface.
///
/// # Errors
/// The system's answer.
pub(crate) fn set_hardware_address(
    control: &OwnedFd,
    name: &str,
    address: [u8; 6],
) -> io::Result<()> {
    let mut request = request(name)?;
    let mut place = libc::sockaddr { sa_family: libc::ARPHRD_ETHER, sa_data: [0; 14] };
    for (to, from) in place.sa_data.iter_mut().zip(address) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_hwaddr = place;
    ask(control, libc::SIOCSIFHWADDR, request).map(drop)
}

/// Whether an interface is up.
///
/// # Errors
/// As [`index`].
pub(crate) fn is_up(control: &OwnedFd, name: &str) -> io::Result<bool> {
    Ok(libc::c_int::from(flags(control, name)?) & libc::IFF_UP != 0)
}

/// Sets an interface up or down.
///
/// # Errors
/// The system's answer.
pub(crate) fn set_up(control: &OwnedFd, name: &str, up: Carrier) -> io::Result<()> {
    let before = libc::c_int::from(flags(control, name)?);
    let after = match up {
        Carrier::On => before | libc::IFF_UP,
        Carrier::Off => before & !libc::IFF_UP,
    };
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = after as libc::c_short;
    ask(control, libc::SIOCSIFFLAGS, request).map(drop)
}

fn flags(control: &OwnedFd, name: &str) -> io::Result<libc::c_short> {
    let answer = ask(control, libc::SIOCGIFFLAGS, request(name)?)?;
    // SAFETY: SIOCGIFFLAGS fills in this field, and any bytes are a valid number.
    Ok(unsafe { answer.ifr_ifru.ifru_flags })
}

/// Puts the interface of this index on a bridge.
///
/// # Errors
/// The system's answer.
pub(crate) fn add_to_bridge(control: &OwnedFd, bridge: &str, index: libc::c_int) -> io::Result<()> {
    let mut request = request(bridge)?;
    request.ifr_ifru.ifru_ifindex = index;
    ask(control, ADD_TO_BRIDGE, request).map(drop)
}

/// The name of an interface's driver: `bridge`, `tun`.
///
/// # Errors
/// As [`index`]; `EOPNOTSUPP` when the driver does not say.
pub(crate) fn driver(control: &OwnedFd, name: &str) -> io::Result<String> {
    let mut info = [0u8; DRIVER_INFO_BYTES];
    info[..4].copy_from_slice(&GET_DRIVER.to_ne_bytes());
    let mut request = request(name)?;
    request.ifr_ifru.ifru_data = info.as_mut_ptr().cast();
    // SAFETY: the kernel reads one `ifreq`, and writes one `ethtool_drvinfo` to where it points,
    // which is as many bytes as `info` has; both outlive the call.
    check(unsafe { libc::ioctl(control.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) })?;
    let bytes = info[DRIVER_NAME].split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

/// A request about the interface `name`, all zeros beyond it.
fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: `ifreq` is numbers, a union of such and a pointer, for all of which zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// For requests that hold no pointer.
fn ask(
    control: &OwnedFd,
    what: libc::c_ulong,
    mut request: libc::ifreq,
) -> io::Result<libc::ifreq> {
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call; the requests that
    // come here hold numbers and addresses in place, no pointer.
    check(unsafe { libc::ioctl(control.as_raw_fd(), what as _, &raw mut request) })?;
    Ok(request)
}

/// Receives one frame into `slices`, at most [`SLICES_MAX`]. What is written is remembered as
/// dirty, also when the call fails half-way.
///
/// # Errors
/// `WouldBlock` when there is no frame, and then nothing was written; otherwise the system's
/// answer.
pub(crate) fn receive(from: BorrowedFd<'_>, slices: &[RamSlice<'_>]) -> io::Result<Received> {
    // The guards keep the mappings in place for as long as the kernel may use the pointers.
    let guards: Vec<_> = slices.iter().map(RamSlice::ptr_guard_mut).collect();
    let mut vectors: Vec<libc::iovec> = Vec::with_capacity(guards.len() + 1);
    vectors.extend(
        guards
            .iter()
            .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }),
    );
    let room: usize = vectors.iter().map(|vector| vector.iov_len).sum();
    // One byte more than there is room for shows a frame that does not fit.
    let mut excess = 0u8;
    vectors.push(libc::iovec { iov_base: (&raw mut excess).cast(), iov_len: 1 });
    let count = vectors.len() as libc::c_int;
    // SAFETY: each vector is a slice of guest memory whose guard is held here, so it is mapped and
    // belongs to the guest alone, or the byte above; the kernel reads the vectors themselves and
    // keeps neither. That the guest may use the same memory meanwhile is its own affair: no
    // reference exists.
    let received = unsafe { libc::readv(from.as_raw_fd(), vectors.as_ptr(), count) };
    match usize::try_from(received) {
        Ok(bytes) => {
            mark_dirty(slices, bytes);
            Ok(if bytes > room { Received::TooLong } else { Received::Frame(bytes) })
        }
        Err(_) => {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock {
                mark_dirty(slices, room);
            }
            Err(error)
        }
    }
}

/// Remembers that the first `bytes` of `slices` were written.
fn mark_dirty(slices: &[RamSlice<'_>], bytes: usize) {
    let mut left = bytes;
    for slice in slices {
        if left == 0 {
            return;
        }
        let written = left.min(slice.len());
        slice.bitmap().mark_dirty(0, written);
        left -= written;
    }
}

/// Sends one frame of `slices`, at most [`SLICES_MAX`].
///
/// # Errors
/// The system's answer; then the frame is lost.
pub(crate) fn send(to: BorrowedFd<'_>, slices: &[RamSlice<'_>]) -> io::Result<()> {
    let guards: Vec<_> = slices.iter().map(RamSlice::ptr_guard).collect();
    let vectors: Vec<libc::iovec> = guards
        .iter()
        .map(|guard| libc::iovec {
            iov_base: guard.as_ptr().cast_mut().cast(),
            iov_len: guard.len(),
        })
        .collect();
    // SAFETY: as in `receive`, and the kernel only reads.
    let sent =
        unsafe { libc::writev(to.as_raw_fd(), vectors.as_ptr(), vectors.len() as libc::c_int) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends one frame that is not the guest's.
///
/// # Errors
/// As [`send`].
pub(crate) fn send_bytes(to: BorrowedFd<'_>, frame: &[u8]) -> io::Result<()> {
    nix::unistd::write(to, frame).map(drop).map_err(io::Error::from)
}
