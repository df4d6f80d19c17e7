//! Virtio devices (virtio 1.2 over virtio-mmio or virtio-pci): all that a guest has beyond vCPUs
//! and memory.
//!
//! From the guest inwards:
//!
//! | file | contents |
//! |---|---|
//! | `bus` | all devices; entry point of vCPU accesses |
//! | `attached` | a device in its slot: joins its registers and its thread |
//! | `transport` | the trait of what differs between the two ways to a device |
//! | `mmio`, `pci` | these ways: layouts of registers, and interrupts |
//! | `registers` | the device's registers, as a state machine |
//! | `signals`, `interrupt` | what the device tells its driver |
//! | `worker` | the device's thread |
//! | `backend` | the device and its queues on that thread: pausing, resetting, breaking |
//! | `queue`, `buffers` | requests, complete and validated |
//! | `device` | the trait that each type of device implements: start here to add one |
//! | `rng`, [`block`], [`net`], [`balloon`], `vsock` | types of devices |
//! | `config` | the devices in a guest's configuration |
//! | `handed` | files that another process has opened for a device |
//! | `fuzzing` | a test bench with one device, for the fuzz targets |
//!
//! Everything that a driver writes is hostile: registers, rings, descriptors, requests. A driver
//! that breaks the rules of a queue gets a device that needs a reset; nothing else is affected.
//! `docs/adr/0007-virtio-devices.md` and `docs/adr/0031-pci.md` have the reasons.

mod attached;
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
mod handed;
mod interrupt;
mod mmio;
pub mod net;
mod pci;
mod queue;
mod registers;
mod rng;
mod signals;
#[cfg(test)]
pub(crate) mod testing;
mod transport;
mod vsock;
mod worker;

pub use attached::DeviceState;
pub use backend::BackendState;
pub use block::DiskContent;
pub(crate) use bus::{Bus, BusWrite};
pub use config::DeviceConfig;
pub(crate) use config::check as check_devices;
pub use error::DeviceError;
pub use pci::{FunctionState, Interrupts, PciState};
pub use queue::QueuePosition;
pub use registers::{QueueRegisters, TransportState};
pub(crate) use signals::Signals;
pub use vsock::GUEST_CIDS;
