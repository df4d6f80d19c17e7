//! Routes from interrupt lines beyond the I/O APIC's to messages (MSI).
//!
//! An irqfd names a line, and KVM looks up the line's message. `KVM_SET_GSI_ROUTING` replaces the
//! routes of all lines at once, so this keeps them all, and calls KVM only if one has changed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::{Error, VmFd};

use crate::pci::Message;

/// The first line that belongs to no pin of the I/O APIC.
pub(crate) const FIRST_MSI_GSI: u32 = IOAPIC_PINS;
/// The first line of the devices of the host that guests have, behind those of virtio devices.
pub(crate) const FIRST_HOST_MSI_GSI: u32 = 592;
/// Pins of KVM's I/O APIC.
const IOAPIC_PINS: u32 = 24;
/// Pins of each 8259.
const PIC_PINS: u32 = 8;

/// The routes of a VM; see the module.
#[derive(Debug)]
pub(crate) struct MsiRoutes {
    vm: Arc<VmFd>,
    messages: Mutex<BTreeMap<u32, Message>>,
}

impl MsiRoutes {
    /// Returns the routes of a new VM, which has none to messages.
    pub(crate) fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, messages: Mutex::default() }
    }

    /// Changes the messages of lines; `None` for a line whose interrupts go nowhere.
    ///
    /// # Errors
    /// The error from KVM; the routes are then as they were.
    pub(crate) fn set(
        &self,
        changes: impl IntoIterator<Item = (u32, Option<Message>)>,
    ) -> Result<(), Error> {
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = messages.clone();
        for (gsi, message) in changes {
            match message {
                Some(message) => changed.insert(gsi, message),
                None => changed.remove(&gsi),
            };
        }
        if changed == *messages {
            return Ok(());
        }
        self.vm.set_gsi_routing(&table(&changed)?)?;
        *messages = changed;
        Ok(())
    }
}

/// Encodes all routes: those of the interrupt controllers, as KVM has them at first
/// (`kvm_setup_default_irq_routing` in arch/x86/kvm/irq_comm.c), and those to messages.
fn table(messages: &BTreeMap<u32, Message>) -> Result<KvmIrqRouting, Error> {
    let pins = (0..IOAPIC_PINS).map(|gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    let pics = (0..2 * PIC_PINS).map(|gsi| match gsi < PIC_PINS {
        true => pin(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        false => pin(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - PIC_PINS),
    });
    let messages = messages.iter().map(|(gsi, message)| msi(*gsi, *message));
    let entries: Vec<_> = pins.chain(pics).chain(messages).collect();
    KvmIrqRouting::from_entries(&entries).map_err(|_| Error::new(libc::E2BIG))
}

fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn msi(gsi: u32, message: Message) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = message.address;
    entry.u.msi.data = message.data;
    entry
}
