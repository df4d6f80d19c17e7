//! A tap on the host: frames that the guest sends arrive there, and frames sent there reach the
//! guest.
//!
//! A tap carries no frames until the guest takes it over: a tap that was created is down until
//! then, though already on its bridge; an existing tap, or one that another process hands over, has
//! no carrier. So a second copy of a guest is never active on the network.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;

use super::HEADER_BYTES;
use super::config::{NetConfig, NetLink};
use super::mac::MacAddress;
use super::port::Port;
use super::tap_queues::open_queues;
use crate::sys::net::{self, Carrier, Queue};
use crate::virtio::DeviceError;

/// The device file that creates taps.
const TUN: &str = "/dev/net/tun";
/// A tap with a virtio-net header before each frame.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
/// Why a tap is refused that another process has opened.
const IN_USE: &str = "it is in use by another guest or program";
/// Name of a tap without a configured name; the kernel inserts a number.
const NAME_PATTERN: &str = "lighter%d";
/// First byte of the MAC address of a created tap: higher than all others, since a bridge adopts
/// the lowest address of its ports.
const ADDRESS_START: u8 = 0xfe;
/// First byte if the guest's address starts with `ADDRESS_START`: if both had the same address, the
/// bridge would keep the guest's frames for itself.
const ADDRESS_START_OF_THOSE: u8 = 0xfa;

/// Who created the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// This program: it sets the tap up and down, and the tap disappears with it.
    Made,
    /// The operator, or another process: it is set up already, and this program changes only its
    /// carrier.
    Given,
}

/// A tap of the host; see the module.
#[derive(Debug)]
pub(super) struct Tap {
    /// One for each pair of queues; there is always a first one.
    files: Vec<File>,
    /// How many of the files carry frames, the first ones.
    used: usize,
    /// Socket for interface ioctls; any socket works.
    control: OwnedFd,
    name: String,
    mtu: u32,
    origin: Origin,
}

impl Tap {
    /// Creates a tap, or opens the existing one. It carries no frames yet.
    ///
    /// # Errors
    /// [`DeviceError::Network`].
    pub(super) fn open(config: &NetConfig) -> Result<Self, DeviceError> {
        let mut tap = Self::with_all_queues(config)?;
        tap.use_pairs(1).map_err(|cause| unusable(&tap.name, cause))?;
        Ok(tap)
    }

    /// As [`Tap::open`], but all pairs of queues carry frames.
    fn with_all_queues(config: &NetConfig) -> Result<Self, DeviceError> {
        if let Some(files) = config.handed_tap() {
            return Self::handed(files, config);
        }
        let mtu = mtu_of(config.link())?;
        if mtu < u32::from(config.mtu()) {
            let what =
                format!("it has an MTU of {mtu} bytes here, the guest knows {}", config.mtu());
            return Err(unusable(config.link().interface(), io::Error::other(what)));
        }
        match config.link() {
            NetLink::Tap(name) => Self::take(name, mtu, config.queue_pairs()),
            NetLink::Bridge { bridge, tap } => Self::make(bridge, tap.as_deref(), mtu, config),
        }
    }

    /// Takes over what [`Tap::open_for_another`] gave in another process.
    fn handed(files: &[Arc<File>], config: &NetConfig) -> Result<Self, DeviceError> {
        let failed = |cause| unusable(config.link().interface(), cause);
        let kind = libc::IFF_TUN | FLAGS | libc::IFF_MULTI_QUEUE | libc::IFF_DETACH_QUEUE;
        let mut names = Vec::with_capacity(files.len());
        for file in files {
            let (name, flags) = net::attached(file).map_err(failed)?;
            if flags & kind != flags_for(config.queue_pairs()) {
                return Err(failed(io::Error::other(
                    "it is not open as a tap with headers and as many queues as files",
                )));
            }
            net::make_nonblocking(file).map_err(failed)?;
            names.push(name);
        }
        names.dedup();
        let (Some(name), true) = (names.pop(), names.is_empty()) else {
            return Err(failed(io::Error::other("its files are those of several taps")));
        };
        let files: io::Result<Vec<File>> = files.iter().map(|file| file.try_clone()).collect();
        let files = files.map_err(failed)?;
        let (control, mtu) = (net::control().map_err(failed)?, config.mtu().into());
        let tap = Self { used: files.len(), files, control, name, mtu, origin: Origin::Given };
        net::set_header_bytes(tap.file(), HEADER_BYTES as libc::c_int).map_err(failed)?;
        net::set_carrier(tap.file(), Carrier::Off).map_err(failed)?;
        Ok(tap)
    }

    /// Creates a tap, or opens the existing one, for another process, whose guest takes it over:
    /// it is up, without a carrier. Returns its files, all of which carry frames.
    ///
    /// # Errors
    /// [`DeviceError::Network`]: kernels before 5.0 cannot do without a carrier.
    pub(super) fn open_for_another(config: &NetConfig) -> Result<Vec<File>, DeviceError> {
        let tap = Self::with_all_queues(config)?;
        let failed = |cause| unusable(&tap.name, explained(cause));
        net::set_carrier(tap.file(), Carrier::Off).map_err(failed)?;
        if tap.origin == Origin::Made {
            net::set_up(&tap.control, &tap.name, Carrier::On).map_err(failed)?;
        }
        Ok(tap.files)
    }

