//! Everything that two hosts must agree on for a guest to run on either: its memory, its vCPUs and
//! the features of its processor. All of it is checked before anything is created.

mod encoding;
mod host;
mod slots;
mod tsc;
mod vcpus;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use serde::{Deserialize, Serialize};

use crate::cpuid::{self, CpuModel, CpuidEntry, ModelError, MsrValue, msr};
use crate::devices::MachineKind;
use crate::error::Result;
use crate::labels::{self, LabelError, Labels};
use crate::memory::{MemoryConfig, RamLayout};
use crate::virtio::block::{BlockConfig, DiskProof};
use crate::virtio::net::NetConfig;
use crate::virtio::{DeviceConfig, check_devices};

use host::Host;
pub use host::cpu_models;
pub use slots::Slots;
pub use tsc::TSC_TOLERANCE_PPM;
pub(crate) use tsc::{TscScale, check_tsc};
pub use vcpus::{VCPUS_MAX, VcpuLimits};

/// A description from which the same virtual machine can be created on any suitable host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmShape {
    /// Guest RAM, in bytes; see [`RamLayout::new`] for the bounds.
    pub memory_bytes: u64,
    /// Number of vCPUs, 1 to [`VCPUS_MAX`].
    pub vcpus: u8,
    /// The CPUID table that the guest sees, before the fields that differ between vCPUs are filled
    /// in.
    pub cpuid: Vec<CpuidEntry>,
    /// The model-specific registers that report features, as the guest sees them, in ascending
    /// order of their numbers. A guest lacks a register that `cpuid` does not announce, whatever
    /// its value here.
    pub feature_msrs: Vec<MsrValue>,
    /// The guest's TSC frequency, in kHz.
    pub tsc_khz: u32,
    /// Size of a vCPU's XSAVE area, in bytes.
    pub xsave_bytes: u32,
    /// The virtio devices, in the order in which the guest got them.
    pub devices: Vec<DeviceConfig>,
    /// How the RAM is backed, on every host.
    pub memory: MemoryConfig,
    /// Name of the model that produced `cpuid` and `feature_msrs`, for people.
    pub cpu_model: String,
    /// Labels that the guest's owner attached to it.
    #[serde(skip)]
    pub labels: Labels,
    /// How the guest reaches its devices.
    #[serde(skip)]
    pub machine: MachineKind,
    /// The slots of the devices.
    #[serde(skip)]
    pub slots: Slots,
}

/// Why a shape is invalid, or not possible on this host.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ShapeError {
    /// The number of vCPUs is out of bounds.
    #[error("a guest has 1 to {VCPUS_MAX} vcpus, not {0}")]
    Vcpus(u8),
    /// The guest has more vCPUs than this host's KVM allows.
    #[error(
        "the guest has {guest} vcpus, and the host's kvm gives a guest at most {host} \
         (KVM_CAP_MAX_VCPUS)"
    )]
    HostVcpus {
        /// vCPUs that the guest has.
        guest: u8,
        /// Most vCPUs that a guest can have on this host.
        host: u8,
    },
    /// The guest uses CPU features that this host lacks.
    #[error("the host's processor lacks features that the guest uses: {}", .0.join(", "))]
    CpuFeatures(Vec<String>),
    /// The registers that the guest saw report features, or the absence of weaknesses, that this
    /// host does not have.
    #[error(
        "the guest counts on what its processor's registers told it, and the host's differ in: {}; choose a level with --cpu \
         for guests that move between such hosts", .0.join(", ")
    )]
    CpuRegisters(Vec<String>),
    /// The guest was started on a processor of another vendor.
    #[error(
        "the guest was started on a processor by {guest}, and the host's is by {host}: guests move between processors of one make only"
    )]
    CpuVendor {
        /// The guest's vendor, as in CPUID.
        guest: String,
        /// The host's vendor.
        host: String,
    },
    /// The guest's CPU model cannot be used.
    #[error(transparent)]
    CpuModel(#[from] ModelError),
    /// The guest's extended state is larger than this host supports.
    #[error("the guest has {guest} bytes of extended cpu state, the host supports {host}")]
    XsaveBytes {
        /// Bytes the guest's state takes.
        guest: u32,
        /// Bytes this host supports.
        host: u32,
    },
    /// The TSC frequencies differ and this host's hardware cannot scale.
    #[error(
        "the guest's tsc runs at {guest} kHz and the host's at {host} kHz, and the host cannot scale it"
    )]
    TscFrequency {
        /// The guest's TSC frequency in kHz.
        guest: u32,
        /// The host's TSC frequency in kHz.
        host: u32,
    },
    /// A label is malformed, or there are too many.
    #[error(transparent)]
    Label(#[from] LabelError),
    /// The bytes do not encode a shape.
    #[error("cannot read the description of the guest: {0}")]
    Malformed(String),
    /// The shape has a version that this program does not know.
    #[error(
        "the description of the guest has version {0}, this program knows {newest}",
        newest = encoding::NEWEST
    )]
    Version(u16),
}

