//! Virtio devices (virtio 1.2 over virtio-mmio): all that a guest has beyond vCPUs and memory.
//!
//! From the guest inwards:
//!
//! | file | contents |
//! |---|---|
//! | `bus` | all devices, by slot; entry point of vCPU accesses |
//! | `mmio_device` | a device in its slot: joins its registers and its thread |
//! | `transport` | the device's registers, as a state machine |
//! | `signals`, `interrupt` | what the device tells its driver |
//! | `worker` | the device's thread |
//! | `backend` | the device and its queues on that thread: pausing, resetting, breaking |
//! | `queue`, `buffers` | requests, complete and validated |
//! | `device` | the trait that each type of device implements: start here to add one |
//! | `rng`, [`block`], [`net`], [`balloon`], `vsock` | types of devices |
//! | `config` | the devices in a guest's configuration |
//! | `fuzzing` | a test bench with one device, for the fuzz targets |
//!
//! Everything that a driver writes is hostile: registers, rings, descriptors, requests. A driver
//! that breaks the rules of a queue gets a device that needs a reset; nothing else is affected.
//! `docs/adr/0007-virtio-devices.md` has the reasons.

mod backend;
pub mod balloon;
pub mod block;
mod buffers;
mod bus;
mod config;
mod device;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod interrupt;
mod mmio_device;
pub mod net;
mod queue;
mod rng;
mod signals;
#[cfg(test)]
pub(crate) mod testing;
mod transport;
mod vsock;
mod worker;

pub use backend::BackendState;
pub use block::DiskContent;
pub(crate) use bus::Bus;
pub use config::DeviceConfig;
pub(crate) use config::check as check_devices;
pub use error::DeviceError;
pub use mmio_device::DeviceState;
pub use queue::QueuePosition;
pub(crate) use signals::Signals;
pub use transport::{QueueRegisters, TransportState};
pub use vsock::GUEST_CIDS;
