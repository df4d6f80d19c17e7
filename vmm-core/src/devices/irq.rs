//! An edge on an interrupt line.

use std::fmt;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_superio::Trigger;

/// An edge-triggered line into the kernel's interrupt controllers. Raised by ioctl rather than by
/// an event: when the call returns the interrupt has arrived there, so a state saved right after it
/// holds the interrupt. (`KVM_IRQFD` hands an I/O APIC's interrupts to a work queue, which may run
/// later.)
#[derive(Clone)]
pub(crate) struct IrqLine {
    /// Nobody listens in a test or in front of a fuzzer.
    vm: Option<Arc<VmFd>>,
    gsi: u32,
}

impl IrqLine {
    /// The line `gsi` into the interrupt controllers of `vm`.
    pub(crate) fn new(vm: Arc<VmFd>, gsi: u32) -> Self {
        Self { vm: Some(vm), gsi }
    }

    /// A line that leads nowhere.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn unconnected() -> Self {
        Self { vm: None, gsi: 0 }
    }
}

impl fmt::Debug for IrqLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IrqLine").field("gsi", &self.gsi).finish_non_exhaustive()
    }
}

impl Trigger for IrqLine {
    type E = kvm_ioctls::Error;

    fn trigger(&self) -> Result<(), Self::E> {
        let Some(vm) = &self.vm else { return Ok(()) };
        vm.set_irq_line(self.gsi, true)?;
        vm.set_irq_line(self.gsi, false)
    }
}
