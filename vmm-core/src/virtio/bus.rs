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

/// All virtio devices of a guest; see the module.
#[derive(Debug, Default)]
pub(crate) struct Bus {
    devices: Vec<MmioDevice>,
    /// Index of the balloon in `devices`.
    balloon: Option<usize>,
    /// The disks' content, by slot, for copying it.
    disks: Vec<Option<Arc<DiskContent>>>,
    /// The counters of the network devices.
    nets: Vec<Arc<NetMeter>>,
}

impl Bus {
    /// Creates the devices of `configs`, in this order. The configurations must have been checked.
    ///
    /// # Errors
    /// If a device cannot be created.
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

    /// Handles a vCPU read outside RAM. Addresses without a device read as ones.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Handles a vCPU write outside RAM.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    /// Returns the content of the disk in slot `index`; `None` if the slot has no disk.
    pub(crate) fn disk(&self, index: usize) -> Option<&Arc<DiskContent>> {
        self.disks.get(index)?.as_ref()
    }

    /// Runs `job` on the balloon's thread; returns `None` if there is no balloon.
    ///
    /// # Errors
    /// If the balloon's thread has ended.
    pub(crate) fn on_balloon<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut BalloonDevice, &Rings<'_>) -> T + Send + 'static,
    ) -> Result<Option<T>, DeviceError> {
        match self.balloon.and_then(|index| self.devices.get(index)) {
            Some(device) => device.on_balloon(job),
            None => Ok(None),
        }
    }

    /// Passes `path` to the devices, see [`super::device::Device::listen_at`].
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn listen_at(&self, path: &Path) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(|device| device.listen_at(path.to_owned()))
    }

    /// Returns the status of the network devices, in their order.
    pub(crate) fn nets(&self) -> Vec<NetStatus> {
        self.nets.iter().map(|meter| meter.status()).collect()
    }

    /// Pauses all devices: when this returns, no request is in flight. Pause the vCPUs first.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn pause(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(MmioDevice::pause)
    }

    /// Acquires what only one copy of the guest may hold; all or nothing.
    ///
    /// # Errors
    /// If another process holds it.
    pub(crate) fn take_over(&self) -> Result<(), DeviceError> {
        let taken = self.devices.iter().try_for_each(MmioDevice::take_over);
        if taken.is_err() {
            self.release()?;
        }
        taken
    }

    /// Releases what [`Bus::take_over`] acquired.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn release(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(MmioDevice::release)
    }

    /// Makes the next [`Bus::take_over`] accept the disks as they are.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn trust_disks(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(MmioDevice::trust_disk)
    }

    /// Resumes all devices.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn resume(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(MmioDevice::resume)
    }

    /// Makes durable what the paused devices have not yet written back for the guest.
    ///
    /// # Errors
    /// [`DeviceError::Flush`].
    pub(crate) fn settle(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(MmioDevice::settle)
    }

    /// Returns the states of the paused devices.
    ///
    /// # Errors
    /// If data that a device has not yet written back cannot be made durable.
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
