//! A network device (virtio 1.2, 5.1): frames move between the guest's buffers and a tap of the
//! host without a copy in between. The host's kernel moves them (vhost-net) where it can, or else
//! the device's thread.
//!
//! | file | contents |
//! |---|---|
//! | `device` | the device: start here |
//! | `pair` | its pairs of queues, of which it has one or several |
//! | `vhost` | has the kernel move the frames |
//! | `receive`, `transmit` | frames to the guest, and from it, by the device's thread |
//! | `control` | commands of the driver on the control queue |
//! | `announce` | announces the guest's new location to the network |
//! | `meter`, `counters` | counters and status; the kernel's counters |
//! | `port` | the interface that the device needs on the host |
//! | `tap` | that interface as a tap: created or existing, with or without a bridge |
//! | `tap_queues` | how many queues of a tap are open, in all processes |
//! | `wire` | a socket instead of a tap, for the fuzz targets |
//! | `config`, `mac` | configuration of the device |
//!
//! `docs/adr/0012-networks.md` has the reasons.

mod announce;
mod config;
mod control;
mod counters;
mod device;
mod mac;
mod meter;
mod pair;
mod port;
mod receive;
mod tap;
mod tap_queues;
mod transmit;
mod vhost;
#[cfg(feature = "fuzzing")]
mod wire;

pub use config::{NetConfig, NetLink, check_queue_pairs};
pub(crate) use device::NetDevice;
pub use mac::{MacAddress, MacError};
pub(crate) use meter::NetMeter;
pub use meter::{Flow, NetStatus};
#[cfg(feature = "fuzzing")]
pub(super) use wire::on_wire;

/// Size of `struct virtio_net_hdr_v1`, which precedes each frame, in bytes.
const HEADER_BYTES: usize = 12;
/// Bytes of a frame besides its payload: addresses, type, and a VLAN tag.
const ETHERNET_BYTES: usize = 18;
/// Size of the shortest frame that can be sent: addresses and type.
const FRAME_BYTES_MIN: usize = 14;
/// Size of the longest payload, which is segmented into frames later.
const PAYLOAD_BYTES_MAX: usize = 65536;
/// Index of the receive queue in its pair.
const RECEIVE: usize = 0;
/// Index of the transmit queue in its pair.
const TRANSMIT: usize = 1;
/// Most pairs of queues of a device.
pub(crate) const QUEUE_PAIRS_MAX: u16 = 8;
