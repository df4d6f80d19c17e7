//! The saved registers, and their validation on load.

use serde::{Deserialize, Serialize};

use super::{
    ACKNOWLEDGE, DRIVER, DRIVER_OK, FAILED, FEATURES_OK, QUEUES_MAX, Registers, features_fit,
};

/// Registers of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueRegisters {
    /// Maximum number of entries.
    pub size_max: u16,
    /// Number of entries, a power of two.
    pub size: u16,
    /// Whether the driver has set it up.
    pub ready: bool,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring ("driver area").
    pub available: u64,
    /// Guest-physical address of the used ring ("device area").
    pub used: u64,
}

impl QueueRegisters {
    /// Creates a queue that is not set up.
    pub(crate) fn new(size_max: u16) -> Self {
        debug_assert!(size_max.is_power_of_two());
        Self { size_max, size: size_max, ready: false, descriptors: 0, available: 0, used: 0 }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.size_max);
    }

    /// Sets the number of entries, if a queue can have as many.
    pub(in crate::virtio) fn set_size(&mut self, size: u32) {
        match u16::try_from(size) {
            Ok(size) if size.is_power_of_two() && size <= self.size_max => self.size = size,
            _ => {}
        }
    }

    /// Returns whether the parts are aligned (virtio 1.2, 2.7). Address 0 means "not set".
    fn is_aligned(&self) -> bool {
        let parts = [(self.descriptors, 16), (self.available, 2), (self.used, 4)];
        parts.iter().all(|(address, align)| *address != 0 && address.is_multiple_of(*align))
    }

    /// Makes the queue ready, if its parts are where they can be, or takes that back.
    pub(in crate::virtio) fn set_ready(&mut self, ready: bool) {
        self.ready = ready && self.is_aligned();
    }

    fn is_possible(&self, size_max: u16) -> bool {
        self.size_max == size_max
            && self.size.is_power_of_two()
            && self.size <= size_max
            && (!self.ready || self.is_aligned())
    }
}

/// Saved registers of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportState {
    /// The device's id (virtio 1.2, 5).
    pub device_id: u32,
    /// Features that the device offers.
    pub offered: u64,
    /// Selected page of the device's features.
    pub device_features_page: u32,
    /// Selected page of the driver's features.
    pub driver_features_page: u32,
    /// Features that the driver has accepted.
    pub driver_features: u64,
    /// Index of the queue whose registers are selected.
    pub selected_queue: u32,
    /// Registers of each queue, by index.
    pub queues: Vec<QueueRegisters>,
    /// Status bits that the driver has set (virtio 1.2, 2.1).
    pub status: u32,
    /// Whether the device waits for a reset.
    pub needs_reset: bool,
    /// Interrupt causes that the driver has not acknowledged.
    pub interrupt_status: u32,
    /// Number of changes to the configuration space.
    pub config_generation: u32,
}

impl Registers {
    /// Returns all registers.
    pub(crate) fn save(&self) -> TransportState {
        TransportState {
            device_id: self.kind as u32,
            offered: self.offered,
            device_features_page: self.device_features_page,
            driver_features_page: self.driver_features_page,
            driver_features: self.driver_features,
            selected_queue: self.selected_queue,
            queues: self.queues.clone(),
            status: self.status,
            needs_reset: self.signals.needs_reset(),
            interrupt_status: self.signals.interrupt_status(),
            config_generation: self.signals.config_generation(),
        }
    }

    /// Replaces all registers, unless no driver could have set them this way.
    ///
    /// # Errors
    /// If the state is impossible; the text says why.
    pub(crate) fn load(&mut self, state: &TransportState) -> Result<(), String> {
        self.check(state)?;
        self.device_features_page = state.device_features_page;
        self.driver_features_page = state.driver_features_page;
        self.driver_features = state.driver_features;
        self.selected_queue = state.selected_queue;
        self.queues.clone_from(&state.queues);
        self.status = state.status;
        self.signals.load(state.interrupt_status, state.needs_reset, state.config_generation);
        Ok(())
    }

    fn check(&self, state: &TransportState) -> Result<(), String> {
        if state.device_id != self.kind as u32 {
            return Err(format!("it has id {}, not {}", state.device_id, self.kind as u32));
        }
        // The driver may still use a feature that it has seen offered, so none may disappear.
        let lacking = state.offered & !self.offered;
        if lacking != 0 {
            return Err(format!("its features {lacking:#x} do not exist here"));
        }
        let same_queues = state.queues.len() == self.queues.len()
            && state.queues.len() <= QUEUES_MAX
            && state
                .queues
                .iter()
                .zip(&self.queues)
                .all(|(saved, own)| saved.is_possible(own.size_max));
        if !same_queues {
            return Err("its queues are not those that it has here".to_owned());
        }
        if !is_possible_status(state.status) {
            return Err(format!("its status {:#x} is not possible", state.status));
        }
        let (used, offered) = (state.driver_features, state.offered);
        if state.status & FEATURES_OK != 0 && !features_fit(used, offered) {
            return Err(format!("its driver uses features {used:#x} of {offered:#x} offered"));
        }
        if state.status & FEATURES_OK == 0 && state.queues.iter().any(|queue| queue.ready) {
            return Err("it has queues before it has features".to_owned());
        }
        Ok(())
    }
}

/// Returns whether the bits are set in their order; FAILED may be set at any time.
pub(in crate::virtio) fn is_possible_status(status: u32) -> bool {
    let steps = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
    let reached = (0..=steps.len()).map(|count| steps[..count].iter().sum::<u32>());
    reached.into_iter().any(|sum| sum == status & !FAILED)
}
