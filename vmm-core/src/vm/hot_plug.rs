//! Devices that come and go while a guest has its PCI bus.
//!
//! An inserted device is one of the guest's at once; its guest is told, and looks for it. A guest
//! that is asked to let go of a device does so when it likes, or by its next reset. From then on
//! the device is not there for the guest, and its owner takes it away ([`Vm::take_ejected`]): until
//! that it is a part of what a migration or a save takes along.

use std::fmt;
use std::sync::Arc;

use vm_superio::Trigger;

use super::{RunState, Vm};
use crate::devices::{HOT_PLUG_IRQ, IrqLine, MachineKind};
use crate::error::{Error, KvmContext, Result};
use crate::virtio::{DeviceConfig, DeviceError};

/// The address of a device on the guest's PCI bus, as `lspci` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciAddress {
    /// Number of the device, 1 to 31.
    device: usize,
}

impl PciAddress {
    /// Returns the address of the device in this slot.
    fn of_slot(slot: usize) -> Self {
        Self { device: slot + 1 }
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0000:00:{:02x}.0", self.device)
    }
}

/// A device that its guest has let go of.
#[derive(Debug)]
pub struct Ejected {
    /// What it was.
    pub config: DeviceConfig,
    /// Why the last of what the guest has written to it may not be durable.
    pub lost: Option<DeviceError>,
}

impl Vm {
    /// Inserts another disk or network device, which is locked or carries frames from now on, and
    /// tells the guest. Returns where the guest finds it.
    ///
    /// # Errors
    /// [`DeviceError::NoHotPlug`]; [`DeviceError::Config`] if the guest can have no such device, or
    /// no more of them; as [`Vm::resume`] for what the device needs of this host;
    /// [`Error::WrongState`] if the guest has ended. The guest is then as it was.
    pub fn insert(&self, config: &DeviceConfig) -> Result<PciAddress> {
        let _control = self.control();
        let state = self.run_state();
        if state == RunState::Stopped {
            return Err(Error::WrongState { action: "attach a device", state });
        }
        let mut shape = (*self.shape()).clone();
        if shape.machine != MachineKind::Pci || !config.may_be_inserted() {
            return Err(DeviceError::NoHotPlug.into());
        }
        let count = shape.devices.len();
        let Some(slot) = shape.slots.free(count, shape.machine) else {
            let what = format!("the guest has {count} devices already, and no room for more");
            return Err(DeviceError::Config(what).into());
        };
        shape.slots.push(count, slot);
        shape.devices.push(config.without_files());
        shape.check()?;
        let bus = &self.machine.bus;
        let device = bus.create_unplugged(slot, config)?;
        device.take_over()?;
        if state == RunState::Running {
            device.resume()?;
        }
        bus.insert(device);
        self.change_shape(|own| *own = shape);
        self.interrupt()?;
        Ok(PciAddress::of_slot(slot))
    }

    /// Returns whether the guest has looked for the devices that were inserted.
    pub fn has_seen_devices(&self) -> bool {
        self.machine.bus.hot_plug().save().inserted == 0
    }

    /// Asks the guest to let go of the first device for which `is_it` holds, which may take it any
    /// time. Returns false if there is no such device, or none that could leave.
    ///
    /// # Errors
    /// [`DeviceError::NoHotPlug`]; the error of a KVM call.
    pub fn ask_out(&self, is_it: impl Fn(&DeviceConfig) -> bool) -> Result<bool> {
        let _control = self.control();
        let shape = self.shape();
        if shape.machine != MachineKind::Pci {
            return Err(DeviceError::NoHotPlug.into());
        }
        let found = shape.devices.iter().position(|it| it.may_be_inserted() && is_it(it));
        let Some(index) = found else { return Ok(false) };
        self.machine.bus.ask_out(index);
        self.interrupt()?;
        Ok(true)
    }

    /// Returns whether the guest has let go of devices that are not taken away yet.
    pub fn has_ejections(&self) -> bool {
        self.machine.bus.has_ejections()
    }

    /// Takes away the devices that the guest has let go of: what was written is made durable, disks
    /// are unlocked, and taps that were made for the guest vanish.
    pub fn take_ejected(&self) -> Vec<Ejected> {
        let _control = self.control();
        let mut taken = Vec::new();
        for (index, device) in self.machine.bus.take_ejected() {
            let lost = device.settle().and_then(|()| device.release()).err();
            self.change_shape(|shape| {
                shape.slots.remove(index, shape.devices.len());
                taken.push(Ejected { config: shape.devices.remove(index), lost });
            });
        }
        taken
    }

    /// Tells the guest once more that something has changed on its bus: it may have masked the
    /// interrupt the last time.
    ///
    /// # Errors
    /// The error of a KVM call.
    pub fn tell_again(&self) -> Result<()> {
        self.interrupt()
    }

    fn interrupt(&self) -> Result<()> {
        let line = IrqLine::new(Arc::clone(&self.machine.vm), HOT_PLUG_IRQ);
        line.trigger().call("KVM_IRQ_LINE")
    }
}