    fn take(name: &str, mtu: u32, pairs: u16) -> Result<Self, DeviceError> {
        let failed = |cause| unusable(name, cause);
        let control = net::control().map_err(failed)?;
        if !net::is_up(&control, name).map_err(failed)? {
            let what = format!("it is down; `ip link set {name} up` sets it up");
            return Err(failed(io::Error::other(what)));
        }
        // Before it has a queue here too, which would take frames from those of another process.
        expect_open_at_most(0, &control, name, pairs).map_err(failed)?;
        let explained = |cause| failed(explained(cause));
        let (_, first) = open_queue(name, flags_for(pairs)).map_err(explained)?;
        // Older kernels cannot set the carrier; frames that arrive early are then dropped when the
        // driver becomes ready.
        let _ = net::set_carrier(&first, Carrier::Off);
        let files = with_others(vec![first], name, pairs).map_err(explained)?;
        expect_open_at_most(pairs, &control, name, pairs).map_err(failed)?;
        let (used, name) = (files.len(), name.to_owned());
        let tap = Self { files, used, control, name, mtu, origin: Origin::Given };
        net::set_header_bytes(tap.file(), HEADER_BYTES as libc::c_int).map_err(failed)?;
        Ok(tap)
    }

    fn make(
        bridge: &str,
        name: Option<&str>,
        mtu: u32,
        config: &NetConfig,
    ) -> Result<Self, DeviceError> {
        let failed = |cause| unusable(name.unwrap_or(bridge), cause);
        let control = net::control().map_err(failed)?;
        if let Some(name) = name
            && net::index(&control, name).is_ok()
        {
            let what = format!(
                "it exists, and a tap for bridge {bridge} has to be made; omit the bridge to use it as it is"
            );
            return Err(failed(io::Error::other(what)));
        }
        let (name, pairs) = (name.unwrap_or(NAME_PATTERN), config.queue_pairs());
        let made = open_queue(name, flags_for(pairs) | libc::IFF_TUN_EXCL);
        let (name, first) = made.map_err(|cause| failed(explained(cause)))?;
        let mut tap =
            Self { files: vec![first], used: 1, control, name, mtu, origin: Origin::Made };
        // At once: the host's udev gives new interfaces an address that have none of their own.
        tap.set_up_on(bridge, own_address(config.mac()))?;
        tap.files = with_others(tap.files, &tap.name, pairs)
            .map_err(|cause| unusable(&tap.name, explained(cause)))?;
        tap.used = tap.files.len();
        Ok(tap)
    }

    /// Returns a file for what concerns the whole tap.
    fn file(&self) -> &File {
        &self.files[0]
    }

    fn change_pairs(&mut self, pairs: usize) -> io::Result<()> {
        while self.used > pairs {
            net::set_queue(&self.files[self.used - 1], Queue::Detached)?;
            self.used -= 1;
        }
        while self.used < pairs {
            net::set_queue(&self.files[self.used], Queue::Attached)?;
            self.used += 1;
        }
        Ok(())
    }

    fn set_up_on(&self, bridge: &str, address: [u8; 6]) -> Result<(), DeviceError> {
        let (control, name) = (&self.control, self.name.as_str());
        let failed = |cause| unusable(name, cause);
        net::set_header_bytes(self.file(), HEADER_BYTES as libc::c_int).map_err(failed)?;
        net::set_hardware_address(control, name, address).map_err(failed)?;
        // The MTU of the bridge: a bridge adopts the lowest MTU of its ports.
        net::set_mtu(control, name, self.mtu).map_err(failed)?;
        let index = net::index(control, name).map_err(failed)?;
        net::add_to_bridge(control, bridge, index)
            .map_err(|cause| unusable(bridge, explained(cause)))
    }
}

impl Port for Tap {
    fn name(&self) -> &str {
        &self.name
    }

    fn mtu(&self) -> usize {
        self.mtu as usize
    }

    fn frames(&self, pair: usize) -> BorrowedFd<'_> {
        self.files[pair].as_fd()
    }

    fn used_pairs(&self) -> usize {
        self.used
    }

    fn use_pairs(&mut self, pairs: usize) -> io::Result<()> {
        let before = self.used;
        let done = self.change_pairs(pairs);
        if done.is_err() && self.used > before {
            // No one would read what comes by the others.
            let _ = self.change_pairs(before);
        }
        done
    }

    fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        net::set_offloads(self.file(), offloads)
    }

    fn open_to_traffic(&mut self) -> Result<(), DeviceError> {
        match self.origin {
            Origin::Made => net::set_up(&self.control, &self.name, Carrier::On)
                .map_err(|cause| unusable(&self.name, explained(cause))),
            Origin::Given => {
                let _ = net::set_carrier(self.file(), Carrier::On);
                Ok(())
            }
        }
    }

    fn close_to_traffic(&mut self) {
        let closed = match self.origin {
            Origin::Made => net::set_up(&self.control, &self.name, Carrier::Off),
            Origin::Given => net::set_carrier(self.file(), Carrier::Off),
        };
        if let Err(error) = closed {
            tracing::warn!(tap = %self.name, %error, "the network may still send the guest's packets here");
        }
    }
}

