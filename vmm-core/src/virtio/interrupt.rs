//! A device's interrupt: its pending causes in the registers, and its line.

use std::fmt::Debug;
use std::sync::Arc;

use vm_superio::Trigger;
use vmm_sys_util::eventfd::EventFd;

use super::Signals;
use super::signals::{Cause, ConfigSpace, Unacknowledged};
use crate::devices::IrqLine;

/// What carries a device's interrupts to the guest.
pub(crate) trait Line: Debug + Send + Sync {
    /// Interrupts the driver.
    fn raise(&self, cause: Cause);

    /// Interrupts the driver again for what it may have missed. A spurious interrupt for buffers
    /// does no harm; a driver whose interrupt was lost would wait forever.
    fn repeat(&self, unacknowledged: Unacknowledged);

    /// Has KVM interrupt the driver by itself when `signal` is written because buffers of `queue`
    /// were used, whenever it can.
    fn follow(&self, _queue: usize, _signal: EventFd) {}

    /// Takes a signal that KVM has not: returns whether it was written, so that [`Line::raise`] has
    /// to be called.
    fn take(&self, _queue: usize, signal: &EventFd) -> bool {
        signal.read().is_ok()
    }
}

impl Line for IrqLine {
    fn raise(&self, _cause: Cause) {
        // The line exists for as long as the VM: an error from KVM is a bug, and not the guest's
        // problem.
        if let Err(error) = self.trigger() {
            tracing::error!(line = ?self, %error, "cannot interrupt the guest");
        }
    }

    fn repeat(&self, unacknowledged: Unacknowledged) {
        if unacknowledged.used || unacknowledged.config {
            self.raise(Cause::Config);
        }
    }
}

/// A device's interrupt; see the module.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    signals: Arc<Signals>,
    line: Arc<dyn Line>,
}

impl Interrupt {
    /// Creates the interrupt whose causes are recorded in `signals`.
    pub(crate) fn new(signals: Arc<Signals>, line: Arc<dyn Line>) -> Self {
        Self { signals, line }
    }

    /// Changes bytes of the configuration space, never its length. Raise [`Cause::Config`]
    /// afterwards.
    pub(super) fn change_config(&self, change: impl FnOnce(&mut [u8])) {
        self.signals.change_config(change);
    }

    /// Fills `bytes` from the start of the configuration space.
    pub(super) fn read_config(&self, bytes: &mut [u8]) {
        self.signals.read_config(0, bytes);
    }

    /// Replaces the configuration space while no driver uses it.
    pub(super) fn replace_config(&self, config: ConfigSpace) {
        self.signals.replace_config(config);
    }

    /// Interrupts the driver.
    pub(crate) fn raise(&self, cause: Cause) {
        self.signals.add(cause);
        self.line.raise(cause);
    }

    /// Interrupts the driver if `signal` was written because buffers of `queue` were used, and KVM
    /// has not done that already, see [`Line::follow`].
    pub(crate) fn pass_on(&self, queue: usize, signal: &EventFd) {
        if self.line.take(queue, signal) {
            self.raise(Cause::Used(queue));
        }
    }

    /// Interrupts the driver again for what it may have missed.
    pub(crate) fn repeat(&self) {
        self.line.repeat(self.signals.unacknowledged());
    }

    /// Reports to the driver that the device cannot continue until a reset.
    pub(crate) fn needs_reset(&self) {
        self.signals.set_needs_reset();
        self.raise(Cause::Config);
    }
}
