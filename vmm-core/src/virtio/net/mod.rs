//! A network device (virtio 1.2, 5.1): frames go between the guest's buffers and a tap of the
//! host's, without a copy in between.
//!
//! | file | is |
//! |---|---|
//! | `device` | the device: start here |
//! | `receive`, `transmit` | frames to the guest, and from it |
//! | `control` | what the driver asks by the control queue |
//! | `announce` | telling the network where the guest is now |
//! | `meter` | what is counted, for whoever wants to know |
//! | `port` | what the device needs of the host's side |
//! | `tap` | the host's side: a tap, made or given, perhaps on a bridge |
//! | `wire` | a socket in the place of the tap, for the fuzz targets |
//! | `config`, `mac` | what a guest's description says |
//!
//! `docs/adr/0012-networks.md` has the reasons.

mod announce;
mod config;
mod control;
mod device;
mod mac;
mod meter;
mod port;
mod receive;
mod tap;
mod transmit;
#[cfg(feature = "fuzzing")]
mod wire;

pub use config::{NetConfig, NetLink};
pub(crate) use device::NetDevice;
pub use mac::{MacAddress, MacError};
pub(crate) use meter::NetMeter;
pub use meter::{Flow, NetStatus};
#[cfg(feature = "fuzzing")]
pub(super) use wire::on_wire;

/// Bytes of `struct virtio_net_hdr_v1`, which is before each frame.
const HEADER_BYTES: usize = 12;
/// Bytes of a frame beyond its payload: addresses, type, and a VLAN tag.
const ETHERNET_BYTES: usize = 18;
/// Bytes of the shortest frame that can be sent: addresses and type.
const FRAME_BYTES_MIN: usize = 14;
/// Bytes of the longest payload, which is to be cut into frames later.
const PAYLOAD_BYTES_MAX: usize = 65536;
/// The queues, by index.
const RECEIVE: usize = 0;
/// See [`RECEIVE`].
const TRANSMIT: usize = 1;
/// See [`RECEIVE`].
const CONTROL: usize = 2;
