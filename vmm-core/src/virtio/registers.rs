//! The registers of a virtio device as a state machine, whatever their layout (virtio 1.2, 2 and
//! 3.1.1).
//!
//! It has no file descriptor, no thread and no guest memory. A [`super::transport::Transport`]
//! translates a vCPU's accesses to calls; some return the action that must follow. A driver's
//! access that breaks the rules is ignored, as if the register could not be written; no sequence of
//! calls brings the registers into a state that the rules forbid.

mod state;

use std::sync::Arc;

use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};

use super::Signals;
use super::device::DeviceKind;

#[cfg(test)]
pub(super) use state::is_possible_status;
pub use state::{QueueRegisters, TransportState};

/// Most queues that a device may have: each costs an eventfd.
pub(crate) const QUEUES_MAX: usize = 17;

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
pub(crate) struct Registers {
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

impl Registers {
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

    /// Returns the type of the device.
    pub(super) fn kind(&self) -> DeviceKind {
        self.kind
    }

    /// Returns the pages of features that are selected: the device's, and the driver's.
    pub(super) fn selected_pages(&self) -> [u32; 2] {
        [self.device_features_page, self.driver_features_page]
    }

    /// Selects a page of the device's features.
    pub(super) fn select_device_features(&mut self, page: u32) {
        self.device_features_page = page;
    }

    /// Selects a page of the driver's features.
    pub(super) fn select_driver_features(&mut self, page: u32) {
        self.driver_features_page = page;
    }

    /// Returns the selected page of the features that the device offers.
    pub(super) fn offered_page(&self) -> u32 {
        page(self.offered, self.device_features_page)
    }

    /// Returns the selected page of the features that the driver has accepted.
    pub(super) fn accepted_page(&self) -> u32 {
        page(self.driver_features, self.driver_features_page)
    }

    /// Selects a queue, which may not exist.
    pub(super) fn select_queue(&mut self, index: u32) {
        self.selected_queue = index;
    }

    /// Returns the index of the selected queue, which may not exist.
    pub(super) fn selected_queue(&self) -> u32 {
        self.selected_queue
    }

    /// Returns the selected queue, if it exists.
    pub(super) fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(self.selected_queue as usize)
    }

    /// Returns the selected queue if it exists and the driver may set it up now: after FEATURES_OK
    /// and before DRIVER_OK. The caller leaves a queue that is ready as it is.
    pub(super) fn queue_in_setup(&mut self) -> Option<&mut QueueRegisters> {
        let may = self.status & (FEATURES_OK | DRIVER_OK | FAILED) == FEATURES_OK;
        self.queues.get_mut(self.selected_queue as usize).filter(|_| may)
    }

    /// What the device tells its driver.
    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }

    /// Writes the device's configuration for the driver.
    pub(super) fn write_config(&self, offset: usize, data: &[u8]) -> Effect {
        let may = self.status & DRIVER != 0 && self.status & FAILED == 0;
        let written = may && self.signals.write_config(offset, data);
        if written { Effect::ConfigWritten } else { Effect::None }
    }

    /// Sets features. The driver may do so after DRIVER and before FEATURES_OK.
    pub(super) fn write_features(&mut self, value: u32) {
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

    /// Handles a notification of the driver for a queue, which may not exist.
    pub(super) fn notify(&self, value: u32) -> Effect {
        let queue = value as usize;
        let ready = self.queues.get(queue).is_some_and(|queue| queue.ready);
        if self.is_active() && ready { Effect::Notify(queue) } else { Effect::None }
    }

    /// Sets the status. Only a reset clears bits, and the driver sets them in the order of 3.1.1.
    /// It writes back what it has read, so the value may include NEEDS_RESET, which belongs to the
    /// device.
    pub(super) fn write_status(&mut self, value: u32) -> Effect {
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

    /// Returns the status as the driver sees it.
    pub(super) fn status(&self) -> u32 {
        let needs_reset = self.status != 0 && self.signals.needs_reset();
        self.status | if needs_reset { VIRTIO_CONFIG_S_NEEDS_RESET } else { 0 }
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
