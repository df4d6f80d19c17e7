//! Devices that come and go while a guest has its PCI bus.
//!
//! An inserted device is one of the guest's at once, and its guest is notified. A guest that is
//! asked to let go of a device does so when it likes, or by a reset. From then on the device is not
//! there for the guest, and its owner takes it away ([`Vm::take_ejected`]): until then it is a part
//! of what a migration or a save takes along.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vm_superio::Trigger;

use super::{RunState, Vm};
use crate::devices::{HOT_PLUG_IRQ, IrqLine, MachineKind};
use crate::error::{Error, Result};
use crate::virtio::{Attached, DeviceConfig, DeviceError};

/// Interval between checks whether a vCPU still uses a device that has left.
const USE_INTERVAL: Duration = Duration::from_millis(1);

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
    /// notifies the guest. Returns where the guest finds it.
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
        if shape.machine != MachineKind::Pci {
            return Err(DeviceError::NoHotPlug.into());
        }
        if !config.may_be_inserted() {
            let what = "only disks and network devices come and go".to_owned();
            return Err(DeviceError::Config(what).into());
        }
        let count = shape.devices.len();
        let first = self.next_slot.load(Ordering::Acquire);
        let Some(slot) = shape.slots.free(count, shape.machine, first) else {
            let what = format!("the guest has {count} devices already, and no room for more");
            return Err(DeviceError::Config(what).into());
        };
        shape.slots.push(count, slot);
        shape.devices.push(config.without_files());
        shape.check()?;
        let bus = &self.machine.bus;
        let device = bus.create_unplugged(slot, config)?;
        device.take_over()?;
        if state == RunState::Running
            && let Err(error) = device.resume()
        {
            device.release()?;
            return Err(error.into());
        }
        bus.insert(device);
        self.change_shape(|own| *own = shape);
        self.next_slot.store(slot + 1, Ordering::Release);
        self.notify_of_devices();
        Ok(PciAddress::of_slot(slot))
    }

    /// Asks the guest to let go of the first device for which `is_it` holds. Returns where the
    /// device is; `None` if there is none, or it cannot leave.
    ///
    /// # Errors
    /// [`DeviceError::NoHotPlug`].
    pub fn request_ejection(
        &self,
        is_it: impl Fn(&DeviceConfig) -> bool,
    ) -> Result<Option<PciAddress>> {
        let _control = self.control();
        let shape = self.shape();
        if shape.machine != MachineKind::Pci {
            return Err(DeviceError::NoHotPlug.into());
        }
        let found = shape.devices.iter().position(|it| it.may_be_inserted() && is_it(it));
        let Some(index) = found else { return Ok(None) };
        self.machine.bus.request_ejection(index);
        self.notify_of_devices();
        Ok(Some(PciAddress::of_slot(shape.slots.of(index))))
    }

    /// Returns whether the guest has let go of the device at this address.
    pub fn has_ejected(&self, address: PciAddress) -> bool {
        !self.machine.bus.has_in(address.device - 1)
    }

    /// Takes that request back, if the guest still has the device.
    pub fn withdraw_ejection_request(&self, is_it: impl Fn(&DeviceConfig) -> bool) {
        let _control = self.control();
        if let Some(index) = self.shape().devices.iter().position(is_it) {
            self.machine.bus.withdraw_request(index);
        }
    }

    /// Returns whether the guest has read which devices come, and which are to leave.
    pub fn has_read_of_devices(&self) -> bool {
        self.machine.bus.hot_plug().is_read()
    }

    /// Notifies the guest that something has changed on its bus. KVM loses that while the guest has
    /// masked the interrupt, so it is repeated until [`Vm::has_read_of_devices`].
    pub fn notify_of_devices(&self) {
        let line = IrqLine::new(Arc::clone(&self.machine.vm), HOT_PLUG_IRQ);
        if let Err(error) = line.trigger() {
            tracing::warn!(%error, "cannot notify the guest of its devices");
        }
    }

    /// Returns whether the guest has let go of devices that are not taken away yet.
    pub fn has_ejections(&self) -> bool {
        self.machine.bus.has_ejections()
    }

    /// Makes durable what the guest has written to devices that it has let go of, so that
    /// [`Vm::take_ejected`], for which others wait, has less to do.
    pub fn settle_ejected(&self) {
        self.machine.bus.settle_ejected();
    }

    /// Takes away the devices that the guest has let go of: what was written is made durable, disks
    /// are unlocked, and taps that were made for the guest vanish.
    pub fn take_ejected(&self) -> Vec<Ejected> {
        let _control = self.control();
        let mut taken = Vec::new();
        for (index, device) in self.machine.bus.take_ejected() {
            // Not the same slot next: the guest may be about to let go of that once more.
            self.next_slot.store(device.slot() + 1, Ordering::Release);
            let lost = unshared(device).leave().err();
            self.change_shape(|shape| {
                shape.slots.remove(index, shape.devices.len());
                taken.push(Ejected { config: shape.devices.remove(index), lost });
            });
        }
        taken
    }
}

/// Waits until no vCPU uses a device any more that is off the bus.
fn unshared(mut device: Arc<Attached>) -> Attached {
    loop {
        match Arc::try_unwrap(device) {
            Ok(device) => return device,
            Err(shared) => device = shared,
        }
        std::thread::sleep(USE_INTERVAL);
    }
}
