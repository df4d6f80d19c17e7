//! A device with its queues, as its thread sees them: decides what to process, and when.
//!
//! This module has no thread and no file descriptor, so pausing, resetting, saving and breaking are
//! tested here. Two rules hold: while paused, nothing reads or writes the guest's memory; and once
//! a queue is broken, no queue is touched until the driver has reset the device.

#[cfg(test)]
mod tests;

use std::any::Any;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use super::device::{Device, Progress, Rings, WantedQueues};
use super::error::DeviceError;
use super::interrupt::Interrupt;
use super::queue::{Queue, QueueError, QueuePosition, Suppression};
use super::registers::QueueRegisters;
use crate::memory::GuestRam;

/// Maximum size of a device's own state, in bytes.
const STATE_BYTES_MAX: usize = 64 << 10;

/// Saved state of the queues and the device, without the registers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendState {
    /// Positions of the queues; `None` for queues that the driver has not set up.
    pub positions: Vec<Option<QueuePosition>>,
    /// State specific to the type of device.
    pub device: Vec<u8>,
}

/// When a queue must be processed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// Only after the driver notifies.
    Never,
    /// At once: the driver has notified, or work is left.
    Now,
    /// At this time.
    At(Instant),
}

/// A device, its queues and its interrupt; see the module.
#[derive(Debug)]
pub(crate) struct Backend {
    device: Box<dyn Device>,
    interrupt: Interrupt,
    ram: Arc<GuestRam>,
    /// By index; all `None` unless the driver is ready and no queue is broken.
    queues: Vec<Option<Queue>>,
    due: Vec<Due>,
    /// Queues that the device itself asked to have processed.
    wanted: WantedQueues,
    paused: bool,
    /// Whether a broken queue was logged. Only the first one is: a guest can break its queues as
    /// often as it likes.
    warned: bool,
}

impl Backend {
    /// Creates a paused device whose driver is not ready yet.
    pub(crate) fn new(device: Box<dyn Device>, ram: Arc<GuestRam>, interrupt: Interrupt) -> Self {
        let count = device.queue_sizes().len();
        let queues = (0..count).map(|_| None).collect();
        let due = vec![Due::Never; count];
        let wanted = WantedQueues::default();
        Self { device, interrupt, ram, queues, due, wanted, paused: true, warned: false }
    }

    /// Returns the device.
    pub(crate) fn device(&mut self) -> &mut (dyn Device + 'static) {
        &mut *self.device
    }

    /// Returns whether the device is paused.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Opens the queues: the driver is ready.
    pub(crate) fn activate(&mut self, features: u64, registers: &[QueueRegisters]) {
        let start = QueuePosition { next_available: 0, next_used: 0 };
        let positions: Vec<_> =
            registers.iter().map(|queue| queue.ready.then_some(start)).collect();
        match self.open_queues(features, registers, &positions) {
            Ok(queues) => {
                self.queues = queues;
                self.device.activate(features);
                self.schedule_all();
            }
            Err(error) => self.give_up(error),
        }
    }

    fn open_queues(
        &self,
        features: u64,
        registers: &[QueueRegisters],
        positions: &[Option<QueuePosition>],
    ) -> Result<Vec<Option<Queue>>, QueueError> {
        let suppression = match features >> VIRTIO_RING_F_EVENT_IDX & 1 {
            0 => Suppression::Flag,
            _ => Suppression::Index,
        };
        let open = |(registers, position): (_, &Option<QueuePosition>)| {
            let memory = self.ram.memory();
            position
                .map(|position| Queue::new(memory, registers, suppression, position))
                .transpose()
        };
        registers.iter().zip(positions).map(open).collect()
    }

    /// Handles a reset by the driver.
    pub(crate) fn reset(&mut self) {
        self.close_queues();
        self.device.reset();
        self.interrupt.replace_config(self.device.config());
    }

    /// Closes the queues: the driver has given up. Its memory is not touched until it resets the
    /// device.
    pub(crate) fn abandon(&mut self) {
        self.close_queues();
    }

