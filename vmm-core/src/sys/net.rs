//! Raw system calls on taps and network interfaces: the ioctls of `linux/if_tun.h` and
//! `linux/sockios.h`, and frames directly to and from guest memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use vm_memory::bitmap::Bitmap;

use super::{RamSlice, check};

/// Most buffers of a frame (`UIO_MAXIOV` of `linux/uio.h`), minus the one that detects frames that
/// are too long.
pub(crate) const SLICES_MAX: usize = 1023;
/// Longest name of an interface, in bytes, without the final zero.
pub(crate) const NAME_BYTES_MAX: usize = libc::IFNAMSIZ - 1;

/// `SIOCBRADDIF` of `linux/sockios.h`.
const ADD_TO_BRIDGE: libc::c_ulong = 0x89a2;
/// `TUNSETSNDBUF` of `linux/if_tun.h`, which the libc crate lacks for musl.
const SET_SEND_BUFFER: libc::Ioctl = 0x4004_54d4;
/// `ETHTOOL_GDRVINFO` of `linux/ethtool.h`.
const GET_DRIVER: u32 = 3;
/// Bytes of `struct ethtool_drvinfo`, and the range of the driver's name in it.
const DRIVER_INFO_BYTES: usize = 196;
const DRIVER_NAME: std::ops::Range<usize> = 4..36;

/// Whether an interface has a carrier, or is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Carrier {
    /// As with the cable plugged in.
    On,
    /// As with the cable unplugged.
    Off,
}

/// Whether a queue of a tap carries frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    /// It does.
    Attached,
    /// It does not, and what it held is dropped.
    Detached,
}

/// Result of receiving a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Received {
    /// A frame of this many bytes.
    Frame(usize),
    /// A frame that was longer than the buffers; it is lost.
    TooLong,
}

/// Attaches `tun`, an open `/dev/net/tun`, to the interface `name`, which is created if necessary;
/// the kernel replaces `%d` in the name by a number. Returns the name.
///
/// # Errors
/// `InvalidInput` for a name that no interface can have; otherwise the error from the system.
pub(crate) fn attach(tun: &File, name: &str, flags: libc::c_int) -> io::Result<String> {
    let mut request = request(name)?;
    // TUNSETIFF uses the lower 16 bits, which fit a `short`.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
    Ok(name_in(&request))
}

fn name_in(request: &libc::ifreq) -> String {
    let bytes = request.ifr_name.iter().take_while(|byte| **byte != 0).map(|byte| *byte as u8);
    String::from_utf8_lossy(&bytes.collect::<Vec<u8>>()).into_owned()
}

/// Returns the name of the interface that `tun` is attached to, and the flags with which it is
/// (`IFF_*` of `linux/if_tun.h`).
///
/// # Errors
/// The error from the system: `tun` is no tap, or not attached.
pub(crate) fn attached(tun: &File) -> io::Result<(String, libc::c_int)> {
    let mut request = nameless_request();
    // SAFETY: the kernel writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: TUNGETIFF fills in this field, and any bytes are a valid number.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((name_in(&request), libc::c_int::from(flags)))
}

/// Has reads and writes of `tun` fail with `WouldBlock` rather than wait.
///
/// # Errors
/// The error from the system.
pub(crate) fn make_nonblocking(tun: &File) -> io::Result<()> {
    fcntl(tun, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Sets the size of the virtio-net header before each frame, in bytes.
///
/// # Errors
/// The error from the system.
pub(crate) fn set_header_bytes(tun: &File, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one `int`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })
}

/// Sets how many bytes of frames may be under way from the tap into the host's network.
///
/// # Errors
/// The error from the system.
pub(crate) fn set_send_buffer(tun: BorrowedFd<'_>, bytes: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads one `int`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), SET_SEND_BUFFER, &raw const bytes) })
}

/// Sets the offloads (`TUN_F_*`): what the kernel may leave undone in frames that are read.
///
/// # Errors
/// The error from the system.
pub(crate) fn set_offloads(tun: &File, offloads: libc::c_uint) -> io::Result<()> {
    let offloads = libc::c_ulong::from(offloads);
    // SAFETY: the argument is a number, not a pointer.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
}

/// Has one queue of a tap with several carry frames, or not.
///
/// # Errors
/// The error from the system.
pub(crate) fn set_queue(tun: &File, queue: Queue) -> io::Result<()> {
    let mut request = nameless_request();
    let flags = match queue {
        Queue::Attached => libc::IFF_ATTACH_QUEUE,
        Queue::Detached => libc::IFF_DETACH_QUEUE,
    };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    // SAFETY: the kernel reads one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETQUEUE, &raw const request) })
}

