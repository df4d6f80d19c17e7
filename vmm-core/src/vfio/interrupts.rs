//! The interrupts of a device, from the host's kernel to KVM: an event for each vector.
//!
//! While a vector delivers, KVM takes its events, without us. While it is masked, the event
//! stays, and is the vector's pending bit: KVM finds it when the vector is connected again.

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::function::{Surroundings, events};
use super::view::VECTORS_MAX;
use crate::devices::FIRST_HOST_MSI_GSI;
use crate::pci::Msix;
use crate::sys::vfio::Device;

/// The interrupts of a device; see the module.
#[derive(Debug)]
pub(super) struct Interrupts {
    msix: Msix,
    /// By vector.
    vectors: Vec<Vector>,
    /// KVM's line of vector 0.
    first: u32,
    /// Whether the host's kernel signals the events.
    is_on: bool,
}

#[derive(Debug)]
struct Vector {
    event: EventFd,
    /// Whether KVM takes the events.
    is_connected: bool,
    /// Whether it has done so since MSI-X was turned on.
    was_connected: bool,
}

impl Interrupts {
    /// Returns the interrupts of the device in slot `slot`, which has so many vectors.
    ///
    /// # Errors
    /// The error of a system call.
    pub(super) fn new(slot: usize, vectors: usize) -> std::io::Result<Self> {
        let count = vectors.min(VECTORS_MAX);
        let vector = |event| Vector { event, is_connected: false, was_connected: false };
        let vectors = events(count)?.into_iter().map(vector).collect();
        let first = FIRST_HOST_MSI_GSI + (slot * VECTORS_MAX) as u32;
        Ok(Self { msix: Msix::new(count), vectors, first, is_on: false })
    }

    /// Handles a read of the table.
    pub(super) fn read_table(&self, offset: usize, data: &mut [u8]) {
        self.msix.read_table(offset, data);
    }

    /// Handles a write of the table.
    pub(super) fn write_table(
        &mut self,
        offset: usize,
        data: &[u8],
        device: &Device,
        surroundings: &Surroundings,
    ) {
        self.msix.write_table(offset, data);
        self.follow(device, surroundings);
    }

    /// Handles a read of the pending bits.
    pub(super) fn read_pending(&mut self, offset: usize, data: &mut [u8]) {
        let mut pending = 0;
        for (number, vector) in self.vectors.iter().enumerate() {
            let waits = !vector.is_connected && vector.has_event();
            pending |= u128::from(waits) << number;
        }
        self.msix.set_pending(pending);
        self.msix.read_pending(offset, data);
    }

    /// Handles the message control register, whether or not it has changed. Returns whether the
    /// device's MSI-X was turned off by that.
    pub(super) fn set_control(
        &mut self,
        control: u16,
        device: &Device,
        surroundings: &Surroundings,
    ) -> bool {
        let was_on = self.is_on;
        self.msix.set_control(control);
        self.follow(device, surroundings);
        was_on && !self.is_on
    }

    /// Puts all in the state after power-on: no interrupt is sent from then on.
    pub(super) fn reset(&mut self, device: &Device, surroundings: &Surroundings) {
        self.msix = Msix::new(self.vectors.len());
        self.follow(device, surroundings);
        let lines = (self.first..).take(self.vectors.len());
        if let Err(error) = surroundings.routes.set(lines.map(|line| (line, None))) {
            tracing::error!(%error, "cannot take the routes of a device's interrupts away");
        }
    }

    /// Has the host's kernel and KVM know what the guest has set.
    fn follow(&mut self, device: &Device, Surroundings { vm, routes, .. }: &Surroundings) {
        let first = self.first;
        let messages =
            self.msix.messages().map(|(vector, message)| (first + u32::from(vector), message));
        if let Err(error) = routes.set(messages) {
            tracing::error!(%error, "cannot route the interrupts of a device to the guest");
        }
        for (number, vector) in self.vectors.iter_mut().enumerate() {
            let (delivers, number) = (self.msix.delivers(number), number as u32);
            // A driver that has reset its device writes the table again while MSI-X is on.
            if delivers && !vector.is_connected && vector.was_connected && self.is_on {
                vector.signal_again(number, device);
            }
            vector.connect(delivers, first + number, vm);
            vector.was_connected |= vector.is_connected;
        }
        if self.msix.is_enabled() != self.is_on {
            self.switch(device);
        }
    }

    /// Turns the device's own MSI-X on or off, as the guest has.
    fn switch(&mut self, device: &Device) {
        self.is_on = self.msix.is_enabled();
        if !self.is_on {
            if let Err(error) = device.signal_msix(&[]) {
                tracing::warn!(%error, "cannot turn off the interrupts of a device");
            }
            // What came before the guest turned them off is not pending any more.
            for vector in &mut self.vectors {
                let _ = vector.event.read();
                vector.was_connected = false;
            }
            return;
        }
        let events: Vec<&EventFd> = self.vectors.iter().map(|vector| &vector.event).collect();
        let connected = device.signal_msix(&events).and_then(|room| match room < events.len() {
            true => device.signal_msix(&events[..room]).map(|_| room),
            false => Ok(room),
        });
        match connected {
            Ok(room) if room == self.vectors.len() => {}
            Ok(room) => tracing::warn!(
                wanted = self.vectors.len(),
                room,
                "the host has room for some of a device's interrupts only"
            ),
            Err(error) => tracing::error!(%error, "cannot turn on the interrupts of a device"),
        }
    }
}

impl Vector {
    fn signal_again(&self, number: u32, device: &Device) {
        if let Err(error) = device.signal_vector(number, &self.event) {
            tracing::warn!(%error, "an interrupt of a device may be lost");
        }
    }

    fn has_event(&self) -> bool {
        // Reading takes the event, so it is put back.
        self.event.read().is_ok_and(|count| self.event.write(count).is_ok())
    }

    /// Has KVM interrupt `line` for each event, or not. An event that waits comes once more then,
    /// so that KVM takes it.
    fn connect(&mut self, wanted: bool, line: u32, vm: &VmFd) {
        if self.is_connected == wanted {
            return;
        }
        let (done, what) = if wanted {
            let waits = self.event.read().is_ok();
            let done = vm.register_irqfd(&self.event, line);
            if waits {
                // It fails only if very many wait already.
                let _ = self.event.write(1);
            }
            (done, "does not take")
        } else {
            (vm.unregister_irqfd(&self.event, line), "keeps")
        };
        match done {
            Ok(()) => self.is_connected = wanted,
            Err(error) => tracing::error!(%error, "KVM {what} the interrupts of a device"),
        }
    }
}
