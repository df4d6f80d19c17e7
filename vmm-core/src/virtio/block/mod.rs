//! A disk (virtio 1.2, 5.2), raw: a regular file or a block device of the host.
//!
//! `request` understands what the driver asks and knows no file; `engine` carries it out; `disk`
//! is the open disk with its lock; `device.rs` ties them together. Start with [`BlockConfig`], which is
//! what a guest's description says of a disk.

mod config;
mod device;
mod disk;
mod engine;
mod request;

pub use config::{Access, BlockConfig};
pub(crate) use device::BlockDevice;

/// Bytes of a sector, the unit of all positions, whatever the disk's own is.
pub(crate) const SECTOR_BYTES: u64 = 512;
