//! What a device tells its driver through registers: interrupt causes, the need for a reset, and
//! its configuration space. The device's thread writes them, the vCPU threads read them.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};

/// The registers that a device sets; see the module.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt_status: AtomicU32,
    needs_reset: AtomicBool,
    config: Mutex<ConfigSpace>,
}

/// Why the driver is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A buffer of this queue was used.
    Used(usize),
    /// The configuration or the device's status has changed.
    Config,
}

/// Kinds of causes that a driver has not acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unacknowledged {
    /// Used buffers.
    pub(crate) used: bool,
    /// A change of the configuration or of the device's status.
    pub(crate) config: bool,
}

/// A device's configuration space (virtio 1.2, 2.5).
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    bytes: Vec<u8>,
    /// Ranges that the driver may write; writes elsewhere are ignored.
    writable: Vec<Range<usize>>,
    generation: u32,
}

impl ConfigSpace {
    /// Creates a space that the driver can only read.
    pub(crate) fn read_only(bytes: Vec<u8>) -> Self {
        Self { bytes, writable: Vec::new(), generation: 0 }
    }

    /// Creates a space with one range that the driver may write.
    pub(crate) fn with_writable(bytes: Vec<u8>, writable: Range<usize>) -> Self {
        Self::read_only(bytes).and_writable(writable)
    }

    /// Adds another range that the driver may write.
    pub(crate) fn and_writable(mut self, part: Range<usize>) -> Self {
        self.writable.push(part);
        self
    }

    /// Fills `data` from `offset` on; bytes beyond the end read as 0.
    fn read(&self, offset: usize, data: &mut [u8]) {
        data.fill(0);
        let rest = self.bytes.get(offset..).unwrap_or_default();
        let len = rest.len().min(data.len());
        data[..len].copy_from_slice(&rest[..len]);
    }

    /// Writes `data` and returns true, if all of it lies in one writable range.
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
    /// Creates the registers with `config` and nothing signalled.
    pub(crate) fn new(config: ConfigSpace) -> Self {
        Self {
            interrupt_status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            config: Mutex::new(config),
        }
    }

    /// Adds a cause of an interrupt. Raise the line afterwards.
    pub(super) fn add(&self, cause: Cause) {
        let bit = match cause {
            Cause::Used(_) => VIRTIO_MMIO_INT_VRING,
            Cause::Config => VIRTIO_MMIO_INT_CONFIG,
        };
        self.interrupt_status.fetch_or(bit, Ordering::AcqRel);
    }

    /// Returns which kinds of causes the driver has not acknowledged.
    pub(super) fn unacknowledged(&self) -> Unacknowledged {
        let status = self.interrupt_status();
        Unacknowledged {
            used: status & VIRTIO_MMIO_INT_VRING != 0,
            config: status & VIRTIO_MMIO_INT_CONFIG != 0 || self.needs_reset(),
        }
    }

    /// Returns the causes that the driver has not acknowledged, as the register has them.
    pub(crate) fn interrupt_status(&self) -> u32 {
        self.interrupt_status.load(Ordering::Acquire)
    }

    /// Returns the causes and clears them, as reading the register of a PCI device does.
    pub(super) fn take_interrupt_status(&self) -> u32 {
        self.interrupt_status.swap(0, Ordering::AcqRel)
    }

    /// Notes that the driver has seen the configuration.
    pub(super) fn config_seen(&self) {
        self.acknowledge(VIRTIO_MMIO_INT_CONFIG);
    }

    /// Clears the causes that the driver acknowledges.
    pub(super) fn acknowledge(&self, bits: u32) {
        self.interrupt_status.fetch_and(!bits, Ordering::AcqRel);
    }

    /// Records that the device cannot continue until it is reset.
    pub(super) fn set_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
    }

    /// Returns whether the device waits for a reset.
    pub(crate) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Clears everything but the configuration, as a reset does.
    pub(super) fn clear(&self) {
        self.interrupt_status.store(0, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
    }

    /// Changes bytes of the configuration, never its length; the driver sees a new generation.
    pub(crate) fn change_config(&self, change: impl FnOnce(&mut [u8])) {
        let mut config = self.config();
        change(&mut config.bytes);
        config.generation = config.generation.wrapping_add(1);
    }

    /// Replaces the configuration while no driver uses it; the generation number continues.
    pub(super) fn replace_config(&self, space: ConfigSpace) {
        let mut config = self.config();
        let generation = config.generation;
        *config = ConfigSpace { generation, ..space };
    }

    /// Fills `data` from the configuration, from `offset` on.
    pub(crate) fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    /// Writes the configuration for the driver; returns false if it may not write there.
    pub(super) fn write_config(&self, offset: usize, data: &[u8]) -> bool {
        self.config().write(offset, data)
    }

    /// Returns the number of changes that the device made to the configuration.
    pub(crate) fn config_generation(&self) -> u32 {
        self.config().generation
    }

    /// Replaces the registers with the saved values.
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
        signals.add(Cause::Used(0));
        signals.add(Cause::Config);
        signals.acknowledge(1);
        assert_eq!(signals.interrupt_status(), 2);
        signals.clear();
        assert_eq!(signals.interrupt_status(), 0);
    }
}
