//! Edge-triggered interrupt lines.

use std::fmt;
use std::sync::Arc;

use kvm_ioctls::VmFd;
use vm_superio::Trigger;

/// An edge-triggered line into the kernel's interrupt controllers. It is raised by ioctl, not
/// through an eventfd: when the call returns the interrupt has reached the controller, so a state
/// saved right after it includes the interrupt. (`KVM_IRQFD` hands an I/O APIC's interrupts to a
/// work queue, which may run later.)
#[derive(Clone)]
pub(crate) struct IrqLine {
    /// `None` in tests and fuzz targets, which have no VM.
    vm: Option<Arc<VmFd>>,
    gsi: u32,
}

impl IrqLine {
    /// Returns the line `gsi` into the interrupt controllers of `vm`.
    pub(crate) fn new(vm: Arc<VmFd>, gsi: u32) -> Self {
        Self { vm: Some(vm), gsi }
    }

    /// Returns a line that is connected to nothing.
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
