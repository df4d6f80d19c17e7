//! Who the guest is, and that it is one of several copies.

use std::sync::Arc;

use uuid::Uuid;
use vm_superio::Trigger;

use super::Vm;
use crate::boot::vmgenid;
use crate::devices::{GENERATION_IRQ, IrqLine};
use crate::error::{KvmContext, Result};

impl Vm {
    /// Says who the guest is, which its SMBIOS tables tell it at each boot from then on. Only the
    /// first call has an effect: a guest keeps its identity.
    pub fn identify(&self, uuid: Uuid) {
        self.uuid.get_or_init(|| uuid);
    }

    /// The guest's identity; nil without a call of [`Vm::identify`].
    pub(crate) fn uuid(&self) -> Uuid {
        self.uuid.get().copied().unwrap_or_default()
    }

    /// Gives the guest another VM generation ID, if it has one, and tells it so: others may
    /// continue from the same state. The guest must be paused, with its memory and its state
    /// loaded.
    ///
    /// # Errors
    /// The error of a KVM call.
    pub(crate) fn renew_generation(&self) -> Result<()> {
        if vmgenid::renew(self.ram())? {
            let line = IrqLine::new(Arc::clone(&self.machine.vm), GENERATION_IRQ);
            line.trigger().call("KVM_IRQ_LINE")?;
        }
        Ok(())
    }
}
