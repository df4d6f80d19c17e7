//! All virtio devices of a guest, and where vCPUs' accesses lead.
//!
//! The devices are in the order of the guest's shape. On a PCI bus they come and go while the guest
//! runs, so that a device's place in this order and its slot differ. Devices of the host that the
//! guest has are on the bus too.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use kvm_ioctls::VmFd;

use super::attached::{Attached, DeviceState};
use super::balloon::BalloonDevice;
use super::block::{BlockDevice, DiskContent};
use super::config::DeviceConfig;
use super::device::Rings;
use super::error::DeviceError;
use super::mmio::MmioSlots;
use super::net::NetStatus;
use super::pci::{PciSlots, PciState};
use super::transport::Connector;
use crate::devices::{MachineKind, MsiRoutes};
use crate::error::Result;
use crate::memory::GuestRam;
use crate::pci::{ConfigAddress, HostBridge, HotPlug, HotPlugState, PciAddress, Target};
use crate::vfio::{HostDevice, HostFunction, Passthrough};

/// All virtio devices of a guest; see the module.
#[derive(Debug)]
pub(crate) struct Bus {
    devices: RwLock<Devices>,
    /// The host's devices that the guest has.
    passthrough: Passthrough,
    /// The way to the devices' configuration space, if the machine has PCI.
    bridge: Option<HostBridge>,
    hot_plug: HotPlug,
    connector: Box<dyn Connector>,
    ram: Arc<GuestRam>,
    /// Whether the host's kernel serves those devices that it can.
    offload: bool,
}

type Devices = Arc<[Arc<Attached>]>;

/// A function behind the bridge.
enum Function {
    Virtio(Arc<Attached>),
    Host(Arc<HostFunction>),
}

/// What a write of ports has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BusWrite {
    /// Nothing: the ports are not the bus's.
    Elsewhere,
    /// The bus has taken it.
    Done,
    /// The guest has let go of devices.
    Ejected,
}

impl Bus {
    /// Creates the devices of `configs`, in this order, as those of a machine of this kind; each
    /// comes with its slot. The configurations must have been checked. With `offload`, the host's
    /// kernel serves those devices that it can.
    ///
    /// # Errors
    /// If a device cannot be created.
    pub(crate) fn new<'a>(
        vm: &Arc<VmFd>,
        ram: &Arc<GuestRam>,
        machine: MachineKind,
        configs: impl Iterator<Item = (usize, &'a DeviceConfig)>,
        offload: bool,
    ) -> Result<Self> {
        let routes = Arc::new(MsiRoutes::new(Arc::clone(vm)));
        let passthrough = Passthrough::new(vm, &routes, ram);
        let (connector, bridge): (Box<dyn Connector>, _) = match machine {
            MachineKind::Mmio => (Box::new(MmioSlots::new(Arc::clone(vm))), None),
            MachineKind::Pci => {
                (Box::new(PciSlots::new(Arc::clone(vm), routes)), Some(HostBridge::new()))
            }
        };
        let mut bus = Self {
            devices: RwLock::new(Arc::new([])),
            passthrough,
            bridge,
            hot_plug: HotPlug::default(),
            connector,
            ram: Arc::clone(ram),
            offload,
        };
        let devices: Result<Devices> =
            configs.map(|(slot, config)| Ok(Arc::new(bus.create(slot, config)?))).collect();
        bus.devices = RwLock::new(devices?);
        Ok(bus)
    }

    /// Creates a device in a free slot, paused. It is not on the bus yet.
    fn create(&self, slot: usize, config: &DeviceConfig) -> Result<Attached> {
        Attached::new(&*self.connector, slot, config.create()?, &self.ram, self.offload)
    }

    /// Creates a device in a free slot, paused and at no address: the guest gives it one when it
    /// has been told of it, after [`Bus::insert`].
    ///
    /// # Errors
    /// If it cannot be created.
    pub(crate) fn create_unplugged(&self, slot: usize, config: &DeviceConfig) -> Result<Attached> {
        let device = self.create(slot, config)?;
        device.unmap();
        Ok(device)
    }

    /// Adds a device to those of the guest, as the last one in their order.
    pub(crate) fn insert(&self, device: Attached) {
        let slot = device.slot();
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        *devices = devices.iter().cloned().chain([Arc::new(device)]).collect();
        self.hot_plug.insert(slot + 1);
    }

