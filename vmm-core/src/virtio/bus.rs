//! All virtio devices of a guest, by slot.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use super::balloon::BalloonDevice;
use super::block::{BlockDevice, DiskContent};
use super::config::DeviceConfig;
use super::device::Rings;
use super::error::DeviceError;
use super::mmio_device::{DeviceState, MmioDevice};
use super::net::{NetDevice, NetMeter, NetStatus};
use crate::devices::mmio::{self, locate};
use crate::error::Result;
use crate::memory::GuestRam;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Bus {
    devices: Vec<MmioDevice>,
    /// Which of them is the balloon.
    balloon: Option<usize>,
    /// By slot: what can be copied.
    disks: Vec<Option<Arc<DiskContent>>>,
    /// What is counted of the network devices.
    nets: Vec<Arc<NetMeter>>,
}

impl Bus {
    /// Creates the devices of `configs`, which have been checked, in this order.
    ///
    /// # Errors
    /// What creating one of them says.
    pub(crate) fn new(
        vm: &Arc<VmFd>,
        ram: &Arc<GuestRam>,
        configs: &[DeviceConfig],
    ) -> Result<Self> {
        let slots = mmio::slots(configs.len());
        let (mut devices, mut disks, mut nets) = (Vec::new(), Vec::new(), Vec::new());
        for (slot, config) in slots.zip(configs) {
            let device = config.create()?;
            let known: &dyn Any = &*device;
            disks.push(known.downcast_ref().map(BlockDevice::content));
            nets.extend(known.downcast_ref().map(NetDevice::meter));
            devices.push(MmioDevice::new(vm, ram, slot, device)?);
        }
        let balloon = configs.iter().position(|config| matches!(config, DeviceConfig::Balloon(_)));
        Ok(Self { devices, balloon, disks, nets })
    }

    /// A vCPU reads what is not RAM. What belongs to nobody reads as ones.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A vCPU writes what is not RAM.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    /// The content of the disk in slot `index`; `None` when there is something else.
    pub(crate) fn disk(&self, index: usize) -> Option<&Arc<DiskContent>> {
        self.disks.get(index)?.as_ref()
    }

    /// Has the balloon's thread do `job`; `None` when there is no balloon.
    ///
    /// # Errors
    /// The balloon's thread is gone.
    pub(crate) fn on_balloon<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut BalloonDevice, &Rings<'_>) -> T + Send + 'static,
    ) -> Result<Option<T>, DeviceError> {
        match self.balloon.and_then(|index| self.devices.get(index)) {
            Some(device) => device.on_balloon(job),
            None => Ok(None),
        }
    }

    /// See [`super::device::Device::listen_at`].
    ///
    /// # Errors
    /// A device's thread is gone.
    pub(crate) fn listen_at(&self, path: &Path) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(|device| device.listen_at(path.to_owned()))
    }

    /// How the network devices stand, in their order.
    pub(crate) fn nets(&self) -> Vec<NetStatus> {
        self.nets.iter().map(|meter| meter.status()).collect()
    }

    /// Stops all devices: when this returns, nothing is under way. Call it when the vCPUs stand.
    ///
    /// # Errors
    /// A device's thread is gone.
    pub(crate) fn pause(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(MmioDevice::pause)
    }

    /// Takes what only one copy of the guest may have; all or nothing.
    ///
    /// # Errors
    /// Somebody else has it.
    pub(crate) fn take_over(&self) -> Result<(), DeviceError> {
        let taken = self.devices.iter().try_for_each(MmioDevice::take_over);
        if taken.is_err() {
            self.release()?;
        }
        taken
    }

    /// Gives up what [`Bus::take_over`] took.
    ///
    /// # Errors
    /// A device's thread is gone.
    pub(crate) fn release(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(MmioDevice::release)
    }

    /// Takes disks as they are in the next [`Bus::take_over`].
    ///
    /// # Errors
    /// A device's thread is gone.
    pub(crate) fn trust_disks(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(MmioDevice::trust_disk)
    }

    /// Lets all devices go on.
    ///
    /// # Errors
    /// A device's thread is gone.
    pub(crate) fn resume(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(MmioDevice::resume)
    }

    /// Makes durable what the paused devices hold back for the guest.
    ///
    /// # Errors
    /// [`DeviceError::Flush`].
    pub(crate) fn settle(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(MmioDevice::settle)
    }

    /// The states of the paused devices.
    ///
    /// # Errors
    /// What a device holds back cannot be made durable.
    pub(crate) fn save(&self) -> Result<Vec<DeviceState>, DeviceError> {
        self.devices.iter().map(MmioDevice::save).collect()
    }

    /// Replaces the states of the paused devices.
    ///
    /// # Errors
    /// [`DeviceError::State`].
    pub(crate) fn load(&self, states: &[DeviceState]) -> Result<()> {
        let (found, own) = (states.len(), self.devices.len());
        if found != own {
            let what = format!("{found} virtio devices in the state, {own} in the virtual machine");
            return Err(DeviceError::State(what).into());
        }
        self.devices.iter().zip(states).try_for_each(|(device, state)| device.load(state))
    }

    fn find(&self, address: u64) -> Option<(&MmioDevice, u64)> {
        let (index, offset) = locate(address)?;
        Some((self.devices.get(index)?, offset))
    }
}
