//! Devices of the host in the hands of a guest (VFIO pass-through).
//!
//! | file | contents |
//! |---|---|
//! | `host_device` | a device as its owner opens it, and what stands in the way |
//! | `view` | what a guest sees of the configuration space |
//! | `windows` | where BARs may be, and what of them needs no exit |
//! | `function` | the device as a function on the guest's bus |
//! | `interrupts` | MSI-X, from the host's kernel to KVM |
//! | `fuzzing` | a view without a device, for the fuzz targets |
//!
//! Such a device writes to the guest's memory when it likes, at addresses that its driver has given
//! it: the IOMMU leads them to the guest's pages, all of which are pinned. So the guest cannot move
//! or be saved before it has let go of the device. It is no part of the guest's
//! [`crate::VmShape`], and comes and goes as hot-plugged devices do; `docs/adr/0037-vfio.md` has
//! the reasons.

mod function;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod host_device;
mod interrupts;
mod view;
mod windows;

use std::ffi::CString;
use std::fmt::Display;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use kvm_ioctls::VmFd;

use crate::devices::{FIRST_HOST_MSI_GSI, MsiRoutes};
use crate::memory::{GuestRam, Pinned};
use crate::pci::{FUNCTIONS_MAX, PciAddress};
use crate::sys::vfio::{Container, Device, Group, KvmGroups};

pub(crate) use function::HostFunction;
use function::Surroundings;
use host_device::GroupFiles;
pub use host_device::{HostDevice, HostDeviceError};

const _: () = assert!(
    FIRST_HOST_MSI_GSI as usize + FUNCTIONS_MAX * view::VECTORS_MAX <= 4096,
    "KVM's most lines (KVM_MAX_IRQ_ROUTES)"
);

/// The host's devices that a guest has; see the module.
#[derive(Debug)]
pub(crate) struct Passthrough {
    surroundings: Surroundings,
    ram: Arc<GuestRam>,
    /// In the order in which the guest got them.
    functions: RwLock<Arc<[Arc<HostFunction>]>>,
    /// What they are in, while there are any.
    hold: Mutex<Option<Hold>>,
    /// What KVM knows of them. It is made once: kernels before 6.2 allow no second one.
    kvm: OnceLock<KvmGroups>,
}

/// What the guest's devices are in. The fields are dropped in this order: a group leaves before its
/// container is closed, and memory is pinned for as long as a device reaches it.
#[derive(Debug)]
struct Hold {
    groups: Vec<HeldGroup>,
    container: Container,
    _pinned: Pinned,
}

/// An IOMMU group in the container, and the addresses of those of its devices that the guest has.
#[derive(Debug)]
struct HeldGroup {
    group: Group,
    devices: Vec<PciAddress>,
}

impl Passthrough {
    /// Returns those of a new VM: none.
    pub(crate) fn new(vm: &Arc<VmFd>, routes: &Arc<MsiRoutes>, ram: &Arc<GuestRam>) -> Self {
        let surroundings = Surroundings {
            vm: Arc::clone(vm),
            routes: Arc::clone(routes),
            ram_end: ram.layout().end(),
        };
        Self {
            surroundings,
            ram: Arc::clone(ram),
            functions: RwLock::new(Arc::new([])),
            hold: Mutex::new(None),
            kvm: OnceLock::new(),
        }
    }

    /// Makes a device of the host a function in a free slot, which decodes no address yet. All of
    /// the guest's memory becomes present, and stays so.
    ///
    /// # Errors
    /// [`HostDeviceError`]; the guest is then as it was.
    pub(crate) fn insert(&self, device: HostDevice, slot: usize) -> Result<(), HostDeviceError> {
        let HostDevice { address, files } = device;
        let mut hold = self.hold();
        if hold.iter().flat_map(|hold| &hold.groups).any(|held| held.devices.contains(&address)) {
            return Err(HostDeviceError::new(address, "the guest has it already"));
        }
        let joined = files.map_or(Ok(()), |files| self.join(&mut hold, address, files));
        let inserted = joined.and_then(|()| self.open(hold.as_mut(), address, slot));
        self.give_back_unused(&mut hold);
        inserted
    }

