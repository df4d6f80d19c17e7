//! What a network device needs of the host: a descriptor for frames, and a switch for them.

use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

use crate::virtio::DeviceError;

/// The host's side of a network device. Frames have virtio-net's header before them, both ways.
pub(crate) trait Port: Send + Debug {
    /// The interface on the host.
    fn name(&self) -> &str;

    /// Most bytes of a packet here.
    fn mtu(&self) -> usize;

    /// Each read is a frame, each write too; neither waits.
    fn frames(&self) -> BorrowedFd<'_>;

    /// Sets what frames may leave to the guest, as `TUN_F_*` of `linux/if_tun.h`.
    ///
    /// # Errors
    /// The system's answer.
    fn set_offloads(&self, offloads: u32) -> io::Result<()>;

    /// Lets frames through, in both directions.
    ///
    /// # Errors
    /// [`DeviceError::Network`].
    fn open_to_traffic(&mut self) -> Result<(), DeviceError>;

    /// Lets nothing through any more, and has the network forget that the guest was here.
    fn close_to_traffic(&mut self);
}