/// Returns the MTU of the interface of `link`.
///
/// # Errors
/// If there is no such interface, or it is of another kind.
pub(super) fn mtu_of(link: &NetLink) -> Result<u32, DeviceError> {
    let name = link.interface();
    let failed = |cause| unusable(name, cause);
    let control = net::control().map_err(failed)?;
    let (driver, kind, command, several) = match link {
        NetLink::Tap(_) => {
            ("tun", "tap", add_command(name), ", and `multi_queue` behind that for queues=N")
        }
        NetLink::Bridge { .. } => {
            ("bridge", "bridge", format!("ip link add {name} type bridge"), "")
        }
    };
    match net::mtu(&control, name) {
        Ok(mtu) if net::driver(&control, name).is_ok_and(|found| found == driver) => Ok(mtu),
        Ok(_) => Err(failed(io::Error::other(format!("it is not a {kind}")))),
        Err(cause) if cause.raw_os_error() == Some(libc::ENODEV) => {
            let what = format!("there is none; make it with `{command}`{several}");
            Err(failed(io::Error::other(what)))
        }
        Err(cause) => Err(failed(cause)),
    }
}

fn unusable(interface: &str, cause: io::Error) -> DeviceError {
    DeviceError::Network { interface: interface.to_owned(), cause }
}

fn open_tun() -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC);
    options.open(TUN).map_err(|cause| io::Error::other(format!("cannot open {TUN}: {cause}")))
}

/// Returns the flags of a tap for `pairs` pairs of queues: taps for several are another kind.
fn flags_for(pairs: u16) -> libc::c_int {
    if pairs > 1 { FLAGS | libc::IFF_MULTI_QUEUE } else { FLAGS }
}

/// Opens a queue of the tap `name`, or creates the tap; returns its name, too.
fn open_queue(name: &str, flags: libc::c_int) -> io::Result<(String, File)> {
    let file = open_tun()?;
    let attached = net::attach(&file, name, flags);
    let name = attached.map_err(|cause| match cause.raw_os_error() {
        Some(libc::EINVAL) => other_kind(name, flags & libc::IFF_MULTI_QUEUE != 0),
        _ => cause,
    })?;
    Ok((name, file))
}

/// Adds a queue of the tap `name` for each of its pairs but the first.
fn with_others(mut files: Vec<File>, name: &str, pairs: u16) -> io::Result<Vec<File>> {
    for _ in 1..pairs {
        let (_, file) = open_queue(name, flags_for(pairs))?;
        files.push(file);
    }
    Ok(files)
}

/// Checks how many queues of the tap `name` for `pairs` pairs of queues are open in all processes.
/// With one pair, the kernel sees to that.
///
/// # Errors
/// If more than `limit` are open, or it is no tap for several queues.
fn expect_open_at_most(limit: u16, control: &OwnedFd, name: &str, pairs: u16) -> io::Result<()> {
    if pairs == 1 {
        return Ok(());
    }
    match open_queues(control, name)? {
        Some(open) if open <= limit.into() => Ok(()),
        Some(_) => Err(io::Error::other(IN_USE)),
        None => Err(other_kind(name, true)),
    }
}

/// The error for an interface that is no tap, or one for another number of queues.
fn other_kind(name: &str, for_several: bool) -> io::Error {
    let what = match for_several {
        false => "it is not a tap with a single queue; a tap that was made with `multi_queue` takes queues=2 to 8".to_owned(),
        true => format!(
            "it is not a tap for several queues: make it anew by `ip tuntap del {name} mode tap` and `{} multi_queue`",
            add_command(name)
        ),
    };
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

fn add_command(name: &str) -> String {
    format!("ip tuntap add {name} mode tap")
}

/// Explains the error of a system call in terms of taps.
fn explained(cause: io::Error) -> io::Error {
    let what = match cause.raw_os_error() {
        Some(libc::EPERM) => {
            "this takes CAP_NET_ADMIN; without it use a tap that was made for this user: `ip tuntap add NAME mode tap user USER` (and \
             `multi_queue` for queues=N)"
        }
        Some(libc::EBUSY) => IN_USE,
        _ => return cause,
    };
    io::Error::new(cause.kind(), what)
}

/// Returns the tap's own address: similar to the guest's for people, but different.
fn own_address(guest: MacAddress) -> [u8; 6] {
    let mut own = guest.bytes();
    own[0] = if own[0] == ADDRESS_START { ADDRESS_START_OF_THOSE } else { ADDRESS_START };
    own
}

#[cfg(test)]
mod tests;
