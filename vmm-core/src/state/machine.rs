//! State that belongs to the VM as a whole: interrupt controllers, PIT, and the guest's clock.

use kvm_bindings::{
    KVM_CLOCK_HOST_TSC, KVM_CLOCK_REALTIME, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use serde::{Deserialize, Serialize};

use crate::error::{KvmContext, Result};

/// The interrupt controllers and the timer in the kernel.
#[derive(Clone, Serialize, Deserialize)]
pub struct IrqchipState {
    /// First 8259.
    pub pic_master: kvm_irqchip,
    /// Second 8259.
    pub pic_slave: kvm_irqchip,
    /// The I/O APIC.
    pub ioapic: kvm_irqchip,
    /// The 8254.
    pub pit: kvm_pit_state2,
}

impl std::fmt::Debug for IrqchipState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The controllers are unions without a Debug of their own.
        f.debug_struct("IrqchipState").field("pit", &self.pit).finish_non_exhaustive()
    }
}

/// Reads the interrupt controllers and the timer. All vCPUs must be parked.
pub(crate) fn save_irqchip(vm: &VmFd) -> Result<IrqchipState> {
    let chip = |chip_id| {
        let mut state = kvm_irqchip { chip_id, ..Default::default() };
        vm.get_irqchip(&mut state).call("KVM_GET_IRQCHIP")?;
        Ok::<_, crate::Error>(state)
    };
    Ok(IrqchipState {
        pic_master: chip(KVM_IRQCHIP_PIC_MASTER)?,
        pic_slave: chip(KVM_IRQCHIP_PIC_SLAVE)?,
        ioapic: chip(KVM_IRQCHIP_IOAPIC)?,
        pit: vm.get_pit2().call("KVM_GET_PIT2")?,
    })
}

/// Writes the interrupt controllers and the timer. After the vCPUs: loading the I/O APIC passes its
/// waiting interrupts on to the local APICs, which must have their state by then.
pub(crate) fn load_irqchip(vm: &VmFd, state: &IrqchipState) -> Result<()> {
    let chips = [
        (&state.pic_master, KVM_IRQCHIP_PIC_MASTER),
        (&state.pic_slave, KVM_IRQCHIP_PIC_SLAVE),
        (&state.ioapic, KVM_IRQCHIP_IOAPIC),
    ];
    for (chip, chip_id) in chips {
        // The state may come from a peer: which chip it is, is not for it to say.
        let chip = kvm_irqchip { chip_id, ..*chip };
        vm.set_irqchip(&chip).call("KVM_SET_IRQCHIP")?;
    }
    vm.set_pit2(&state.pit).call("KVM_SET_PIT2")
}

/// Reads the guest's clock, with the host's TSC and wall clock where the kernel gives them.
pub(crate) fn save_clock(vm: &VmFd) -> Result<kvm_clock_data> {
    vm.get_clock().call("KVM_GET_CLOCK")
}

/// Sets the guest's clock, before any vCPU runs. With the wall clock of the moment it was saved, the
/// kernel adds the time that has passed since, so the guest's time of day stays right.
pub(crate) fn load_clock(vm: &VmFd, saved: &kvm_clock_data) -> Result<()> {
    let flags = saved.flags & KVM_CLOCK_REALTIME;
    let clock = kvm_clock_data {
        clock: saved.clock,
        flags,
        realtime: if flags == 0 { 0 } else { saved.realtime },
        ..Default::default()
    };
    vm.set_clock(&clock).call("KVM_SET_CLOCK")
}

/// True when the clock came with the host's TSC and wall clock of the same moment.
pub(crate) fn has_host_time(clock: &kvm_clock_data) -> bool {
    let needed = KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
    clock.flags & needed == needed
}
