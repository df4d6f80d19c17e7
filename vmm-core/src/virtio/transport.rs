//! How a driver reaches its device: what differs between virtio-mmio ([`super::mmio`]) and
//! virtio-pci ([`super::pci`]). All else stands once, in [`super::registers`] and
//! [`super::attached`].

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Line;
use super::pci::FunctionState;
use super::registers::{Effect, Registers};
use crate::error::Result;

/// The layout of a device's registers, and where they are.
pub(crate) trait Transport: Debug + Send {
    /// Returns the registers behind the layout.
    fn registers(&self) -> &Registers;

    /// Returns the registers, to load them.
    fn registers_mut(&mut self) -> &mut Registers;

    /// Returns the addresses of the device's registers in the guest's memory; `None` while the
    /// device does not decode any.
    fn window(&self) -> Option<Range<u64>>;

    /// Handles a driver's read of `data.len()` bytes at `offset` in the window.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Handles a driver's write at `offset` in the window.
    fn write(&mut self, offset: u64, data: &[u8]) -> Effect;

    /// Handles a read of the device's PCI configuration space, if it has one.
    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// Handles a write of the device's PCI configuration space, if it has one.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) -> Effect {
        Effect::None
    }

    /// Takes the device from the bus, if it is a PCI function: it decodes no address, and sends no
    /// interrupt, until its driver sets it up.
    fn unmap(&mut self) {}

    /// Returns the state of the device's PCI function, if it is one.
    fn save(&self) -> Option<FunctionState> {
        None
    }

    /// Replaces the state of the device's PCI function.
    ///
    /// # Errors
    /// If the state is impossible, or the device is no PCI function; the text says why.
    fn load(&mut self, _state: &FunctionState) -> Result<(), String> {
        Err("it is no pci device here".to_owned())
    }
}

/// What connects the devices of a machine to its VM.
pub(crate) trait Connector: Debug + Send + Sync {
    /// Connects the device in slot `slot`; KVM signals one of `kicks` when the driver notifies the
    /// queue of that number. Returns the device's layout, and the line for its interrupts. When
    /// both are dropped, the slot is free again.
    ///
    /// # Errors
    /// The error of a KVM or system call.
    fn connect(
        &self,
        slot: usize,
        registers: Registers,
        kicks: &[EventFd],
    ) -> Result<(Box<dyn Transport>, Arc<dyn Line>)>;
}
