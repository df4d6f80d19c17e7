//! Virtio devices: what a guest has beyond processors and memory (virtio 1.2, over virtio-mmio).
//!
//! From the guest inwards:
//!
//! | file | is |
//! |---|---|
//! | `bus` | all devices, by slot; where a vCPU's access arrives |
//! | `mmio_device` | a device in its slot: the two halves below, put together |
//! | `transport` | its registers, as a state machine |
//! | `signals`, `interrupt` | what the device tells its driver |
//! | `worker` | its thread |
//! | `backend` | the device with its queues, as that thread sees them: pausing, resetting, breaking |
//! | `queue`, `buffers` | requests, whole and checked |
//! | `device` | what a type of device has to say for itself: start here to add one |
//! | `rng`, [`block`], [`net`], [`balloon`], `vsock` | types of devices |
//! | `config` | which devices a guest has, as its description says it |
//! | `fuzzing` | a device on a bench, for the fuzz targets |
//!
//! Everything that a driver writes is hostile: registers, rings, descriptors, requests. A driver
//! that breaks the rules of a queue finds its device waiting for a reset, and nobody else takes
//! notice. `docs/adr/0007-virtio-devices.md` has the reasons.

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
