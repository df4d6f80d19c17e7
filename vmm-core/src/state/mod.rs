//! Saved state: everything of a guest but its memory, typed and versioned.
//!
//! [`VmState`] is what a migration sends and what a snapshot file holds; both go through
//! [`crate::Vm::save_state`] and [`crate::Vm::load_state`]. The order in which a vCPU's state is
//! read and written back matters and is that of `vcpu.rs`; `machine.rs` has the interrupt
//! controllers, the PIT and the clock; `msrs.rs` says which model-specific registers are saved, and
//! `tsc.rs` how the guest's TSC is carried from one host to another.

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
use crate::shape::VCPUS_MAX;
use crate::vcpu::OnReboot;
use crate::virtio::DeviceState;

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
/// Room for the state of a vCPU, in bytes. With an XSAVE area of 11 KiB, the largest that there is
/// (AMX), it is 17 KiB at most.
const VCPU_BYTES_MAX: usize = 32 << 10;
/// Longest encoded [`VmState`], in bytes.
pub const STATE_BYTES_MAX: usize = codec::ENCODED_BYTES_MAX + VCPUS_MAX as usize * VCPU_BYTES_MAX;
/// Architecture of [`VmState`]: the structs of the kernel's x86-64 interface go in as they are.
const ARCH_X86_64: u16 = 0x8664;

/// Everything of a guest but its memory and its [`crate::VmShape`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmState {
    /// The vCPUs, by index; at most [`VCPUS_MAX`].
    #[serde(deserialize_with = "vcpus")]
    pub vcpus: Vec<VcpuState>,
    /// Interrupt controllers and timer in the kernel.
    pub irqchip: IrqchipState,
    /// The guest's clock (kvmclock), with the host's TSC and wall clock of the same moment.
    pub clock: kvm_bindings::kvm_clock_data,
    /// The serial console.
    pub serial: SerialState,
    /// The power button and its like.
    pub power: PowerState,
    /// What the guest boots from when it boots again; absent when it was never booted.
    pub boot: Option<BootRecord>,
    /// What becomes of it when it resets itself.
    pub on_reboot: OnReboot,
    /// The virtio devices, by slot.
    pub devices: Vec<DeviceState>,
}

/// Failure to save, encode, decode or load state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The bytes are no saved state.
    #[error("cannot read the saved state: {0}")]
    Malformed(String),
    /// The state was written by another version of this program.
    #[error(
        "the saved state has version {found}, this program knows {STATE_VERSION}; use the version of lighter that wrote it"
    )]
    Version {
        /// The version found.
        found: u16,
    },
    /// The state is of another architecture.
    #[error("the saved state is of architecture {0:#06x}, not of x86-64")]
    Architecture(u16),
    /// The state has another number of vCPUs than the VM.
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
        /// The vCPU.
        vcpu: u8,
        /// The register.
        index: u32,
    },
    /// A model-specific register does not take the saved value.
    #[error("this host's kvm does not take {value:#x} for msr {index:#x} of vcpu {vcpu}")]
    WriteMsr {
        /// The vCPU.
        vcpu: u8,
        /// The register.
        index: u32,
        /// The saved value.
        value: u64,
    },
    /// The guest uses nested virtualization, whose state is in no saved state.
    #[error(
        "the guest runs guests of its own (vcpu {vcpu} has {register} set), and these would be lost: shut them down, unload its \
         kvm_intel or kvm_amd, and try again"
    )]
    Nested {
        /// The vCPU.
        vcpu: u8,
        /// The bit that says so: `CR4.VMXE` or `EFER.SVME`.
        register: &'static str,
    },
}

impl VmState {
    /// Encodes the state for a peer or a file.
    ///
    /// # Errors
    /// [`StateError::Malformed`] when it is beyond all bounds.
    pub fn to_bytes(&self) -> Result<Vec<u8>, StateError> {
        codec::encode_within::<STATE_BYTES_MAX, _>(&(MAGIC, STATE_VERSION, ARCH_X86_64, self))
            .map_err(|error| StateError::Malformed(error.to_string()))
    }

    /// Decodes what [`VmState::to_bytes`] made; the bytes may be hostile.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        let header = bytes
            .get(..8)
            .filter(|header| header[..4] == MAGIC)
            .ok_or_else(|| StateError::Malformed("it does not begin as one".into()))?;
        let found = u16::from_le_bytes([header[4], header[5]]);
        if found != STATE_VERSION {
            return Err(StateError::Version { found });
        }
        let arch = u16::from_le_bytes([header[6], header[7]]);
        if arch != ARCH_X86_64 {
            return Err(StateError::Architecture(arch));
        }
        codec::decode_within::<STATE_BYTES_MAX, _>(&bytes[8..])
            .map_err(|error| StateError::Malformed(error.to_string()))
    }
}

/// Reads vCPUs, of which more than there can be are refused before there is memory for any.
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
