//! Sockets for the packets of an interface, and the priority of a thread that handles them.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

/// Bytes of `struct virtio_net_hdr`, which goes along with each frame: it says which checksum has
/// still to be filled in.
pub(crate) const HEADER_BYTES: usize = 10;
/// What a socket holds for a thread that gets no CPU time for a while.
const SOCKET_BYTES: usize = 16 << 20;

/// Has this thread run whenever it can, as what a kernel does with packets: otherwise packets would
/// be late when the systems are busy.
pub(crate) fn prefer() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameters live; 0 is the calling thread.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
    if let Err(error) = Errno::result(result) {
        eprintln!("packets may be late: this has no priority: {error}");
    }
}

/// Opens a socket for whole frames of an interface, those excepted that this host sends there.
///
/// # Errors
/// If this process may not read packets (`CAP_NET_RAW`), or has no such interface.
pub(crate) fn open(interface: &str) -> Result<File> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, None)
        .context("cannot open a packet socket")?;
    set(&socket, libc::PACKET_VNET_HDR)?;
    set(&socket, libc::PACKET_IGNORE_OUTGOING)?;
    setsockopt(&socket, sockopt::RcvBufForce, &SOCKET_BYTES)?;
    setsockopt(&socket, sockopt::SndBufForce, &SOCKET_BYTES)?;
    // SAFETY: plain integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = if_nametoindex(interface)? as libc::c_int;
    let bytes = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the address lives, and is as long as is said.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), bytes) };
    Errno::result(result).with_context(|| format!("cannot bind to {interface}"))?;
    Ok(File::from(socket))
}

/// Turns on an option of packet sockets.
fn set(socket: &OwnedFd, option: libc::c_int) -> Result<()> {
    let value: libc::c_int = 1;
    let bytes = size_of::<libc::c_int>() as libc::socklen_t;
    let (at, level) = ((&raw const value).cast(), libc::SOL_PACKET);
    // SAFETY: the value lives, and is as long as is said.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, at, bytes) };
    Errno::result(result).context("packet sockets lack an option here").map(drop)
}