impl VmShape {
    /// Returns the shape of a new guest on this host, with every CPU feature that KVM supports here
    /// and without virtio devices; add them to [`VmShape::devices`]. Its machine has MMIO.
    ///
    /// # Errors
    /// If memory or vCPUs are out of bounds, or `/dev/kvm` cannot be used.
    pub fn for_host(memory_bytes: u64, vcpus: u8) -> Result<Self> {
        Self::with_cpu(memory_bytes, vcpus, &CpuModel::default())
    }

    /// As `for_host`, with only those CPU features of this host that `model` shows.
    ///
    /// # Errors
    /// As [`VmShape::for_host`]; [`ModelError::Needs`] if the host lacks a feature that the model
    /// needs.
    pub fn with_cpu(memory_bytes: u64, vcpus: u8, model: &CpuModel) -> Result<Self> {
        let host = Host::get()?;
        let cpuid = model.apply(&host.cpuid).map_err(ShapeError::from)?;
        let shape = Self {
            memory_bytes,
            vcpus,
            feature_msrs: model.apply_msrs(&host.feature_msrs, &cpuid).map_err(ShapeError::from)?,
            cpuid,
            tsc_khz: host.tsc_khz,
            xsave_bytes: host.xsave_bytes,
            devices: Vec::new(),
            memory: MemoryConfig::default(),
            cpu_model: model.name().to_owned(),
            labels: Labels::new(),
            machine: MachineKind::default(),
            slots: Slots::default(),
        };
        shape.check()?;
        Ok(shape)
    }

    /// Returns the devices with their slots, in their order.
    pub fn slotted(&self) -> impl Iterator<Item = (usize, &DeviceConfig)> {
        self.devices.iter().enumerate().map(|(index, device)| (self.slots.of(index), device))
    }

    /// Returns the layout of the guest's RAM.
    ///
    /// # Errors
    /// If the size is not possible.
    pub fn layout(&self) -> Result<RamLayout> {
        Ok(RamLayout::new(self.memory_bytes)?)
    }

    /// Returns the disks, in the order of the devices.
    pub fn disks(&self) -> impl Iterator<Item = &BlockConfig> {
        self.devices.iter().filter_map(|device| match device {
            DeviceConfig::Block(disk) => Some(disk),
            _ => None,
        })
    }

    /// As `disks`, to change them.
    pub fn disks_mut(&mut self) -> impl Iterator<Item = &mut BlockConfig> {
        self.devices.iter_mut().filter_map(|device| match device {
            DeviceConfig::Block(disk) => Some(disk),
            _ => None,
        })
    }

    /// Returns the network devices, in the order of the devices.
    pub fn nets(&self) -> impl Iterator<Item = &NetConfig> {
        self.devices.iter().filter_map(|device| match device {
            DeviceConfig::Net(net) => Some(net),
            _ => None,
        })
    }

