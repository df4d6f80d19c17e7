//! A disk (virtio 1.2, 5.2): a regular file or a block device of the host, as it is, or a qcow2
//! image in a file.
//!
//! | file | contents |
//! |---|---|
//! | `config` | a disk's configuration: start with [`BlockConfig`] |
//! | `device` | the device, which joins the other parts |
//! | `request` | parses the driver's requests, without access to the disk |
//! | `engine` | executes the requests |
//! | `disk` | the open disk |
//! | `store`, `qcow2` | storage of its bytes: a raw file or device, or an image |
//! | `cache` | whether these bytes go through the host's cache |
//! | `hold`, `behind`, `lock_reach` | what keeps others away from it, and which programs |
//! | `content`, `log` | the disk's content for copying it, and what is written during the copy |
//! | `write_limit` | limits what is written during the copy |
//! | `resize` | checks the new size of a disk |
//! | `staged`, `overwritten` | a disk that is being copied to this host: a file, a block device |
//! | `proof`, `names` | checks that two hosts share a disk, and the names of block devices |
//! | `copy` | copies a disk that is not being written |
//! | `seal`, `digest` | checks that a disk was not written since its guest was saved |
//! | `departed` | a mark on a disk whose content has moved to another host |
//! | `identity` | recognizes a disk where such a mark is not possible |
//! | `seed` | a disk of documents from the guest's configuration, with no file on the host |

mod behind;
mod cache;
mod config;
mod content;
mod copy;
mod departed;
mod device;
mod digest;
mod disk;
mod engine;
mod hold;
mod identity;
mod lock_reach;
mod log;
mod names;
mod overwritten;
mod proof;
mod qcow2;
mod request;
mod resize;
mod seal;
mod seed;
mod staged;
mod store;
#[cfg(test)]
mod testing;
mod write_limit;

pub use behind::behind_loops;
pub use cache::CacheMode;
pub use config::{Access, BlockConfig, EngineChoice, Occupied};
pub use content::DiskContent;
pub use copy::{copy_content, date};
pub(crate) use departed::ATTRIBUTE as DEPARTED_ATTRIBUTE;
pub use departed::{departed_to, take_off_departure};
pub(crate) use device::BlockDevice;
pub use identity::DiskIdentity;
pub use lock_reach::LockReach;
pub use names::{facts_of, facts_of_host, with_disks_below};
pub use proof::{DiskProof, Mark};
pub use qcow2::{backing_files, is_named as is_qcow2};
pub use seal::Seal;
pub(crate) use seed::SeedDevice;
pub use seed::{SEED_BYTES_MAX, SeedConfig};

/// The unit of all positions, whatever sector size the disk has.
pub(crate) use crate::sys::sectors::SECTOR_BYTES;