    /// Puts the group of a device into the guest's container, and tells KVM of it.
    fn join(
        &self,
        hold: &mut Option<Hold>,
        address: PciAddress,
        files: GroupFiles,
    ) -> Result<(), HostDeviceError> {
        let no = |error: &dyn Display| HostDeviceError::new(address, error);
        let group = Group::new(files.group).map_err(|error| no(&error))?;
        if !group.is_viable().map_err(|error| no(&error))? {
            return Err(no(&format!(
                "the host uses another device of its IOMMU group (`ls /sys/bus/pci/devices/{address}/iommu_group/devices`): \
                 give all of them to vfio-pci"
            )));
        }
        let kvm = match self.kvm.get() {
            Some(kvm) => kvm,
            None => {
                let new = KvmGroups::new(&self.surroundings.vm).map_err(|error| no(&error))?;
                self.kvm.get_or_init(|| new)
            }
        };
        let held = match hold {
            Some(held) => {
                group.join(&held.container).map_err(|error| no(&error))?;
                held
            }
            None => hold.insert(self.hold_with(address, files.container, &group)?),
        };
        let added = kvm.add(&group).map_err(|error| no(&error));
        held.groups.push(HeldGroup { group, devices: Vec::new() });
        added
    }

    /// Opens a device of one of the guest's groups, and makes it a function in a slot.
    fn open(
        &self,
        hold: Option<&mut Hold>,
        address: PciAddress,
        slot: usize,
    ) -> Result<(), HostDeviceError> {
        let no = |error: &dyn Display| HostDeviceError::new(address, error);
        let groups = hold.map_or_else(Default::default, |hold| hold.groups.as_mut_slice());
        let (held, device) = open_in(groups, address).map_err(|error| no(&error))?;
        let function = HostFunction::new((address, device), slot, self.surroundings.clone())
            .map_err(|why| no(&why))?;
        function.unplug().map_err(|error| no(&format!("cannot reset it: {error}")))?;
        held.devices.push(address);
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        *functions = functions.iter().cloned().chain([Arc::new(function)]).collect();
        Ok(())
    }

    /// Opens the container with the guest's first group, and maps the guest's memory in it.
    fn hold_with(
        &self,
        address: PciAddress,
        container: std::fs::File,
        group: &Group,
    ) -> Result<Hold, HostDeviceError> {
        let no = |error: io::Error| HostDeviceError::new(address, error);
        let container = Container::new(container).map_err(no)?;
        group.join(&container).map_err(no)?;
        container.set_iommu().map_err(|error| match error.raw_os_error() {
            Some(libc::EPERM) => HostDeviceError::new(
                address,
                "the host's IOMMU does not remap interrupts, so that a guest could send any: turn that on in its \
                 firmware (or, for guests that you trust, vfio_iommu_type1's allow_unsafe_interrupts)",
            ),
            _ => no(error),
        })?;
        let pinned =
            GuestRam::pin(&self.ram).map_err(|error| HostDeviceError::new(address, error))?;
        let held = Hold { groups: Vec::new(), container, _pinned: pinned };
        for region in self.ram.mappings() {
            held.container.map(region).map_err(|error| {
                let mib = self.ram.bytes() >> 20;
                let limit = match error.raw_os_error() {
                    Some(libc::ENOMEM) => {
                        "; its process may not lock so much (RLIMIT_MEMLOCK; LimitMEMLOCK= of a unit of systemd)"
                    }
                    _ => "",
                };
                HostDeviceError::new(address, format!("cannot pin the guest's {mib} MiB of memory: {error}{limit}"))
            })?;
        }
        Ok(held)
    }

