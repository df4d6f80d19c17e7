//! A KVM virtual machine: memory, vCPUs, devices, dirty-page tracking and saved state.
//!
//! Start at [`Vm`]: create one from a [`VmShape`], load what it runs with [`Vm::boot`], then
//! [`Vm::resume`] it. [`Vm::save_state`] saves a paused VM; that state can be loaded into a VM of
//! the same shape in another process or on another host. [`snapshot`] does the same through a file.
//! While the guest runs, dirty tracking reports which pages changed.
//!
//! This crate depends on KVM and the rust-vmm crates. It knows nothing of migration, of networks or
//! of the program that uses it.

pub mod boot;
mod codec;
pub mod cpuid;
pub mod devices;
mod dirty;
mod error;
mod event;
mod host;
pub mod labels;
pub mod memory;
pub mod pci;
mod shape;
mod slices;
pub mod snapshot;
pub mod state;
mod sys;
#[cfg(test)]
mod testing;
mod unnamed_file;
mod vcpu;
pub mod vfio;
pub mod virtio;
mod vm;
pub mod workload;

pub use boot::BootSource;
pub use cpuid::{CpuModel, Nested};
pub use devices::MachineKind;
pub use dirty::{DirtyLog, REARMED_CHUNKS_MAX};
pub use error::{Error, Result};
pub use event::{DOORBELLS_MAX, EventQueue, StopReason, VmEvent};
pub use host::kvm_api_version;
pub use labels::Labels;
pub use memory::GuestRam;
pub use pci::PciAddress;
pub use shape::{ShapeError, Slots, TSC_TOLERANCE_PPM, VCPUS_MAX, VcpuLimits, VmShape, cpu_models};
pub use slices::{with_short_slices, with_usual_slices};
pub use state::VmState;
pub use vcpu::{OnReboot, Throttled};
pub use virtio::{DeviceConfig, DeviceError, DiskContent, GUEST_CIDS};
pub use vm::{BalloonStatus, Ejected, Restarts, RunState, Vm, VmOptions};
