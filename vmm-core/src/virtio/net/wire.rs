//! A socket instead of a tap, for the fuzz targets: no network of the host is touched.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixDatagram;

use super::config::NetConfig;
use super::device::NetDevice;
use super::port::Port;
use crate::virtio::DeviceError;

/// Pairs of queues of the device.
const PAIRS: u16 = 2;

/// The guest's end of the socket pair, once for each pair of queues.
#[derive(Debug)]
struct Wire {
    ends: [UnixDatagram; PAIRS as usize],
    used: usize,
    mtu: u16,
}

/// Creates a device, and returns it with the other end of its socket: a datagram is a frame with
/// its header. Neither end blocks.
///
/// # Errors
/// If the sockets cannot be created.
pub(in crate::virtio) fn on_wire() -> io::Result<(NetDevice, UnixDatagram)> {
    let (end, network) = UnixDatagram::pair()?;
    end.set_nonblocking(true)?;
    network.set_nonblocking(true)?;
    let config = NetConfig::nowhere().with_queue_pairs(PAIRS);
    let wire = Wire { ends: [end.try_clone()?, end], used: 1, mtu: config.mtu() };
    Ok((NetDevice::on(Box::new(wire), &config), network))
}

impl Port for Wire {
    fn name(&self) -> &'static str {
        "wire"
    }

    fn mtu(&self) -> usize {
        self.mtu.into()
    }

    fn frames(&self, pair: usize) -> BorrowedFd<'_> {
        self.ends[pair].as_fd()
    }

    fn used_pairs(&self) -> usize {
        self.used
    }

    fn use_pairs(&mut self, pairs: usize) -> io::Result<()> {
        self.used = pairs;
        Ok(())
    }

    fn set_offloads(&self, _: u32) -> io::Result<()> {
        Ok(())
    }

    fn open_to_traffic(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn close_to_traffic(&mut self) {}
}
