//! A disk (virtio 1.2, 5.2), raw: a regular file or a block device of the host.
//!
//! `request` understands what the driver asks and knows no file; `engine` carries it out; `disk` is
//! the open disk with its lock, `lock_reach` whom that keeps away, `content` the same for whoever
//! copies it, `log` what was written meanwhile, `staged` a disk that is being copied to here.
//! `proof` checks that two hosts share a disk, by the `names` of a device, `copy` makes another of
//! one that stands still, `seal` checks that nobody has written one since its guest was saved,
//! `departed` is a note on one whose content has moved away, `identity` what it is recognized by
//! where such a note cannot be; `device.rs` ties them together. Start with [`BlockConfig`], which
//! is what a guest's description says of a disk.

mod config;
mod content;
mod copy;
mod departed;
mod device;
mod digest;
mod disk;
mod engine;
mod identity;
mod lock_reach;
mod log;
mod names;
mod proof;
mod request;
mod seal;
mod staged;

pub use config::{Access, BlockConfig, EngineChoice, Occupied};
pub use content::DiskContent;
pub use copy::{copy_content, date};
pub(crate) use departed::ATTRIBUTE as DEPARTED_ATTRIBUTE;
pub use departed::{departed_to, take_off_departure};
pub(crate) use device::BlockDevice;
pub use identity::DiskIdentity;
pub use lock_reach::LockReach;
pub use names::facts_of;
pub use proof::{DiskProof, Mark};
pub use seal::Seal;

/// Bytes of a sector, the unit of all positions, whatever the disk's own is.
pub(crate) const SECTOR_BYTES: u64 = 512;
