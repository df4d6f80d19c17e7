//! All virtio devices of a guest, by slot, and where vCPUs' accesses lead.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use kvm_ioctls::VmFd;

use super::attached::{Attached, DeviceState};
use super::balloon::BalloonDevice;
use super::block::{BlockDevice, DiskContent};
use super::config::DeviceConfig;
use super::device::Rings;
use super::error::DeviceError;
use super::mmio::MmioSlots;
use super::net::{NetDevice, NetMeter, NetStatus};
use super::pci::{PciSlots, PciState};
use super::transport::Connector;
use crate::devices::MachineKind;
use crate::error::Result;
use crate::memory::GuestRam;
use crate::pci::{ConfigAddress, HostBridge, Target};

/// All virtio devices of a guest; see the module.
#[derive(Debug, Default)]
pub(crate) struct Bus {
    devices: Vec<Attached>,
    /// The way to the devices' configuration space, if the machine has PCI.
    bridge: Option<HostBridge>,
    /// Index of the balloon in `devices`.
    balloon: Option<usize>,
    /// The disks' content, by slot, for copying it.
    disks: Vec<Option<Arc<DiskContent>>>,
    /// The counters of the network devices.
    nets: Vec<Arc<NetMeter>>,
}

impl Bus {
    /// Creates the devices of `configs`, in this order, as those of a machine of this kind. The
    /// configurations must have been checked. With `offload`, the host's kernel serves those
    /// devices that it can.
    ///
    /// # Errors
    /// If a device cannot be created.
    pub(crate) fn new(
        vm: &Arc<VmFd>,
        ram: &Arc<GuestRam>,
        machine: MachineKind,
        configs: &[DeviceConfig],
        offload: bool,
    ) -> Result<Self> {
        let (connector, bridge): (Box<dyn Connector>, _) = match machine {
            MachineKind::Mmio => (Box::new(MmioSlots::new(Arc::clone(vm), configs.len())), None),
            MachineKind::Pci => (Box::new(PciSlots::new(Arc::clone(vm))), Some(HostBridge::new())),
        };
        let (mut devices, mut disks, mut nets) = (Vec::new(), Vec::new(), Vec::new());
        for (index, config) in configs.iter().enumerate() {
            let device = config.create()?;
            let known: &dyn Any = &*device;
            disks.push(known.downcast_ref().map(BlockDevice::content));
            nets.extend(known.downcast_ref().map(NetDevice::meter));
            devices.push(Attached::new(&*connector, index, device, ram, offload)?);
        }
        let balloon = configs.iter().position(|config| matches!(config, DeviceConfig::Balloon(_)));
        Ok(Self { devices, bridge, balloon, disks, nets })
    }

