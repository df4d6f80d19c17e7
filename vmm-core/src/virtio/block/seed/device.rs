//! The device of a seed disk, which the guest can only read.

use std::fmt;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
};

use super::SeedConfig;
use crate::memory::RamMap;
use crate::virtio::DeviceError;
use crate::virtio::block::request::{Limits, Operation, Request, Status, Wish, answered, parse};
use crate::virtio::block::{Access, SECTOR_BYTES};
use crate::virtio::device::{Device, DeviceKind, Progress, Rings};
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::signals::ConfigSpace;

/// Entries of the queue.
const QUEUE_SIZE: u16 = 64;
/// Requests answered before the thread checks for other work.
const BATCH: usize = 16;
/// What the guest sees as serial number; of 20 bytes, the last are zeros.
const SERIAL: [u8; 20] = *b"lighter-seed\0\0\0\0\0\0\0\0";

/// The seed disk of a guest.
pub(crate) struct SeedDevice {
    image: Vec<u8>,
}

impl SeedDevice {
    /// Makes the disk.
    ///
    /// # Errors
    /// [`DeviceError::Config`], if it cannot be made of the documents.
    pub(crate) fn new(config: &SeedConfig) -> Result<Self, DeviceError> {
        let refuse = |error| DeviceError::Config(format!("cannot make the seed disk: {error}"));
        Ok(Self { image: config.image().map_err(refuse)? })
    }

    fn limits(&self) -> Limits {
        Limits { sectors: self.image.len() as u64 / SECTOR_BYTES, access: Access::ReadOnly }
    }

    /// Answers a request; returns how many bytes were written to guest memory.
    fn answer(&self, chain: Chain, memory: &RamMap) -> Result<u32, QueueError> {
        let Request { wish, data_bytes, status } = parse(chain, memory, &self.limits())?;
        let (place, content) = match wish {
            Wish::Refused(refusal) => return answered(&status, refusal, 0, memory),
            Wish::Identify(place) => (place, &SERIAL[..]),
            // The range lies on the disk.
            Wish::Do(Operation::Read { offset, into }) => {
                let bytes = into.bytes() as usize;
                (into, &self.image[offset as usize..][..bytes])
            }
            Wish::Do(_) => return answered(&status, Status::Ok, 0, memory),
        };
        place.write(memory, content).map_err(|_| QueueError::Buffer)?;
        answered(&status, Status::Ok, data_bytes, memory)
    }
}

/// Without the image, which may have passwords and keys.
impl fmt::Debug for SeedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeedDevice").field("bytes", &self.image.len()).finish_non_exhaustive()
    }
}

impl Device for SeedDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_RO
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE]
    }

    fn config(&self) -> ConfigSpace {
        self.limits().announced(1)
    }

    fn process(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        rings.serve(index, BATCH, |chain, memory| self.answer(chain, memory))
    }
}

#[cfg(test)]
mod tests {
    use virtio_bindings::virtio_blk::{
        VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    };

    use super::*;
    use crate::virtio::block::testing::{DATA, ask};
    use crate::virtio::testing::{Bench, WRITABLE};

    #[test]
    fn the_guest_reads_the_disk_and_cannot_write_it() {
        let documents = [("user-data".to_owned(), b"#cloud-config".to_vec())];
        let config = SeedConfig::new(documents).unwrap();
        let image = config.image().unwrap();
        let mut bench = Bench::new(Box::new(SeedDevice::new(&config).unwrap()));
        let sectors = image.len() as u64 / SECTOR_BYTES;
        let [done, failed] = [Status::Ok, Status::Failed].map(|status| status as u8);
        for sector in [0, sectors - 2] {
            assert_eq!(ask(&mut bench, VIRTIO_BLK_T_IN, sector, &[(DATA, 1024, WRITABLE)]), done);
            let expected = &image[(sector * SECTOR_BYTES) as usize..][..1024];
            assert_eq!(bench.bytes(DATA, 1024), expected);
        }
        assert_eq!(ask(&mut bench, VIRTIO_BLK_T_GET_ID, 0, &[(DATA, 20, WRITABLE)]), done);
        assert_eq!(bench.bytes(DATA, 20), SERIAL);
        assert_eq!(ask(&mut bench, VIRTIO_BLK_T_FLUSH, 0, &[(DATA, 512, 0)]), done);
        for sector in [sectors - 1, sectors, u64::MAX] {
            let status = ask(&mut bench, VIRTIO_BLK_T_IN, sector, &[(DATA, 1024, WRITABLE)]);
            assert_eq!(status, failed, "{sector}");
        }
        assert_eq!(ask(&mut bench, VIRTIO_BLK_T_OUT, 0, &[(DATA, 512, 0)]), failed);
        assert_eq!(ask(&mut bench, VIRTIO_BLK_T_IN, 0, &[(DATA, 512, WRITABLE)]), done);
        assert_eq!(bench.bytes(DATA, 512), &image[..512]);
    }
}
