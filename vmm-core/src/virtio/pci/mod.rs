//! virtio-pci (virtio 1.2, 4.1), the modern interface only: a device as a function of the PCI bus.
//!
//! | file | contents |
//! |---|---|
//! | `layout` | the function's configuration space, and what is where in its BAR |
//! | `function` | accesses to both: the device's transport |
//! | `common_config` | the registers of the common configuration |
//! | `messages` | interrupts: vectors, MSI-X and irqfds |
//! | `notifications` | ioeventfds, which move with the BAR |
//! | `state` | what is saved |
//!
//! [`crate::pci`] has what all functions of the bus have in common.

mod common_config;
mod function;
mod layout;
mod messages;
mod notifications;
mod state;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;

use super::error::DeviceError;
use super::interrupt::Line;
use super::registers::Registers;
use super::transport::{Connector, Transport};
use crate::devices::MsiRoutes;
use crate::error::{KvmContext, Result};

pub(super) use function::PciFunction;
pub(super) use messages::Messages;
use notifications::Notifications;
pub use state::{FunctionState, Interrupts, PciState};

/// Connects devices to the bus: slot *n* is 00:*n+1*.0, behind the host bridge.
#[derive(Debug)]
pub(super) struct PciSlots {
    vm: Arc<VmFd>,
    routes: Arc<MsiRoutes>,
}

impl PciSlots {
    /// Returns the slots of a new VM with these routes of interrupts.
    pub(super) fn new(vm: Arc<VmFd>, routes: Arc<MsiRoutes>) -> Self {
        Self { vm, routes }
    }
}

impl Connector for PciSlots {
    fn connect(
        &self,
        slot: usize,
        registers: Registers,
        kicks: &[EventFd],
    ) -> Result<(Box<dyn Transport>, Arc<dyn Line>)> {
        let device = registers.kind().name();
        let failed = |cause| DeviceError::Start { device, cause };
        let messages = Messages::new(registers.queues().len()).map_err(failed)?;
        let messages = messages.routed_by(&self.vm, &self.routes, slot).call("KVM_IRQFD")?;
        let messages = Arc::new(messages);
        let notifications = Notifications::new(Arc::clone(&self.vm), kicks).map_err(failed)?;
        let function =
            PciFunction::new(slot, registers, Arc::clone(&messages), Some(notifications));
        Ok((Box::new(function), messages))
    }
}
