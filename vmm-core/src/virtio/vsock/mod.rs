//! Sockets between the guest and programs of its host (virtio 1.2, 5.10), streams only.
//!
//! There is no network in between, and no vhost: the host's ends are Unix sockets ([`host`]). A
//! connection joins a guest and one host, so it ends when the guest moves to another host: the
//! source closes its ends, and the destination tells the guest's driver, which resets all its
//! connections.

mod connection;
mod device;
mod host;
mod packet;

pub use device::GUEST_CIDS;
pub(crate) use device::VsockDevice;
pub(super) use device::check_cid;
