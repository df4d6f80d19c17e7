//! Saved state: everything of a guest but its memory and shape, typed and versioned.
//!
//! [`VmState`] is what a migration sends and what a snapshot file holds; both use
//! [`crate::Vm::save_state`] and [`crate::Vm::load_state`]. The order in which a vCPU's state is
//! read and written matters: see `vcpu.rs`. `machine.rs` handles the interrupt controllers, the PIT
//! and the clock. `msrs.rs` lists the model-specific registers to save, and `tsc.rs` carries the
//! guest's TSC from one host to another.

mod machine;
mod msrs;
mod tsc;
mod vcpu;

#[cfg(test)]
mod tests;

use std::fmt;

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::boot::BootRecord;
use crate::codec;
use crate::devices::{PowerState, SerialState};
use crate::pci::HotPlugState;
use crate::shape::VCPUS_MAX;
use crate::vcpu::OnReboot;
use crate::virtio::{DeviceState, PciState};

pub use machine::IrqchipState;
pub(crate) use machine::{load_clock, load_irqchip, save_clock, save_irqchip};
pub(crate) use msrs::saved_msrs;
pub(crate) use tsc::{ClockPair, TscCarry};
pub use vcpu::VcpuState;
pub(crate) use vcpu::{load_msrs, load_vcpu, save_vcpu};

/// First bytes of an encoded [`VmState`].
const MAGIC: [u8; 4] = *b"LVMS";
/// Version of [`VmState`]'s encoding: raised whenever a field changes.
const STATE_VERSION: u16 = 3;
/// Version of the encoding of a [`VmState`] that is followed by the state of the PCI bus.
const STATE_VERSION_WITH_PCI: u16 = 4;
/// Version of the encoding of a [`VmState`] that is followed by the state of the PCI bus and that
/// of hot-plug, of which something is under way.
const STATE_VERSION_WITH_HOT_PLUG: u16 = 5;
/// Room for the encoded state of a vCPU, in bytes. It takes at most 17 KiB, with the largest
/// existing XSAVE area of 11 KiB (AMX).
const VCPU_BYTES_MAX: usize = 32 << 10;
/// Longest encoded [`VmState`], in bytes.
pub const STATE_BYTES_MAX: usize = codec::ENCODED_BYTES_MAX + VCPUS_MAX as usize * VCPU_BYTES_MAX;
/// Architecture of [`VmState`]: it contains the structs of the kernel's x86-64 interface unchanged.
const ARCH_X86_64: u16 = 0x8664;

/// Everything of a guest but its memory and its [`crate::VmShape`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmState {
    /// The vCPUs, by index; at most [`VCPUS_MAX`].
    #[serde(deserialize_with = "vcpus")]
    pub vcpus: Vec<VcpuState>,
    /// The in-kernel interrupt controllers and timer.
    pub irqchip: IrqchipState,
    /// The guest's clock (kvmclock), with the host's TSC and wall clock of the same instant.
    pub clock: kvm_bindings::kvm_clock_data,
    /// The serial console.
    pub serial: SerialState,
    /// The power button and the other ACPI fixed hardware.
    pub power: PowerState,
    /// What the guest boots from on a reboot; `None` if it was never booted.
    pub boot: Option<BootRecord>,
    /// What happens when the guest resets itself.
    pub on_reboot: OnReboot,
    /// The virtio devices, in the order of the shape.
    pub devices: Vec<DeviceState>,
    /// The PCI bus; `None` for a machine without one.
    #[serde(skip)]
    pub pci: Option<PciState>,
}