    /// As `nets`, to change them.
    pub fn nets_mut(&mut self) -> impl Iterator<Item = &mut NetConfig> {
        self.devices.iter_mut().filter_map(|device| match device {
            DeviceConfig::Net(net) => Some(net),
            _ => None,
        })
    }

    /// Returns the guest's vsock address (CID), if it has a vsock device.
    pub fn cid(&self) -> Option<u32> {
        self.devices.iter().find_map(|device| match device {
            DeviceConfig::Vsock { cid } => Some(*cid),
            _ => None,
        })
    }

    /// Checks that this host can run the guest: memory, processor, clock, disks. Creates nothing.
    ///
    /// # Errors
    /// [`ShapeError`], [`crate::memory::MemoryError`], [`crate::DeviceError`],
    /// [`crate::Error::MissingCapability`] or [`crate::Error::OpenKvm`], each worded for the
    /// operator.
    pub fn check_host(&self) -> Result<()> {
        self.check()?;
        let host = Host::get()?;
        host.vcpus.check(self.vcpus)?;
        let (guests, hosts) = (cpuid::vendor(&self.cpuid), cpuid::vendor(&host.cpuid));
        if guests != hosts {
            return Err(ShapeError::CpuVendor { guest: guests, host: hosts }.into());
        }
        let missing = cpuid::missing_features(&self.cpuid, &host.cpuid);
        if !missing.is_empty() {
            return Err(ShapeError::CpuFeatures(missing).into());
        }
        let missing = msr::missing(&self.feature_msrs, &self.cpuid, &host.feature_msrs);
        if !missing.is_empty() {
            return Err(ShapeError::CpuRegisters(missing).into());
        }
        if self.xsave_bytes > host.xsave_bytes {
            let (guest, host) = (self.xsave_bytes, host.xsave_bytes);
            return Err(ShapeError::XsaveBytes { guest, host }.into());
        }
        check_tsc(self.tsc_khz, host.tsc_khz, host.scales_tsc)?;
        self.devices.iter().try_for_each(DeviceConfig::check_host)?;
        Ok(self.memory.check_host(self.memory_bytes)?)
    }

    /// Checks that the disks at their paths are those of the guest at the source of a migration,
    /// and that none of these is a block device that a copied disk overwrites.
    ///
    /// # Errors
    /// [`crate::DeviceError::OtherDisk`], [`crate::DeviceError::UnprovenDisk`],
    /// [`crate::DeviceError::CopyOntoItself`], [`crate::DeviceError::MayBeItself`],
    /// [`crate::DeviceError::Disk`].
    pub fn check_shared_disks(&self) -> Result<()> {
        let disks: Vec<_> = self.disks().collect();
        Ok(disks.iter().try_for_each(|disk| disk.check_shared(&disks))?)
    }

    /// Replaces the proofs of identity that the disks came with by this host's, for the next
    /// migration.
    pub fn identify_disks(&mut self) {
        self.disks_mut().for_each(|disk| *disk = disk.clone().identified());
    }

    /// Gives each disk the proof of the disk in `known` with the same path, and no proof if there
    /// is none. A confined process needs this because it can no longer read the disks.
    pub fn take_evidence(&mut self, known: &[BlockConfig]) {
        for disk in self.disks_mut() {
            let same = known.iter().find(|known| known.path() == disk.path());
            let proof = same.map_or(DiskProof::Absent, |known| known.proof().clone());
            *disk = disk.clone().with_proof(proof);
        }
    }

