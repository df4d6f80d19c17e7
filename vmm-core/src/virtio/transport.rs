//! The registers of a virtio-mmio device as a state machine (virtio 1.2, 4.2.2 and 3.1.1).
//!
//! It has no file descriptor, no thread and no guest memory: [`Transport::read`] and
//! [`Transport::write`] take a vCPU's access, and `write` returns the action that must follow. A
//! driver's access that breaks the rules is ignored, as if the register could not be written; no
//! sequence of accesses brings the registers into a state that the rules forbid.

mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio as register;

use super::Signals;
use super::device::DeviceKind;

pub use state::{QueueRegisters, TransportState};

/// "virt", little-endian.
const MAGIC: u32 = 0x7472_6976;
/// Version of the register layout (version 1 is the legacy layout).
const VERSION: u32 = 2;
/// Vendor ID, "LGHT"; drivers ignore it.
const VENDOR: u32 = 0x5448_474c;
/// Offset of the configuration space.
const CONFIG: u64 = register::VIRTIO_MMIO_CONFIG as u64;
/// Most queues that a device may have: each costs an eventfd.
pub(crate) const QUEUES_MAX: usize = 16;

const ACKNOWLEDGE: u32 = VIRTIO_CONFIG_S_ACKNOWLEDGE;
const DRIVER: u32 = VIRTIO_CONFIG_S_DRIVER;
const FEATURES_OK: u32 = VIRTIO_CONFIG_S_FEATURES_OK;
const DRIVER_OK: u32 = VIRTIO_CONFIG_S_DRIVER_OK;
const FAILED: u32 = VIRTIO_CONFIG_S_FAILED;

/// The action that must follow a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The write needs nothing more.
    None,
    /// The driver is ready: start processing the queues.
    Activate,
    /// The driver has reset the device.
    Reset,
    /// The driver has given up on the device, which must not use the queues any more.
    Abandon,
    /// The driver has notified this queue.
    Notify(usize),
    /// The driver has written the configuration space.
    ConfigWritten,
}

/// The registers of a device; see the module.
#[derive(Debug)]
pub(crate) struct Transport {
    kind: DeviceKind,
    offered: u64,
    signals: Arc<Signals>,
    device_features_page: u32,
    driver_features_page: u32,
    driver_features: u64,
    selected_queue: u32,
    queues: Vec<QueueRegisters>,
    status: u32,
}

impl Transport {
    /// Creates the registers of a device after power-on. `queue_sizes` are powers of two, at most
    /// [`QUEUES_MAX`] of them.
    pub(crate) fn new(
        kind: DeviceKind,
        offered: u64,
        queue_sizes: &[u16],
        signals: Arc<Signals>,
    ) -> Self {
        Self {
            kind,
            offered,
            signals,
            device_features_page: 0,
            driver_features_page: 0,
            driver_features: 0,
            selected_queue: 0,
            queues: queue_sizes.iter().map(|size| QueueRegisters::new(*size)).collect(),
            status: 0,
        }
    }

    /// Returns the features that the driver has accepted.
    pub(crate) fn features(&self) -> u64 {
        self.driver_features
    }

    /// Returns the queues as the driver has set them up.
    pub(crate) fn queues(&self) -> &[QueueRegisters] {
        &self.queues
    }

    /// Returns whether the driver has set DRIVER_OK and not FAILED.
    pub(crate) fn is_active(&self) -> bool {
        self.status & (DRIVER_OK | FAILED) == DRIVER_OK
    }

