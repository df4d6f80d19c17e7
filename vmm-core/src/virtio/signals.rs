//! What a device tells its driver through registers: the interrupt's reasons, that it wants a
//! reset, and its configuration space. Written by the device's thread, read by the vCPUs'.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

/// See the module.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt_status: AtomicU32,
    needs_reset: AtomicBool,
    config: Mutex<ConfigSpace>,
}

/// Why the driver is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A buffer was used.
    Used,
    /// The configuration or the device's status has changed.
    Config,
}

/// A device's configuration space (virtio 1.2, 2.5).
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: Vec<u8>,
    /// What the driver may write; writes elsewhere are ignored.
    writable: Vec<Range<usize>>,
    generation: u32,
}

impl ConfigSpace {
    /// A space that the driver only reads.
    pub(crate) fn read_only(bytes: Vec<u8>) -> Self {
        Self { bytes, writable: Vec::new(), generation: 0 }
    }

    /// A space of which the driver may write a part.
    pub(crate) fn with_writable(bytes: Vec<u8>, writable: Range<usize>) -> Self {
        Self::read_only(bytes).and_writable(writable)
    }

    /// The same with another part that the driver may write.
    pub(crate) fn and_writable(mut self, part: Range<usize>) -> Self {
        self.writable.push(part);
        self
    }

    /// Fills `data` from `offset` on; what lies behind the end reads as 0.
    fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let rest = self.bytes.get(offset..).unwrap_or_default();
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    /// True when all of `data` lies where the driver may write, and has been written.
    fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let Some(end) = offset.checked_add(data.len()) else { return false };
        let allowed = self.writable.iter().any(|part| offset >= part.start && end <= part.end);
        match self.bytes.get_mut(offset..end) {
            Some(place) if allowed => {
                place.copy_from_slice(data);
                true
            }
            _ => false,
        }
    }
}

impl Signals {
    /// Nothing signalled, and a configuration.
    pub(crate) fn new(config: ConfigSpace) -> Self {
        Self {
            interrupt_status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            config: Mutex::new(config),
        }
    }

    /// Adds a reason for an interrupt. Raise the line afterwards.
    pub(super) fn add(&self, cause: Cause) {
        let bit = match cause {
            Cause::Used => VIRTIO_MMIO_INT_VRING,
            Cause::Config => VIRTIO_MMIO_INT_CONFIG,
        };
        self.interrupt_status.fetch_or(bit, Ordering::AcqRel);
    }

    /// Reasons that the driver has not acknowledged.
    pub(crate) fn interrupt_status(&self) -> u32 {
        self.interrupt_status.load(Ordering::Acquire)
    }

    /// The driver has seen these reasons.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.interrupt_status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// The device cannot go on until it is reset.
    pub(super) fn set_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
    }

    /// Whether it waits for a reset.
    pub(crate) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// As after a reset. The configuration stays.
    pub(super) fn clear(&self) {
        self.interrupt_status.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }

    /// Changes the configuration's bytes, never their number; the driver sees a new generation.
    pub(crate) fn change_config(&self, change: impl FnOnce(&mut [u8])) {
        let mut config = self.config();
        change(&mut config.bytes);
        config.generation = config.generation.wrapping_add(1);
    }

    /// Replaces the configuration by that of a device of which no driver knows; generations go on.
    pub(super) fn replace_config(&self, space: ConfigSpace) {
        let mut config = self.config();
        let generation = config.generation;
        *config = ConfigSpace { generation, ..space };
    }

    /// Fills `data` from the configuration.
    pub(crate) fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// The driver writes the configuration; true when it may.
    pub(super) fn write_config(&self, offset: usize, data: &[u8]) -> bool {
        self.config().write(offset, data)
    }

    /// Number of the configuration's changes by the device.
    pub(crate) fn config_generation(&self) -> u32 {
        self.config().generation
    }

    /// Takes the saved values.
    pub(super) fn load(&self, interrupt_status: u32, needs_reset: bool, config_generation: u32) {
        let known = VIRTIO_MMIO_INT_VRING | VIRTIO_MMIO_INT_CONFIG;
        self.interrupt_status.store(interrupt_status & known, Ordering::Release);
        self.needs_reset.store(needs_reset, Ordering::Release);
        self.config().generation = config_generation;
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_driver_writes_only_what_it_may() {
        let signals = Signals::new(ConfigSpace::with_writable(vec![1; 8], 4..8));
        assert!(signals.write_config(4, &[2, 2]));
        assert!(!signals.write_config(3, &[9, 9]), "half of it is read-only");
        assert!(!signals.write_config(7, &[9, 9]), "half of it is behind the end");
        assert!(!signals.write_config(usize::MAX, &[9]));
        let mut bytes = [7; 10];
        signals.read_config(0, &mut bytes);
        assert_eq!(bytes, [1, 1, 1, 1, 2, 2, 1, 1, 0, 0]);
        signals.read_config(usize::MAX, &mut bytes);
        assert_eq!(bytes, [0; 10]);
    }

    #[test]
    fn a_change_by_the_device_is_a_new_generation() {
        let signals = Signals::new(ConfigSpace::read_only(vec![0; 4]));
        signals.change_config(|bytes| bytes[0] = 1);
        assert_eq!(signals.config_generation(), 1);
    }

    #[test]
    fn reasons_stay_until_they_are_acknowledged() {
        let signals = Signals::new(ConfigSpace::read_only(Vec::new()));
        signals.add(Cause::Used);
        signals.add(Cause::Config);
        signals.acknowledge(1);
        assert_eq!(signals.interrupt_status(), 2);
        signals.clear();
        assert_eq!(signals.interrupt_status(), 0);
    }
}