    /// Runs `job` if the device is of type `D`, else returns `None`. All queues are processed next.
    pub(crate) fn on_device<D: Device, T>(
        &mut self,
        job: impl FnOnce(&mut D, &Rings<'_>) -> T,
    ) -> Option<T> {
        let (device, rings) = self.rings(Instant::now());
        let device: &mut dyn Any = device;
        let done = device.downcast_mut().map(|device| job(device, &rings));
        self.schedule_all();
        done
    }

    /// Handles a write of the driver to the configuration space.
    pub(crate) fn config_written(&mut self) {
        let (device, mut rings) = self.rings(Instant::now());
        device.config_written(&mut rings);
    }

    /// Pauses the device. When this returns, nothing touches the guest's memory.
    pub(crate) fn pause(&mut self) {
        if self.paused {
            return;
        }
        let (device, mut rings) = self.rings(Instant::now());
        if let Err(error) = device.drain(&mut rings) {
            self.give_up(error);
        }
        self.paused = true;
    }

    /// Resumes the device. A notification or an interrupt may have been lost on the way from
    /// another host, so every queue is processed once, and an unacknowledged interrupt is raised
    /// again.
    pub(crate) fn resume(&mut self) {
        self.paused = false;
        self.schedule_all();
        self.interrupt.repeat();
        let (device, mut rings) = self.rings(Instant::now());
        device.resumed(&mut rings);
    }

    /// Handles a notification of the driver for queue `index`.
    pub(crate) fn notify(&mut self, index: usize) {
        if let (Some(due), Some(Some(_))) = (self.due.get_mut(index), self.queues.get(index)) {
            *due = Due::Now;
        }
    }

    /// Handles a watched file descriptor that became readable. Does nothing while paused: on
    /// resume, [`super::worker`] reports all descriptors as readable.
    pub(crate) fn ready(&mut self, index: usize) {
        if self.paused {
            return;
        }
        let (device, mut rings) = self.rings(Instant::now());
        if let Err(error) = device.ready(index, &mut rings) {
            self.give_up(error);
        }
        self.notify_wanted();
    }

    /// Handles what the device itself asked for.
    fn notify_wanted(&mut self) {
        let wanted = std::mem::take(&mut self.wanted);
        (0..self.due.len())
            .filter(|index| wanted.0 >> index & 1 == 1)
            .for_each(|index| self.notify(index));
    }

    /// Does what is due; of each queue, at most as many requests as the device takes in one turn.
    pub(crate) fn work(&mut self, now: Instant) {
        if !self.paused && self.device.due().is_some_and(|due| due <= now) {
            let (device, mut rings) = self.rings(now);
            device.on_due(&mut rings);
        }
        for index in 0..self.due.len() {
            let is_due = match self.due[index] {
                Due::Never => false,
                Due::Now => true,
                Due::At(then) => then <= now,
            };
            if self.paused || !is_due {
                continue;
            }
            let (device, mut rings) = self.rings(now);
            match device.process(index, &mut rings) {
                Ok(progress) => {
                    self.due[index] = match progress {
                        Progress::Idle => Due::Never,
                        Progress::More => Due::Now,
                        Progress::After(pause) => Due::At(now + pause),
                    };
                }
                Err(error) => self.give_up(error),
            }
        }
        self.notify_wanted();
    }

    /// Returns how long nothing is due; `None` means until the next event.
    pub(crate) fn idle_for(&self, now: Instant) -> Option<Duration> {
        let wait = |due: &Due| match due {
            Due::Never => None,
            Due::Now => Some(Duration::ZERO),
            Due::At(then) => Some(then.saturating_duration_since(now)),
        };
        let own = self.device.due().map(|due| due.saturating_duration_since(now));
        if self.paused { None } else { self.due.iter().filter_map(wait).chain(own).min() }
    }

    /// Returns the state of the paused device.
    ///
    /// # Errors
    /// If [`Device::save`] fails.
    pub(crate) fn save(&mut self) -> Result<BackendState, DeviceError> {
        let positions =
            self.queues.iter().map(|queue| queue.as_ref().map(Queue::position)).collect();
        Ok(BackendState { positions, device: self.device.save()? })
    }

    /// Replaces the state of the paused device. `driver` holds the driver's features and queues if
    /// the driver is ready.
    ///
    /// # Errors
    /// If the state is impossible; the text says why.
    pub(crate) fn load(
        &mut self,
        state: &BackendState,
        driver: Option<(u64, &[QueueRegisters])>,
    ) -> Result<(), String> {
        if state.device.len() > STATE_BYTES_MAX {
            return Err(format!("{} bytes of state are too many", state.device.len()));
        }
        if state.positions.len() != self.queues.len() {
            return Err(format!("{} queues, not {}", state.positions.len(), self.queues.len()));
        }
        self.close_queues();
        self.device.reset();
        let uses_queues = state.positions.iter().any(Option::is_some);
        match driver {
            Some((features, registers)) => {
                let set_up = |(position, registers): (&Option<_>, &QueueRegisters)| {
                    position.is_none() || registers.ready
                };
                if !state.positions.iter().zip(registers).all(set_up) {
                    return Err("it uses a queue that is not set up".to_owned());
                }
                self.queues = self
                    .open_queues(features, registers, &state.positions)
                    .map_err(|error| error.to_string())?;
                self.device.activate(features);
            }
            None if uses_queues => return Err("it uses queues without a driver".to_owned()),
            None => {}
        }
        self.device.load(&state.device)?;
        self.interrupt.replace_config(self.device.config());
        Ok(())
    }

    /// Closes the queues and asks the driver for a reset; no queue is touched until then.
    fn give_up(&mut self, error: QueueError) {
        self.close_queues();
        self.interrupt.needs_reset();
        if !std::mem::replace(&mut self.warned, true) {
            let device = self.device.kind().name();
            tracing::warn!(device, %error, "the guest's driver breaks the rules; the device waits for a reset");
        }
    }

    fn close_queues(&mut self) {
        self.device.queues_closed();
        self.queues.iter_mut().for_each(|queue| *queue = None);
        self.due.fill(Due::Never);
    }

    fn schedule_all(&mut self) {
        for (due, queue) in self.due.iter_mut().zip(&self.queues) {
            *due = if queue.is_some() { Due::Now } else { Due::Never };
        }
    }

    fn rings(&mut self, now: Instant) -> (&mut (dyn Device + 'static), Rings<'_>) {
        let rings = Rings {
            ram: &self.ram,
            queues: &mut self.queues,
            wanted: &mut self.wanted,
            interrupt: &self.interrupt,
            now,
        };
        (&mut *self.device, rings)
    }
}
