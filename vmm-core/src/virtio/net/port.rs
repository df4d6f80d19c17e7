//! What a network device needs from the host: a file descriptor for frames, and a way to stop them.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

use crate::virtio::DeviceError;

/// The host's side of a network device. Each frame has a virtio-net header, in both directions.
pub(crate) trait Port: Send + Debug {
    /// Returns the name of the host's interface.
    fn name(&self) -> &str;

    /// Returns the MTU of the host's interface in bytes.
    fn mtu(&self) -> usize;

    /// Returns the descriptor for the frames of a pair of queues: each read or write is one frame,
    /// and neither blocks.
    fn frames(&self, pair: usize) -> BorrowedFd<'_>;

    /// Returns how many pairs of queues carry the frames, the first ones: one, until
    /// [`Port::use_pairs`] is called.
    fn used_pairs(&self) -> usize;

    /// Has the first `pairs` pairs of queues carry the frames, and no other.
    ///
    /// # Errors
    /// If a system call fails. Then no more of them do than before.
    fn use_pairs(&mut self, pairs: usize) -> io::Result<()>;

    /// Sets which offloads the guest accepts on received frames, as `TUN_F_*` of `linux/if_tun.h`.
    ///
    /// # Errors
    /// If the system call fails.
    fn set_offloads(&self, offloads: u32) -> io::Result<()>;

    /// Lets frames pass, in both directions.
    ///
    /// # Errors
    /// [`DeviceError::Network`].
    fn open_to_traffic(&mut self) -> Result<(), DeviceError>;

    /// Stops all frames, and makes the network forget that the guest was here.
    fn close_to_traffic(&mut self);
}