    /// Handles a driver's read of `data.len()` bytes at `offset`. Registers must be read with 32
    /// bits at their own offset; other reads return 0.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return self.signals.read_config(offset as usize, data);
        }
        match <&mut [u8; 4]>::try_from(&mut *data) {
            Ok(word) => *word = self.read_register(offset as u32).to_le_bytes(),
            Err(_) => data.fill(0),
        }
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            register::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            register::VIRTIO_MMIO_VERSION => VERSION,
            register::VIRTIO_MMIO_DEVICE_ID => self.kind as u32,
            register::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            register::VIRTIO_MMIO_DEVICE_FEATURES => page(self.offered, self.device_features_page),
            register::VIRTIO_MMIO_QUEUE_NUM_MAX => {
                self.queue().map_or(0, |queue| queue.size_max.into())
            }
            register::VIRTIO_MMIO_QUEUE_READY => self.queue().map_or(0, |queue| queue.ready.into()),
            register::VIRTIO_MMIO_INTERRUPT_STATUS => self.signals.interrupt_status(),
            register::VIRTIO_MMIO_STATUS => self.status(),
            // There are no shared memory regions: their length reads as -1.
            register::VIRTIO_MMIO_SHM_LEN_LOW
            | register::VIRTIO_MMIO_SHM_LEN_HIGH
            | register::VIRTIO_MMIO_SHM_BASE_LOW
            | register::VIRTIO_MMIO_SHM_BASE_HIGH => u32::MAX,
            register::VIRTIO_MMIO_CONFIG_GENERATION => self.signals.config_generation(),
            _ => 0,
        }
    }

    /// Handles a driver's write of `data` at `offset`. Outside the configuration space, anything
    /// but 32 bits at a register's own offset is ignored.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            let may = self.status & DRIVER != 0 && self.status & FAILED == 0;
            let written = may && self.signals.write_config(offset as usize, data);
            return if written { Effect::ConfigWritten } else { Effect::None };
        }
        match <[u8; 4]>::try_from(data) {
            Ok(word) => self.write_register(offset as u32, u32::from_le_bytes(word)),
            Err(_) => Effect::None,
        }
    }

    fn write_register(&mut self, offset: u32, value: u32) -> Effect {
        match offset {
            register::VIRTIO_MMIO_STATUS => return self.write_status(value),
            register::VIRTIO_MMIO_QUEUE_NOTIFY => return self.notify(value),
            register::VIRTIO_MMIO_INTERRUPT_ACK => self.signals.acknowledge(value),
            register::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_page = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_page = value,
            register::VIRTIO_MMIO_DRIVER_FEATURES => self.write_features(value),
            register::VIRTIO_MMIO_QUEUE_SEL => self.selected_queue = value,
            _ => self.write_queue(offset, value),
        }
        Effect::None
    }

    /// Sets features. The driver may do so after DRIVER and before FEATURES_OK.
    fn write_features(&mut self, value: u32) {
        if self.status & (DRIVER | FEATURES_OK | FAILED) != DRIVER {
            return;
        }
        let shift = match self.driver_features_page {
            0 => 0,
            1 => 32,
            _ => return,
        };
        let others = self.driver_features & !(u64::from(u32::MAX) << shift);
        self.driver_features = others | u64::from(value) << shift;
    }

    /// Sets up a queue. The driver may do so after FEATURES_OK and before DRIVER_OK; a queue that
    /// is ready can only be set to not ready.
    fn write_queue(&mut self, offset: u32, value: u32) {
        if self.status & (FEATURES_OK | DRIVER_OK | FAILED) != FEATURES_OK {
            return;
        }
        let selected = self.selected_queue as usize;
        let Some(queue) = self.queues.get_mut(selected) else { return };
        match offset {
            register::VIRTIO_MMIO_QUEUE_READY => queue.set_ready(value == 1),
            _ if queue.ready => {}
            register::VIRTIO_MMIO_QUEUE_NUM => queue.set_size(value),
            register::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut queue.descriptors, value),
            register::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut queue.descriptors, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut queue.available, value),
            register::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut queue.available, value),
            register::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut queue.used, value),
            register::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut queue.used, value),
            _ => {}
        }
    }

    fn notify(&self, value: u32) -> Effect {
        let queue = value as usize;
        let ready = self.queues.get(queue).is_some_and(|queue| queue.ready);
        if self.is_active() && ready { Effect::Notify(queue) } else { Effect::None }
    }

    /// Sets the status. Only a reset clears bits, and the driver sets them in the order of 3.1.1.
    /// It writes back what it has read, so the value may include NEEDS_RESET, which belongs to the
    /// device.
    fn write_status(&mut self, value: u32) -> Effect {
        if value == 0 {
            self.reset();
            return Effect::Reset;
        }
        let value = value & !VIRTIO_CONFIG_S_NEEDS_RESET;
        let known = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;
        let taken_back = self.status & !value != 0;
        if taken_back || value & !known != 0 || self.status & FAILED != 0 {
            return Effect::None;
        }
        let was_active = self.is_active();
        for (bit, needs) in [
            (ACKNOWLEDGE, 0),
            (DRIVER, ACKNOWLEDGE),
            (FEATURES_OK, DRIVER),
            (DRIVER_OK, FEATURES_OK),
            (FAILED, 0),
        ] {
            let refused = bit == FEATURES_OK && !features_fit(self.driver_features, self.offered);
            if value & bit != 0 && self.status & needs == needs && !refused {
                self.status |= bit;
            }
        }
        match (was_active, self.is_active()) {
            (false, true) => Effect::Activate,
            (true, false) => Effect::Abandon,
            _ => Effect::None,
        }
    }

    fn reset(&mut self) {
        self.device_features_page = 0;
        self.driver_features_page = 0;
        self.driver_features = 0;
        self.selected_queue = 0;
        self.queues.iter_mut().for_each(QueueRegisters::reset);
        self.status = 0;
        self.signals.clear();
    }

    fn status(&self) -> u32 {
        let needs_reset = self.status != 0 && self.signals.needs_reset();
        self.status | if needs_reset { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 }
    }

    fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.selected_queue as usize)
    }
}

/// Returns whether the driver accepted only offered features, and VIRTIO_F_VERSION_1 among them.
fn features_fit(accepted: u64, offered: u64) -> bool {
    accepted & !offered == 0 && accepted >> VIRTIO_F_VERSION_1 & 1 == 1
}

/// Returns the 32 features of a page; there are two pages.
fn page(features: u64, page: u32) -> u32 {
    match page {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

fn set_low(address: &mut u64, value: u32) {
    *address = *address & !u64::from(u32::MAX) | u64::from(value);
}

fn set_high(address: &mut u64, value: u32) {
    *address = *address & u64::from(u32::MAX) | u64::from(value) << 32;
}