/// Failure to save, encode, decode or load state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The bytes do not encode a saved state.
    #[error("cannot read the saved state: {0}")]
    Malformed(String),
    /// The state has a version that this program does not know.
    #[error(
        "the saved state has version {found}, this program knows {STATE_VERSION_WITH_HOT_PLUG}; use the version of lighter that wrote it"
    )]
    Version {
        /// The version found.
        found: u16,
    },
    /// The state is for another architecture.
    #[error("the saved state is of architecture {0:#06x}, not of x86-64")]
    Architecture(u16),
    /// The numbers of vCPUs in the state and of the VM differ.
    #[error("the saved state has {state} vcpus, the virtual machine has {vm}")]
    VcpuCount {
        /// vCPUs in the state.
        state: usize,
        /// vCPUs of the VM.
        vm: usize,
    },
    /// A model-specific register could not be read.
    #[error("cannot read msr {index:#x} of vcpu {vcpu}")]
    ReadMsr {
        /// Index of the vCPU.
        vcpu: u8,
        /// Number of the register.
        index: u32,
    },
    /// KVM refuses the saved value of a model-specific register.
    #[error("the host's kvm does not take {value:#x} for msr {index:#x} of vcpu {vcpu}")]
    WriteMsr {
        /// Index of the vCPU.
        vcpu: u8,
        /// Number of the register.
        index: u32,
        /// The saved value.
        value: u64,
    },
    /// The guest uses nested virtualization, whose state is not saved.
    #[error(
        "the guest runs guests of its own (vcpu {vcpu} has {register} set), and these would be lost: shut them down, unload its \
         kvm_intel or kvm_amd, and try again"
    )]
    Nested {
        /// Index of the vCPU.
        vcpu: u8,
        /// The bit that shows it: `CR4.VMXE` or `EFER.SVME`.
        register: &'static str,
    },
}

impl VmState {
    /// Encodes the state for a peer or a file.
    ///
    /// # Errors
    /// [`StateError::Malformed`] if the encoding is longer than `STATE_BYTES_MAX`.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StateError> {
        let head = |version| (MAGIC, version, ARCH_X86_64);
        let bytes = match &self.pci {
            // Earlier releases take a state of this version.
            None => codec::encode_within::<STATE_BYTES_MAX, _>(&(head(STATE_VERSION), self)),
            Some(pci) if pci.hot_plug == HotPlugState::default() => {
                codec::encode_within::<STATE_BYTES_MAX, _>(&(
                    head(STATE_VERSION_WITH_PCI),
                    self,
                    pci,
                ))
            }
            Some(pci) => codec::encode_within::<STATE_BYTES_MAX, _>(&(
                head(STATE_VERSION_WITH_HOT_PLUG),
                self,
                pci,
                pci.hot_plug,
            )),
        };
        bytes.map_err(|error| StateError::Malformed(error.to_string()))
    }

    /// Decodes bytes that [`VmState::to_bytes`] produced; they may be hostile.
    ///
    /// # Errors
    /// [`StateError`] if they are malformed, or of another version or architecture.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let header = bytes
            .get(..8)
            .filter(|header| header[..4] == MAGIC)
            .ok_or_else(|| StateError::Malformed("it does not begin as one".into()))?;
        let found = u16::from_le_bytes([header[4], header[5]]);
        if !(STATE_VERSION..=STATE_VERSION_WITH_HOT_PLUG).contains(&found) {
            return Err(StateError::Version { found });
        }
        let arch = u16::from_le_bytes([header[6], header[7]]);
        if arch != ARCH_X86_64 {
            return Err(StateError::Architecture(arch));
        }
        let body = &bytes[8..];
        let state = match found {
            STATE_VERSION => codec::decode_within::<STATE_BYTES_MAX, _>(body),
            STATE_VERSION_WITH_HOT_PLUG => codec::decode_within::<STATE_BYTES_MAX, _>(body).map(
                |(state, pci, hot_plug): (Self, PciState, HotPlugState)| Self {
                    pci: Some(PciState { hot_plug, ..pci }),
                    ..state
                },
            ),
            _ => codec::decode_within::<STATE_BYTES_MAX, _>(body)
                .map(|(state, pci): (Self, PciState)| Self { pci: Some(pci), ..state }),
        };
        state.map_err(|error| StateError::Malformed(error.to_string()))
    }
}

/// Reads the vCPUs, and refuses too many of them before allocating memory for any.
fn vcpus<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<VcpuState>, D::Error> {
    struct Vcpus;

    impl<'de> Visitor<'de> for Vcpus {
        type Value = Vec<VcpuState>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "at most {VCPUS_MAX} vcpus")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Self::Value, A::Error> {
            let count = from.size_hint().unwrap_or(usize::MAX);
            if count > usize::from(VCPUS_MAX) {
                return Err(A::Error::invalid_length(count, &self));
            }
            let mut vcpus = Vec::with_capacity(count);
            while let Some(vcpu) = from.next_element()? {
                vcpus.push(vcpu);
            }
            Ok(vcpus)
        }
    }

    from.deserialize_seq(Vcpus)
}