/// Switches the tap's carrier on or off.
///
/// # Errors
/// The error from the system: kernels before 5.0 do not support this.
pub(crate) fn set_carrier(tun: &File, carrier: Carrier) -> io::Result<()> {
    let on = libc::c_int::from(carrier == Carrier::On);
    // SAFETY: the kernel reads one `int`, which outlives the call.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETCARRIER, &raw const on) })
}

/// Opens a socket for ioctls on interfaces. They work with any address family. A confined guest
/// process may open Unix sockets only for vsock, so this uses an Internet socket.
pub(crate) fn control() -> io::Result<OwnedFd> {
    Ok(socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?)
}

/// Returns the index of an interface.
///
/// # Errors
/// `ENODEV` if there is no such interface; `InvalidInput` for a name that no interface can have.
pub(crate) fn index(control: &OwnedFd, name: &str) -> io::Result<libc::c_int> {
    let answer = ask(control, libc::SIOCGIFINDEX, request(name)?)?;
    // SAFETY: SIOCGIFINDEX fills in this field, and any bytes are a valid number.
    Ok(unsafe { answer.ifr_ifru.ifru_ifindex })
}

/// Returns the MTU of an interface.
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
/// The error from the system.
pub(crate) fn set_mtu(control: &OwnedFd, name: &str, mtu: u32) -> io::Result<()> {
    let mut request = request(name)?;
    request.ifr_ifru.ifru_mtu = mtu as libc::c_int;
    ask(control, libc::SIOCSIFMTU, request).map(drop)
}

/// Sets the hardware address of an interface.
///
/// # Errors
/// The error from the system.
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
/// The error from the system.
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

/// Adds the interface with this index to a bridge.
///
/// # Errors
/// The error from the system.
pub(crate) fn add_to_bridge(control: &OwnedFd, bridge: &str, index: libc::c_int) -> io::Result<()> {
    let mut request = request(bridge)?;
    request.ifr_ifru.ifru_ifindex = index;
    ask(control, ADD_TO_BRIDGE, request).map(drop)
}

/// Returns the name of an interface's driver: `bridge`, `tun`.
///
/// # Errors
/// As [`index`]; `EOPNOTSUPP` if the driver does not report its name.
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

/// Returns a request for the interface `name`, with all other fields zero.
fn request(name: &str) -> io::Result<libc::ifreq> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut request = nameless_request();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// Returns a request with all fields zero.
fn nameless_request() -> libc::ifreq {
    // SAFETY: `ifreq` consists of numbers, a union of numbers and a pointer, for all of which zeros
    // are valid.
    unsafe { std::mem::zeroed() }
}

/// Makes a request that contains no pointer.
fn ask(
    control: &OwnedFd,
    what: libc::c_ulong,
    mut request: libc::ifreq,
) -> io::Result<libc::ifreq> {
    // SAFETY: the kernel reads and writes one `ifreq`, which outlives the call; the requests passed
    // to this function hold numbers and addresses in place, no pointer.
    check(unsafe { libc::ioctl(control.as_raw_fd(), what as _, &raw mut request) })?;
    Ok(request)
}

/// Receives one frame into at most [`SLICES_MAX`] `slices`. Memory that is written is marked dirty,
/// even if the call fails half-way.
///
/// # Errors
/// `WouldBlock` if there is no frame, and then nothing was written; otherwise the error from the
/// system.
pub(crate) fn receive(from: BorrowedFd<'_>, slices: &[RamSlice<'_>]) -> io::Result<Received> {
    // The guards keep the mappings in place as long as the kernel may use the pointers.
    let guards: Vec<_> = slices.iter().map(RamSlice::ptr_guard_mut).collect();
    let mut vectors: Vec<libc::iovec> = Vec::with_capacity(guards.len() + 1);
    vectors.extend(
        guards
            .iter()
            .map(|guard| libc::iovec { iov_base: guard.as_ptr().cast(), iov_len: guard.len() }),
    );
    let room: usize = vectors.iter().map(|vector| vector.iov_len).sum();
    // One extra byte detects a frame that does not fit.
    let mut excess = 0u8;
    vectors.push(libc::iovec { iov_base: (&raw mut excess).cast(), iov_len: 1 });
    let count = vectors.len() as libc::c_int;
    // SAFETY: each vector is a slice of guest memory whose guard is held here, so it is mapped and
    // belongs to the guest alone, or the byte above; the kernel reads the vectors themselves and
    // keeps neither. The guest may use the same memory concurrently, which affects only the data:
    // no Rust reference to it exists.
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

/// Marks the first `bytes` of `slices` dirty.
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

/// Sends one frame from at most [`SLICES_MAX`] `slices`.
///
/// # Errors
/// The error from the system; the frame is then lost.
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

/// Sends one frame that does not come from guest memory.
///
/// # Errors
/// As [`send`].
pub(crate) fn send_bytes(to: BorrowedFd<'_>, frame: &[u8]) -> io::Result<()> {
    nix::unistd::write(to, frame).map(drop).map_err(io::Error::from)
}