    /// Adds a device of the host in a free slot.
    ///
    /// # Errors
    /// [`DeviceError::HostDevice`].
    pub(crate) fn insert_host_device(&self, device: HostDevice, slot: usize) -> Result<()> {
        self.passthrough.insert(device, slot).map_err(DeviceError::from)?;
        self.hot_plug.insert(slot + 1);
        Ok(())
    }

    /// Returns the host's devices that the guest has not let go of: their addresses on the host,
    /// and their slots.
    pub(crate) fn host_devices(&self) -> Vec<(PciAddress, usize)> {
        let mut devices = self.passthrough.devices();
        devices.retain(|(_, slot)| !self.hot_plug.has_ejected(slot + 1));
        devices
    }

    /// Returns the addresses of all of the host's devices, whether or not the guest has let go of
    /// them.
    pub(crate) fn all_host_devices(&self) -> Vec<PciAddress> {
        self.passthrough.devices().into_iter().map(|(address, _)| address).collect()
    }

    /// Returns the slots of all of the host's devices.
    pub(crate) fn host_slots(&self) -> Vec<usize> {
        self.passthrough.devices().into_iter().map(|(_, slot)| slot).collect()
    }

    /// Resets the host's devices: they interrupt no more, and reach no memory. Returns those that
    /// leave the guest by a reset, a bit each: it has let go of them or was asked to, or they
    /// cannot be reset.
    pub(crate) fn stop_host_devices(&self) -> u32 {
        let HotPlugState { leaving, ejected, .. } = self.hot_plug.save();
        let failed = self.passthrough.stop().into_iter();
        failed.fold(leaving | ejected, |all, slot| all | 1 << (slot + 1))
    }

    /// Gives the host's devices addresses, as firmware does, after [`Bus::stop_host_devices`];
    /// those in the set `leaving` leave the guest.
    pub(crate) fn place_host_devices(&self, leaving: u32) {
        let leaves = |slot: usize| is_in(leaving, slot);
        let gone = self.host_slots().into_iter().filter(|slot| leaves(*slot));
        gone.for_each(|slot| self.hot_plug.eject(slot + 1));
        self.passthrough.place(leaves);
    }

    /// Returns the addresses of those of the host's devices that it wants back, each once.
    pub(crate) fn wanted_back(&self) -> Vec<PciAddress> {
        self.passthrough.wanted_back()
    }

    /// Takes the host's devices that the guest has let go of from the bus. Each is given back with
    /// [`Bus::release_host_device`].
    pub(crate) fn take_ejected_host_devices(&self) -> Vec<Arc<HostFunction>> {
        let slots = self.host_slots().into_iter();
        let ejected = slots.filter(|slot| self.hot_plug.has_ejected(slot + 1));
        ejected.filter_map(|slot| self.passthrough.remove(slot)).collect()
    }

    /// Gives a device back that no vCPU uses any more: the host may have it, and the guest another
    /// one in its slot.
    pub(crate) fn release_host_device(&self, function: HostFunction) {
        let (address, slot) = (function.address(), function.slot());
        drop(function);
        self.passthrough.release(address);
        self.hot_plug.forget(slot + 1);
    }

    /// Asks the guest to let go of the device in this slot.
    pub(crate) fn request_ejection(&self, slot: usize) {
        self.hot_plug.request_ejection(slot + 1);
    }

    /// Takes that request back.
    pub(crate) fn withdraw_request(&self, slot: usize) {
        self.hot_plug.withdraw_request(slot + 1);
    }

    /// Returns the registers of hot-plug.
    pub(crate) fn hot_plug(&self) -> &HotPlug {
        &self.hot_plug
    }

    /// Makes durable what the guest has written to devices that it has let go of.
    pub(crate) fn settle_ejected(&self) {
        let devices = self.devices();
        for device in devices.iter().filter(|device| self.has_ejected(device)) {
            // An error comes again when it is taken away.
            let _ = device.pause().and_then(|()| device.settle());
        }
    }

