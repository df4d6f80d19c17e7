//! The disk as a device.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ,
    VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};

use super::SECTOR_BYTES;
use super::config::{Access, BlockConfig};
use super::disk::Disk;
use super::engine::{Engine, Positioned};
use super::request::{
    DISCARD_SECTORS_MAX, Limits, Operation, RANGES_MAX, Request, SEGMENT_BYTES_MAX, SEGMENTS_MAX,
    Status, Wish, ZERO_SECTORS_MAX, parse,
};
use crate::memory::RamMap;
use crate::virtio::DeviceError;
use crate::virtio::device::{Device, DeviceKind, Progress, Rings};
use crate::virtio::queue::{Chain, QueueError};
use crate::virtio::signals::ConfigSpace;

/// Queues, so that vCPUs need not wait for each other; one thread serves them all.
const QUEUES: u16 = 4;
/// Entries of each queue.
const QUEUE_SIZE: u16 = 256;
/// Requests served before the thread looks for other work: a pause waits for so many at most.
const BATCH: usize = 16;
/// Bytes of a serial number, padded with zeros.
const SERIAL_BYTES: usize = 20;

/// See the module.
#[derive(Debug)]
pub(crate) struct BlockDevice {
    disk: Disk,
    engine: Box<dyn Engine>,
    limits: Limits,
    serial: [u8; SERIAL_BYTES],
    /// Whether each write must be durable, as for a driver that does not flush.
    writes_through: bool,
    /// A guest can repeat what fails as often as it likes; the log hears of it once.
    complained: bool,
}

impl BlockDevice {
    /// Opens the disk, without locking it.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub(crate) fn open(config: &BlockConfig) -> Result<Self, DeviceError> {
        let disk = Disk::open(config.path(), config.access())?;
        disk.expect_bytes(config.bytes())?;
        let mut serial = [0; SERIAL_BYTES];
        let given = config.serial().as_bytes();
        let len = given.len().min(SERIAL_BYTES);
        serial[..len].copy_from_slice(&given[..len]);
        let limits = Limits { sectors: config.bytes() / SECTOR_BYTES, access: config.access() };
        let engine = Box::new(Positioned);
        Ok(Self { disk, engine, limits, serial, writes_through: false, complained: false })
    }

    /// Serves one request; returns how many bytes were written to guest memory.
    fn serve(&mut self, chain: Chain, memory: &RamMap) -> Result<u32, QueueError> {
        let Request { wish, data_bytes, status } = parse(chain, memory, &self.limits)?;
        let answer = match wish {
            Wish::Refused(refusal) => refusal,
            Wish::Identify(place) => {
                place.write(memory, &self.serial).map_err(|_| QueueError::Buffer)?;
                Status::Ok
            }
            Wish::Do(operation) => self.carry_out(&operation, memory),
        };
        status.write(memory, &[answer as u8]).map_err(|_| QueueError::Buffer)?;
        let written = if answer == Status::Ok { data_bytes } else { 0 };
        Ok(written.saturating_add(1))
    }

    fn carry_out(&mut self, operation: &Operation, memory: &RamMap) -> Status {
        let done = self.engine.carry_out(&self.disk, operation, memory).and_then(|()| {
            let changes = !matches!(operation, Operation::Read { .. } | Operation::Flush);
            if changes && self.writes_through { self.disk.file().sync_data() } else { Ok(()) }
        });
        match done {
            Ok(()) => Status::Ok,
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(disk = ?self.disk, %error, "a request to a disk has failed");
                }
                Status::Failed
            }
        }
    }
}

impl Device for BlockDevice {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Block
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH
            | 1 << VIRTIO_BLK_F_MQ;
        let rest = match self.disk.access() {
            Access::ReadOnly => 1 << VIRTIO_BLK_F_RO,
            Access::ReadWrite => 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        };
        always | rest
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; QUEUES.into()]
    }

    /// `struct virtio_blk_config` (virtio 1.2, 5.2.4).
    fn config(&self) -> ConfigSpace {
        let mut bytes = vec![0; 60];
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(0, &self.limits.sectors.to_le_bytes());
        put(8, &SEGMENT_BYTES_MAX.to_le_bytes());
        put(12, &SEGMENTS_MAX.to_le_bytes());
        put(20, &(SECTOR_BYTES as u32).to_le_bytes());
        put(34, &QUEUES.to_le_bytes());
        let any_alignment = 1u32;
        for (at, value) in [(36, DISCARD_SECTORS_MAX), (40, RANGES_MAX), (44, any_alignment)] {
            put(at, &value.to_le_bytes());
        }
        put(48, &ZERO_SECTORS_MAX.to_le_bytes());
        put(52, &RANGES_MAX.to_le_bytes());
        let may_unmap = 1;
        put(56, &[may_unmap]);
        ConfigSpace::read_only(bytes)
    }

    fn activate(&mut self, features: u64) {
        self.writes_through = features >> VIRTIO_BLK_F_FLUSH & 1 == 0;
    }

    fn process(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<Progress, QueueError> {
        rings.serve(index, BATCH, |chain, memory| self.serve(chain, memory))
    }

    fn take_over(&mut self) -> Result<(), DeviceError> {
        self.disk.take_over()
    }

    fn release(&mut self) {
        self.disk.release();
    }

    /// Nothing but the disk's content, which must have reached the disk: the guest may go on on
    /// another host, which does not see what is in this one's cache.
    fn save(&mut self) -> Result<Vec<u8>, DeviceError> {
        self.disk.flush()?;
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests;
