//! A device's interrupt: the reasons in its registers, and the line.

use std::sync::Arc;

use vm_superio::Trigger;

use super::Signals;
use super::signals::{Cause, ConfigSpace};
use crate::devices::IrqLine;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt {
    signals: Arc<Signals>,
    line: IrqLine,
}

impl Interrupt {
    /// The interrupt whose reasons are in `signals`.
    pub(crate) fn new(signals: Arc<Signals>, line: IrqLine) -> Self {
        Self { signals, line }
    }

    /// Changes the configuration's bytes, never their number. Raise [`Cause::Config`] afterwards.
    pub(super) fn change_config(&self, change: impl FnOnce(&mut [u8])) {
        self.signals.change_config(change);
    }

    /// Fills `bytes` from the beginning of the configuration.
    pub(super) fn read_config(&self, bytes: &mut [u8]) {
        self.signals.read_config(0, bytes);
    }

    /// Replaces the configuration, of which no driver knows.
    pub(super) fn replace_config(&self, config: ConfigSpace) {
        self.signals.replace_config(config);
    }

    /// Interrupts the driver.
    pub(crate) fn raise(&self, cause: Cause) {
        self.signals.add(cause);
        self.pulse();
    }

    /// Interrupts the driver again for what it has not acknowledged. A driver that finds nothing to
    /// do takes no harm; one that was never interrupted would wait for ever.
    pub(crate) fn repeat(&self) {
        if self.signals.interrupt_status() != 0 {
            self.pulse();
        }
    }

    /// The device cannot go on; the driver is told.
    pub(crate) fn needs_reset(&self) {
        self.signals.set_needs_reset();
        self.raise(Cause::Config);
    }

    fn pulse(&self) {
        // The line exists for as long as the VM: that KVM refuses is a bug, not the guest's
        // problem.
        if let Err(error) = self.line.trigger() {
            tracing::error!(line = ?self.line, %error, "cannot interrupt the guest");
        }
    }
}