    /// Takes away the devices that the guest has let go of, and returns them with the index that
    /// each has after those before it are gone. A vCPU may still be about to unplug one: wait for
    /// that before the slot is used again.
    pub(crate) fn take_ejected(&self) -> Vec<(usize, Arc<Attached>)> {
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        let (mut ejected, mut stay) = (Vec::new(), Vec::new());
        for device in devices.iter() {
            match self.has_ejected(device) {
                true => ejected.push((stay.len(), Arc::clone(device))),
                false => stay.push(Arc::clone(device)),
            }
        }
        if !ejected.is_empty() {
            *devices = stay.into();
        }
        ejected.iter().for_each(|(_, device)| self.hot_plug.forget(device.slot() + 1));
        ejected
    }

    /// Returns whether the guest has let go of devices that are not taken away yet.
    pub(crate) fn has_ejections(&self) -> bool {
        let has_ejected = |slot: usize| self.hot_plug.has_ejected(slot + 1);
        self.devices().iter().any(|device| self.has_ejected(device))
            || self.host_slots().into_iter().any(has_ejected)
    }

    fn has_ejected(&self, device: &Attached) -> bool {
        self.hot_plug.has_ejected(device.slot() + 1)
    }

    /// Has the guest let go of those devices of a set, a bit each, that may go: it does not see
    /// them any more. Returns whether there were any.
    fn eject(&self, set: u32) -> bool {
        // Locked against changes of the list: the slot of a device that is gone has another one.
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        let goes = |device: &&Arc<Attached>| {
            is_in(set, device.slot()) && device.may_leave() && !self.has_ejected(device)
        };
        let gone: Vec<_> = devices.iter().filter(goes).cloned().collect();
        let of_host = self.host_devices().into_iter().filter(|(_, slot)| is_in(set, *slot));
        let of_host: Vec<_> =
            of_host.filter_map(|(_, slot)| self.passthrough.in_slot(slot)).collect();
        gone.iter().for_each(|device| self.hot_plug.eject(device.slot() + 1));
        of_host.iter().for_each(|function| self.hot_plug.eject(function.slot() + 1));
        drop(devices);
        gone.iter().for_each(|device| device.unplug());
        for function in &of_host {
            if let Err(error) = function.unplug() {
                tracing::warn!(%error, "cannot reset a device of the host that a guest has let go of");
            }
        }
        !gone.is_empty() || !of_host.is_empty()
    }

    /// Returns whether there is a device in this slot that the guest has not let go of.
    pub(crate) fn has_in(&self, slot: usize) -> bool {
        self.devices().iter().any(|device| device.slot() == slot && !self.has_ejected(device))
            || self.host_devices().iter().any(|(_, own)| *own == slot)
    }

    fn devices(&self) -> Devices {
        Arc::clone(&self.devices.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Handles a vCPU read outside RAM. Addresses without a device read as ones.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) {
        if let Some(target) = self.bridge.as_ref().and_then(|bridge| bridge.at_address(address)) {
            return self.read_target(target, data);
        }
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None if self.passthrough.read(address, data) => {}
            None => data.fill(0xff),
        }
    }