    /// The functions, in the order in which the guest got them.
    fn functions(&self) -> Arc<[Arc<HostFunction>]> {
        Arc::clone(&self.functions.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the function in a slot.
    pub(crate) fn in_slot(&self, slot: usize) -> Option<Arc<HostFunction>> {
        self.functions().iter().find(|function| function.slot == slot).cloned()
    }

    /// Handles a vCPU read at `address`; returns false if none of the devices is there.
    pub(crate) fn read(&self, address: u64, data: &mut [u8]) -> bool {
        self.functions().iter().any(|function| function.read(address, data))
    }

    /// Handles a vCPU write at `address`, if one of the devices is there.
    pub(crate) fn write(&self, address: u64, data: &[u8]) {
        self.functions().iter().any(|function| function.write(address, data));
    }

    /// Returns the devices' addresses on the host, and their slots.
    pub(crate) fn devices(&self) -> Vec<(PciAddress, usize)> {
        self.functions().iter().map(|function| (function.address, function.slot)).collect()
    }

    /// Resets all devices: they interrupt no more, and reach no memory. Returns the slots of those
    /// that cannot be reset.
    pub(crate) fn stop(&self) -> Vec<usize> {
        let functions = self.functions();
        let failed = functions.iter().filter_map(|function| {
            let error = function.unplug().err()?;
            tracing::error!(device = %function.address, %error, "cannot reset a device of the host");
            Some(function.slot)
        });
        failed.collect()
    }

    /// Gives the devices that were reset addresses as firmware gives them, except for those in
    /// slots for which `leaves` holds.
    pub(crate) fn place(&self, leaves: impl Fn(usize) -> bool) {
        let functions = self.functions();
        let stay: Vec<_> = functions.iter().filter(|function| !leaves(function.slot)).collect();
        let bars: Vec<_> = stay.iter().map(|function| function.bars()).collect();
        for (function, addresses) in stay.iter().zip(windows::assign(&bars)) {
            function.place(&addresses);
        }
    }

    /// Returns the addresses of those devices that the host wants back, each once.
    pub(crate) fn wanted_back(&self) -> Vec<PciAddress> {
        let functions = self.functions();
        let wanted = functions.iter().filter(|function| function.is_wanted_back());
        wanted.map(|function| function.address).collect()
    }

    /// Takes the function in a slot from the others, if there is one. When no vCPU uses it any more
    /// and it is dropped, call [`Passthrough::release`].
    pub(crate) fn remove(&self, slot: usize) -> Option<Arc<HostFunction>> {
        let mut functions = self.functions.write().unwrap_or_else(PoisonError::into_inner);
        let removed = functions.iter().find(|function| function.slot == slot).cloned()?;
        *functions = functions.iter().filter(|it| it.slot != slot).cloned().collect();
        Some(removed)
    }

    /// Gives the host a device back that is closed, and unpins the guest's memory after the last
    /// one.
    pub(crate) fn release(&self, address: PciAddress) {
        let mut hold = self.hold();
        for held in hold.iter_mut().flat_map(|hold| &mut hold.groups) {
            held.devices.retain(|own| *own != address);
        }
        self.give_back_unused(&mut hold);
    }

    /// Gives the host those groups back of which the guest has no device, and closes the container
    /// after the last one.
    fn give_back_unused(&self, hold: &mut Option<Hold>) {
        let (Some(held), Some(kvm)) = (hold.as_mut(), self.kvm.get()) else { return };
        for unused in held.groups.extract_if(.., |held| held.devices.is_empty()) {
            forget(kvm, &unused.group);
        }
        if held.groups.is_empty() {
            *hold = None;
        }
    }

    fn hold(&self) -> MutexGuard<'_, Option<Hold>> {
        self.hold.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a device of one of these groups.
fn open_in(groups: &mut [HeldGroup], address: PciAddress) -> io::Result<(&mut HeldGroup, Device)> {
    let name = CString::new(address.to_string())?;
    for held in groups {
        match held.group.open(&name) {
            // It is in another group.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            opened => return Ok((held, opened?)),
        }
    }
    Err(io::Error::other("it is in none of the IOMMU groups that the guest has; try again"))
}

/// Has KVM forget a group, and takes it out of its container; its device is closed.
fn forget(kvm: &KvmGroups, group: &Group) {
    // KVM does not know a group that it has refused.
    if let Err(error) = kvm.remove(group)
        && error.errno() != libc::ENOENT
    {
        tracing::warn!(%error, "KVM still holds the IOMMU group of a device");
    }
    if let Err(error) = group.leave() {
        tracing::warn!(%error, "the IOMMU group of a device does not leave its container");
    }
}