    /// Handles a vCPU read outside RAM. Addresses without a device read as ones.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        if let Some(target) = self.bridge.as_ref().and_then(|bridge| bridge.at_address(address)) {
            return self.read_target(target, data);
        }
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Handles a vCPU write outside RAM.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some(target) = self.bridge.as_ref().and_then(|bridge| bridge.at_address(address)) {
            return self.write_target(target, data);
        }
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    /// Handles a vCPU read of ports; returns false if they do not lead to configuration space.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) -> bool {
        let target = self.bridge.as_ref().and_then(|bridge| bridge.at_port(port, data.len()));
        target.is_some_and(|target| {
            self.read_target(target, data);
            true
        })
    }

    /// Handles a vCPU write of ports; returns false if they do not lead to configuration space.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> bool {
        let target = self.bridge.as_ref().and_then(|bridge| bridge.at_port(port, data.len()));
        target.is_some_and(|target| {
            self.write_target(target, data);
            true
        })
    }

    fn read_target(&self, target: Target, data: &mut [u8]) {
        let Some(bridge) = &self.bridge else { return };
        match target {
            Target::AddressPort => data.copy_from_slice(&bridge.address().to_le_bytes()),
            Target::Register(place) if place.device == 0 => {
                bridge.config().read(place.offset, data);
            }
            Target::Register(place) => match self.behind_bridge(place) {
                Some(device) => device.read_config(place.offset, data),
                None => data.fill(0xff),
            },
            Target::Nothing => data.fill(0xff),
        }
    }

    fn write_target(&self, target: Target, data: &[u8]) {
        let Some(bridge) = &self.bridge else { return };
        match target {
            Target::AddressPort => {
                if let Ok(word) = data.try_into() {
                    bridge.set_address(u32::from_le_bytes(word));
                }
            }
            Target::Register(place) => {
                if let Some(device) = self.behind_bridge(place) {
                    device.write_config(place.offset, data);
                }
            }
            Target::Nothing => {}
        }
    }

    /// Returns the device at a place in configuration space. The bridge itself is device 0.
    fn behind_bridge(&self, place: ConfigAddress) -> Option<&Attached> {
        self.devices.get(place.device.checked_sub(1)?)
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
            Some(device) => device.on_device(job),
            None => Ok(None),
        }
    }

    /// Grows the disk in slot `index`, see [`BlockDevice::grow`].
    ///
    /// # Errors
    /// [`DeviceError::Resize`]; if the slot has no disk, or the disk's thread has ended.
    pub(crate) fn grow_disk(&self, index: usize, bytes: Option<u64>) -> Result<u64, DeviceError> {
        let grow = move |disk: &mut BlockDevice, rings: &Rings<'_>| disk.grow(bytes, rings);
        let device = self.devices.get(index);
        let grown = device.map(|device| device.on_device(grow)).transpose()?.flatten();
        grown.ok_or(DeviceError::NoDisk)?
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

    /// Keeps the thread of the device in slot `index` busy with `job`.
    #[cfg(test)]
    pub(crate) fn occupy(&self, index: usize, job: impl FnOnce() + Send + 'static) {
        self.devices[index].occupy(job);
    }

    /// Pauses all devices: when this returns, no request is in flight. Pause the vCPUs first.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn pause(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(Attached::pause)
    }

    /// Acquires what only one copy of the guest may hold; all or nothing.
    ///
    /// # Errors
    /// If another process holds it.
    pub(crate) fn take_over(&self) -> Result<(), DeviceError> {
        let taken = self.devices.iter().try_for_each(Attached::take_over);
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
        self.devices.iter().try_for_each(Attached::release)
    }

    /// Makes the next [`Bus::take_over`] accept the disks as they are.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn trust_disks(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(Attached::trust_disk)
    }

    /// Resumes all devices.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn resume(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(Attached::resume)
    }

    /// Makes durable what the paused devices have not yet written back for the guest.
    ///
    /// # Errors
    /// [`DeviceError::Flush`].
    pub(crate) fn settle(&self) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(Attached::settle)
    }

    /// Has the kernel log what it writes for the devices that it serves, or stop that.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn log_writes(&self, on: bool) -> Result<(), DeviceError> {
        self.devices.iter().try_for_each(|device| device.log_writes(on))
    }

    /// Returns the states of the paused devices, and that of the PCI bus if there is one.
    ///
    /// # Errors
    /// If data that a device has not yet written back cannot be made durable.
    pub(crate) fn save(&self) -> Result<(Vec<DeviceState>, Option<PciState>), DeviceError> {
        let (mut devices, mut functions) = (Vec::new(), Vec::new());
        for device in &self.devices {
            let (device, function) = device.save()?;
            devices.push(device);
            functions.extend(function);
        }
        let pci = self.bridge.as_ref().map(|bridge| PciState {
            config_address: bridge.address(),
            functions,
            cmos_index: 0,
        });
        Ok((devices, pci))
    }

    /// Replaces the states of the paused devices and of the PCI bus.
    ///
    /// # Errors
    /// [`DeviceError::State`].
    pub(crate) fn load(&self, states: &[DeviceState], pci: Option<&PciState>) -> Result<()> {
        let (found, own) = (states.len(), self.devices.len());
        if found != own {
            let what = format!("{found} virtio devices in the state, {own} in the virtual machine");
            return Err(DeviceError::State(what).into());
        }
        let functions: Vec<_> = match (&self.bridge, pci) {
            (None, None) => vec![None; own],
            (Some(bridge), Some(pci)) if pci.functions.len() == own => {
                bridge.set_address(pci.config_address);
                pci.functions.iter().map(Some).collect()
            }
            _ => {
                let what = "its pci bus is not that of the virtual machine".to_owned();
                return Err(DeviceError::State(what).into());
            }
        };
        let states = states.iter().zip(functions);
        self.devices
            .iter()
            .zip(states)
            .try_for_each(|(device, (state, function))| device.load(state, function))
    }

    fn find(&self, address: u64) -> Option<(&Attached, u64)> {
        self.devices.iter().find_map(|device| Some((device, device.offset_of(address)?)))
    }
}