    /// Handles a vCPU write outside RAM.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        if let Some(target) = self.bridge.as_ref().and_then(|bridge| bridge.at_address(address)) {
            return self.write_target(target, data);
        }
        match self.find(address) {
            Some((device, offset)) => device.write(offset, data),
            None => self.passthrough.write(address, data),
        }
    }

    /// Handles a vCPU read of ports; returns false if they are not the bus's.
    pub(crate) fn read_port(&self, port: u16, data: &mut [u8]) -> bool {
        let Some(bridge) = &self.bridge else { return false };
        match bridge.at_port(port, data.len()) {
            Some(target) => self.read_target(target, data),
            None => return self.hot_plug.read(port, data),
        }
        true
    }

    /// Handles a vCPU write of ports.
    pub(crate) fn write_port(&self, port: u16, data: &[u8]) -> BusWrite {
        let Some(bridge) = &self.bridge else { return BusWrite::Elsewhere };
        if let Some(target) = bridge.at_port(port, data.len()) {
            self.write_target(target, data);
            return BusWrite::Done;
        }
        match HotPlug::written(port, data) {
            None => BusWrite::Elsewhere,
            Some(set) if self.eject(set) => BusWrite::Ejected,
            Some(_) => BusWrite::Done,
        }
    }

    fn read_target(&self, target: Target, data: &mut [u8]) {
        let Some(bridge) = &self.bridge else { return };
        match target {
            Target::AddressPort => data.copy_from_slice(&bridge.address().to_le_bytes()),
            Target::Register(place) if place.device == 0 => {
                bridge.config().read(place.offset, data);
            }
            Target::Register(place) => match self.behind_bridge(place) {
                Some(Function::Virtio(device)) => device.read_config(place.offset, data),
                Some(Function::Host(function)) => function.read_config(place.offset, data),
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
            Target::Register(place) => match self.behind_bridge(place) {
                Some(Function::Virtio(device)) => device.write_config(place.offset, data),
                Some(Function::Host(function)) => function.write_config(place.offset, data),
                None => {}
            },
            Target::Nothing => {}
        }
    }

    /// Returns the device at a place in configuration space. The bridge itself is device 0.
    fn behind_bridge(&self, place: ConfigAddress) -> Option<Function> {
        let devices = self.devices();
        let slot = place.device.checked_sub(1)?;
        if self.hot_plug.has_ejected(slot + 1) {
            return None;
        }
        let device = devices.iter().find(|device| device.slot() == slot).cloned();
        let of_host = || self.passthrough.in_slot(slot).map(Function::Host);
        device.map(Function::Virtio).or_else(of_host)
    }

    /// Returns the contents of the disks, with their indexes among the devices.
    pub(crate) fn disks(&self) -> Vec<(usize, Arc<DiskContent>)> {
        let devices = self.devices();
        let contents = devices.iter().map(|device| device.content().cloned()).enumerate();
        contents.filter_map(|(index, content)| Some((index, content?))).collect()
    }

    /// Runs `job` on the balloon's thread; returns `None` if there is no balloon.
    ///
    /// # Errors
    /// If the balloon's thread has ended.
    pub(crate) fn on_balloon<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut BalloonDevice, &Rings<'_>) -> T + Send + 'static,
    ) -> Result<Option<T>, DeviceError> {
        match self.devices().iter().find(|device| device.is_balloon()) {
            Some(device) => device.on_device(job),
            None => Ok(None),
        }
    }

    /// Grows the disk with this index, see [`BlockDevice::grow`].
    ///
    /// # Errors
    /// [`DeviceError::Resize`]; if the device is no disk, or its thread has ended.
    pub(crate) fn grow_disk(&self, index: usize, bytes: Option<u64>) -> Result<u64, DeviceError> {
        let grow = move |disk: &mut BlockDevice, rings: &Rings<'_>| disk.grow(bytes, rings);
        let devices = self.devices();
        let grown = devices.get(index).map(|device| device.on_device(grow)).transpose()?.flatten();
        grown.ok_or(DeviceError::NoDisk)?
    }

    /// Passes `path` to the devices, see [`super::device::Device::listen_at`].
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn listen_at(&self, path: &Path) -> Result<(), DeviceError> {
        self.devices().iter().try_for_each(|device| device.listen_at(path.to_owned()))
    }

    /// Returns the status of the network devices, in their order.
    pub(crate) fn nets(&self) -> Vec<NetStatus> {
        let devices = self.devices();
        devices.iter().filter_map(|device| Some(device.meter()?.status())).collect()
    }

    /// Keeps the thread of the device with this index busy with `job`.
    #[cfg(test)]
    #[cfg(feature = "vhost-tests")]
    pub(crate) fn occupy(&self, index: usize, job: impl FnOnce() + Send + 'static) {
        self.devices()[index].occupy(job);
    }

    /// Pauses all devices: when this returns, no request is in flight. Pause the vCPUs first.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn pause(&self) -> Result<(), DeviceError> {
        self.devices().iter().map(AsRef::as_ref).try_for_each(Attached::pause)
    }

    /// Acquires what only one copy of the guest may hold; all or nothing.
    ///
    /// # Errors
    /// If another process holds it.
    pub(crate) fn take_over(&self) -> Result<(), DeviceError> {
        let taken = self.devices().iter().map(AsRef::as_ref).try_for_each(Attached::take_over);
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
        self.devices().iter().map(AsRef::as_ref).try_for_each(Attached::release)
    }

    /// Makes the next [`Bus::take_over`] accept the disks as they are.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn trust_disks(&self) -> Result<(), DeviceError> {
        self.devices().iter().map(AsRef::as_ref).try_for_each(Attached::trust_disk)
    }

    /// Resumes all devices.
    ///
    /// # Errors
    /// If a device's thread has ended.
    pub(crate) fn resume(&self) -> Result<(), DeviceError> {
        self.devices().iter().map(AsRef::as_ref).try_for_each(Attached::resume)
    }

    /// Makes durable what the paused devices have not yet written back for the guest.
    ///
    /// # Errors
    /// [`DeviceError::Flush`].
    pub(crate) fn settle(&self) -> Result<(), DeviceError> {
        self.devices().iter().map(AsRef::as_ref).try_for_each(Attached::settle)
    }

    /// Has the kernel log what it writes for the devices that it serves, or stop that.
    ///
    /// # Errors
    /// The error from the kernel.
    pub(crate) fn log_writes(&self, on: bool) -> Result<(), DeviceError> {
        self.devices().iter().try_for_each(|device| device.log_writes(on))
    }

    /// Returns the states of the paused devices, and that of the PCI bus if there is one.
    ///
    /// # Errors
    /// If data that a device has not yet written back cannot be made durable.
    pub(crate) fn save(&self) -> Result<(Vec<DeviceState>, Option<PciState>), DeviceError> {
        let (mut devices, mut functions) = (Vec::new(), Vec::new());
        for device in self.devices().iter() {
            let (device, function) = device.save()?;
            devices.push(device);
            functions.extend(function);
        }
        let pci = self.bridge.as_ref().map(|bridge| PciState {
            config_address: bridge.address(),
            functions,
            cmos_index: 0,
            hot_plug: self.hot_plug.save(),
        });
        Ok((devices, pci))
    }

    /// Replaces the states of the paused devices and of the PCI bus.
    ///
    /// # Errors
    /// [`DeviceError::State`].
    pub(crate) fn load(&self, states: &[DeviceState], pci: Option<&PciState>) -> Result<()> {
        let devices = self.devices();
        let (found, own) = (states.len(), devices.len());
        if found != own {
            let what = format!("{found} virtio devices in the state, {own} in the virtual machine");
            return Err(DeviceError::State(what).into());
        }
        let functions: Vec<_> = match (&self.bridge, pci) {
            (None, None) => vec![None; own],
            (Some(bridge), Some(pci)) if pci.functions.len() == own => {
                bridge.set_address(pci.config_address);
                self.load_hot_plug(pci.hot_plug, &devices);
                pci.functions.iter().map(Some).collect()
            }
            _ => {
                let what = "its pci bus is not that of the virtual machine".to_owned();
                return Err(DeviceError::State(what).into());
            }
        };
        let states = states.iter().zip(functions);
        for (device, (state, function)) in devices.iter().zip(states) {
            device.load(state, function)?;
            if self.has_ejected(device) {
                device.unplug();
            }
        }
        Ok(())
    }

    /// Replaces the registers of hot-plug; only bits of devices that may come and go count.
    fn load_hot_plug(&self, state: HotPlugState, devices: &[Arc<Attached>]) {
        let may_change = devices.iter().filter(|device| device.may_leave());
        let there = may_change.fold(0, |all, device| all | 1 << (device.slot() + 1));
        // What the guest was asked to let go of: here, there is no command that waits for that, or
        // takes the request back. A guest that has read of it may still let go.
        self.hot_plug.load(HotPlugState {
            inserted: state.inserted & there,
            ejected: state.ejected & there,
            ..HotPlugState::default()
        });
    }

    /// Returns the state after power-on, to be loaded. Devices that the guest was asked to let go
    /// of leave it by that.
    pub(crate) fn power_on_state(&self) -> (Vec<DeviceState>, Option<PciState>) {
        let (devices, functions): (Vec<_>, Vec<_>) =
            self.devices().iter().map(|device| device.pristine().clone()).unzip();
        let HotPlugState { leaving, ejected, .. } = self.hot_plug.save();
        let pci = self.bridge.as_ref().map(|_| PciState {
            functions: functions.into_iter().flatten().collect(),
            hot_plug: HotPlugState { ejected: ejected | leaving, ..HotPlugState::default() },
            ..PciState::default()
        });
        (devices, pci)
    }

    fn find(&self, address: u64) -> Option<(Arc<Attached>, u64)> {
        let devices = self.devices();
        let found = |device: &Arc<Attached>| Some((Arc::clone(device), device.offset_of(address)?));
        devices.iter().find_map(found)
    }
}

/// Whether the device in a slot is in a set, a bit each.
fn is_in(set: u32, slot: usize) -> bool {
    set >> (slot + 1) & 1 == 1
}
