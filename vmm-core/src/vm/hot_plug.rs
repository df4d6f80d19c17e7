//! Devices that come and go while a guest has its PCI bus.
//!
//! An inserted device is one of the guest's at once, and its guest is notified. A guest that is
//! asked to let go of a device does so when it likes, or by a reset. From then on the device is not
//! there for the guest, and its owner takes it away ([`Vm::take_ejected`]): until then it is a part
//! of what a migration or a save takes along.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use vm_superio::Trigger;

use super::{RunState, Vm};
use crate::devices::{HOT_PLUG_IRQ, IrqLine, MachineKind};
use crate::error::{Error, Result};
use crate::pci::PciAddress;
use crate::vfio::HostDevice;
use crate::virtio::{DeviceConfig, DeviceError};

/// Interval between checks whether a vCPU still uses a device that has left.
const USE_INTERVAL: Duration = Duration::from_millis(1);

/// A device that its guest has let go of.
#[derive(Debug)]
pub enum Ejected {
    /// A virtio device.
    Virtio {
        /// What it was.
        config: DeviceConfig,
        /// Why the last of what the guest has written to it may not be durable.
        lost: Option<DeviceError>,
    },
    /// A device of the host, by its address there.
    Host(PciAddress),
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
        let (state, slot) = self.room()?;
        let mut shape = (*self.shape()).clone();
        if !config.may_be_inserted() {
            let what = "only disks and network devices come and go".to_owned();
            return Err(DeviceError::Config(what).into());
        }
        shape.slots.push(shape.devices.len(), slot);
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
        Ok(self.announce(slot))
    }

    /// Inserts a device of the host, and notifies the guest. Returns where the guest finds it. All
    /// of the guest's memory becomes present and stays so, and the guest cannot be saved, until it
    /// has let go of the device. Call [`Vm::prepare_for_host_device`] before.
    ///
    /// # Errors
    /// [`DeviceError::HostDevice`]; [`DeviceError::NoHotPlug`]; [`DeviceError::Config`] if the
    /// guest can have no more devices; [`Error::WrongState`] if the guest has ended. The guest is
    /// then as it was.
    pub fn insert_host_device(&self, device: HostDevice) -> Result<PciAddress> {
        let _control = self.control();
        let (_, slot) = self.room()?;
        self.machine.bus.insert_host_device(device, slot)?;
        Ok(self.announce(slot))
    }

    /// Returns the host's devices that the guest has not let go of: their addresses on the host,
    /// and those at which the guest has them.
    pub fn host_devices(&self) -> Vec<(PciAddress, PciAddress)> {
        let devices = self.machine.bus.host_devices().into_iter();
        devices.map(|(address, slot)| (address, PciAddress::in_guest(slot + 1))).collect()
    }

    /// Returns the addresses on the host of its devices that the guest has, or that it has let go
    /// of and that are not taken away yet.
    pub fn all_host_devices(&self) -> Vec<PciAddress> {
        self.machine.bus.all_host_devices()
    }

    /// Makes all of the guest's memory present, if the host has as much, so that
    /// [`Vm::insert_host_device`], for which others wait, has less to do.
    ///
    /// # Errors
    /// [`crate::memory::MemoryError`] if the host has too little memory, or pages of the guest have
    /// not arrived yet; what [`Vm::insert_host_device`] says of a guest that has no room for one.
    pub fn prepare_for_host_device(&self) -> Result<()> {
        self.room()?;
        Ok(self.ram().make_present()?)
    }

    /// Asks the guest to let go of devices that the host wants back. Returns their addresses there.
    pub fn give_back_wanted(&self) -> Vec<PciAddress> {
        let wanted = self.machine.bus.wanted_back();
        for address in &wanted {
            let _ = self.request_host_device_ejection(*address);
        }
        wanted
    }

    /// Returns the run state of a guest that has not ended, and a slot for another device.
    fn room(&self) -> Result<(RunState, usize)> {
        let state = self.run_state();
        if state == RunState::Stopped {
            return Err(Error::WrongState { action: "attach a device", state });
        }
        let shape = self.shape();
        if shape.machine != MachineKind::Pci {
            return Err(DeviceError::NoHotPlug.into());
        }
        let count = shape.devices.len();
        let taken = self.machine.bus.host_slots();
        let first = self.next_slot.load(Ordering::Acquire);
        let slot = shape.slots.free(count, shape.machine, first, &taken).ok_or_else(|| {
            let count = count + taken.len();
            let what = format!("the guest has {count} devices already, and no room for more");
            DeviceError::Config(what)
        })?;
        Ok((state, slot))
    }

    /// Notifies the guest of the device in this slot, and returns where it is.
    fn announce(&self, slot: usize) -> PciAddress {
        self.next_slot.store(slot + 1, Ordering::Release);
        self.notify_of_devices();
        PciAddress::in_guest(slot + 1)
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
        Ok(found.map(|index| self.ask_to_eject(shape.slots.of(index))))
    }

    /// As `request_ejection`, for the device of the host with this address there.
    pub fn request_host_device_ejection(&self, address: PciAddress) -> Option<PciAddress> {
        let _control = self.control();
        let devices = self.machine.bus.host_devices();
        let (_, slot) = devices.into_iter().find(|(own, _)| *own == address)?;
        Some(self.ask_to_eject(slot))
    }

    fn ask_to_eject(&self, slot: usize) -> PciAddress {
        self.machine.bus.request_ejection(slot);
        self.notify_of_devices();
        PciAddress::in_guest(slot + 1)
    }

    /// Returns whether the guest has let go of the device at this address.
    pub fn has_ejected(&self, address: PciAddress) -> bool {
        !self.machine.bus.has_in(address.device() - 1)
    }

    /// Takes the request back to let go of the device at this address. A guest that has read of it
    /// may let go all the same.
    pub fn withdraw_ejection_request(&self, address: PciAddress) {
        let _control = self.control();
        self.machine.bus.withdraw_request(address.device() - 1);
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
    /// are unlocked, taps that were made for the guest vanish, and the host may have its own
    /// devices again.
    pub fn take_ejected(&self) -> Vec<Ejected> {
        let _control = self.control();
        let mut taken = Vec::new();
        for (index, device) in self.machine.bus.take_ejected() {
            // Not the same slot next: the guest may be about to let go of that once more.
            self.next_slot.store(device.slot() + 1, Ordering::Release);
            let lost = unshared(device).leave().err();
            self.change_shape(|shape| {
                shape.slots.remove(index, shape.devices.len());
                taken.push(Ejected::Virtio { config: shape.devices.remove(index), lost });
            });
        }
        for function in self.machine.bus.take_ejected_host_devices() {
            self.next_slot.store(function.slot() + 1, Ordering::Release);
            taken.push(Ejected::Host(function.address()));
            self.machine.bus.release_host_device(unshared(function));
        }
        taken
    }

    /// Refuses to save a guest with devices of the host.
    ///
    /// # Errors
    /// [`DeviceError::HostDevices`].
    pub(super) fn expect_no_host_devices(&self) -> Result<()> {
        let devices = self.all_host_devices();
        if devices.is_empty() {
            return Ok(());
        }
        let names: Vec<_> = devices.iter().map(ToString::to_string).collect();
        Err(DeviceError::HostDevices(names.join(", ")).into())
    }
}

/// Waits until no vCPU uses a device any more that is off the bus.
fn unshared<T>(mut device: Arc<T>) -> T {
    loop {
        match Arc::try_unwrap(device) {
            Ok(device) => return device,
            Err(shared) => device = shared,
        }
        std::thread::sleep(USE_INTERVAL);
    }
}