    /// Checks bounds, without inspecting this host.
    pub(crate) fn check(&self) -> Result<()> {
        if !(1..=VCPUS_MAX).contains(&self.vcpus) {
            return Err(ShapeError::Vcpus(self.vcpus).into());
        }
        if self.cpuid.len() > KVM_MAX_CPUID_ENTRIES {
            let entries = self.cpuid.len();
            return Err(ShapeError::Malformed(format!("{entries} cpuid entries")).into());
        }
        if let Some(index) = msr::misplaced(&self.feature_msrs) {
            return Err(ShapeError::Malformed(format!("msr {index:#x} as a feature")).into());
        }
        cpuid::check_name(&self.cpu_model).map_err(ShapeError::from)?;
        check_devices(&self.devices, self.machine)?;
        self.slots.check(self.devices.len(), self.machine)?;
        self.memory.check(self.memory_bytes)?;
        labels::check(&self.labels).map_err(ShapeError::from)?;
        self.layout().map(drop)
    }
}

/// Returns the CPUID table for vCPU `vcpu` of `vcpus`.
///
/// # Errors
/// [`ShapeError::Malformed`] if it has too many entries.
pub(crate) fn cpuid_table(
    entries: &[CpuidEntry],
    vcpu: u8,
    vcpus: u8,
) -> Result<CpuId, ShapeError> {
    cpuid::table(entries, vcpu, vcpus)
        .ok_or_else(|| ShapeError::Malformed("more cpuid entries than KVM takes".into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    fn shape() -> VmShape {
        VmShape::for_host(64 << 20, 2).unwrap()
    }

    #[test]
    fn the_hosts_own_shape_fits_the_host_and_survives_encoding() {
        let shape = shape();
        shape.check_host().unwrap();
        assert_eq!(VmShape::from_bytes(&shape.to_bytes().unwrap()).unwrap(), shape);
    }

    #[test]
    fn a_pci_guest_has_room_for_more_devices() {
        let devices = vec![DeviceConfig::Rng; 31];
        let of = |machine| VmShape { machine, devices: devices.clone(), ..shape() }.to_bytes();
        VmShape::from_bytes(&of(MachineKind::Pci).unwrap()).unwrap();
        let refused = VmShape::from_bytes(&of(MachineKind::Mmio).unwrap()).unwrap_err();
        assert!(refused.to_string().contains("at most 12 devices, not 31"), "{refused}");
    }

    #[test]
    fn labels_are_copied_with_the_guest_and_hostile_ones_are_refused() {
        let labelled = |key: &str, value: &str| {
            let labels = [(key.to_owned(), value.to_owned())].into();
            VmShape { labels, ..shape() }.to_bytes().unwrap()
        };
        let labels = VmShape::from_bytes(&labelled("team", "shop")).unwrap().labels;
        assert_eq!(labels.get("team").map(String::as_str), Some("shop"));
        for (key, value) in [("", "x"), ("a b", "x"), ("a", "\u{1b}[2J"), ("a", &"x".repeat(256))] {
            let error = VmShape::from_bytes(&labelled(key, value)).unwrap_err();
            assert!(matches!(error, Error::Shape(ShapeError::Label(_))), "{error}");
        }
        let many = (0..65).map(|n| (format!("k{n}"), String::new())).collect();
        let bytes = VmShape { labels: many, ..shape() }.to_bytes().unwrap();
        assert!(VmShape::from_bytes(&bytes).is_err());
    }

    #[test]
    fn a_feature_that_the_host_lacks_is_named() {
        let mut shape = shape();
        let leaf = shape.cpuid.iter_mut().find(|entry| entry.function == 1).unwrap();
        leaf.ecx |= 1 << 5; // VMX, which an AMD host lacks and a nested Intel host hides.
        leaf.edx |= 1 << 30; // IA64 emulation, which no host has.
        let error = shape.check_host().unwrap_err().to_string();
        assert!(error.contains("lacks features that the guest uses"), "{error}");
        assert!(error.contains("cpuid 0x1 edx bit 30"), "{error}");
    }

    #[test]
    fn more_state_than_the_host_has_is_refused() {
        let mut shape = shape();
        shape.xsave_bytes = 1 << 20;
        let error = shape.check_host().unwrap_err();
        assert!(matches!(error, Error::Shape(ShapeError::XsaveBytes { guest: 1_048_576, .. })));
    }
}
