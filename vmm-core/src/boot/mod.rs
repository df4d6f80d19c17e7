//! Gives a new guest something to run.
//!
//! A Linux kernel is entered as its boot protocols require (`linux.rs`), without firmware. Firmware
//! is entered as a kernel with a PVH note is (`firmware.rs`), and boots from the guest's disks.
//! Both read about the machine in ACPI tables (`acpi.rs`). A freestanding program, such as the
//! embedded workload, starts directly in 64-bit user mode ([`long_mode`]), where code runs at full
//! speed even on hosts whose KVM has to emulate the guest's kernel mode.

mod acpi;
mod bzimage;
mod entry;
mod firmware;
mod kernel;
mod layout;
mod linux;
pub mod long_mode;
mod mptable;
mod pvh;
mod smbios;
mod source;
mod tables;
mod variables;
pub(crate) mod vmgenid;

use std::path::PathBuf;
use std::sync::Arc;

#[cfg(test)]
pub(crate) use entry::in_protected_mode as start_protected_mode;
#[cfg(test)]
pub(crate) use long_mode::start_kernel_mode;
pub use long_mode::{UserEntry, start_user_mode};
pub(crate) use source::Origin;
pub use source::{Acpi, BootRecord, FileRecord, KernelSource, WantedFile};
#[cfg(test)]
pub(crate) use variables::volume;
pub use variables::{NoVariables, Variables};

use crate::Vm;
use crate::error::Result;
use crate::memory::MemoryError;
use crate::workload::{self, WorkloadError, WorkloadParams};

const _: () = assert!(workload::DOORBELL_PORT == crate::devices::DOORBELL_PORT);
const _: () = assert!(workload::abi::IMAGE_GPA >= long_mode::PROGRAM_START);

/// What a new guest runs.
#[derive(Debug, Clone, PartialEq)]
pub enum BootSource {
    /// The embedded workload.
    Workload(WorkloadParams),
    /// A Linux kernel.
    Kernel(KernelSource),
    /// Firmware with a PVH entry, which boots from the guest's disks.
    Firmware(PathBuf),
}

/// Default command line for a kernel with ACPI tables.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";
/// Default command line for a kernel without ACPI tables. It selects reset by the keyboard
/// controller, the only way without ACPI.
pub const DEFAULT_CMDLINE_WITHOUT_ACPI: &str = "console=ttyS0 acpi=off reboot=k";

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be read.
    #[error("cannot read {what} {}: {cause}", path.display())]
    Read {
        /// "kernel", "initrd" or "firmware".
        what: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// The error from the system.
        cause: std::io::Error,
    },
    /// A file is larger than the guest's memory.
    #[error("the {what} {} has {bytes} bytes, more than the guest has memory", path.display())]
    FileTooLarge {
        /// "kernel", "initrd" or "firmware".
        what: &'static str,
        /// Path of the file.
        path: PathBuf,
        /// Length of the file, in bytes.
        bytes: u64,
    },
    /// The file differs from the one that the guest was first booted from.
    #[error("{} is not the {what} that the guest was started with", path.display())]
    Changed {
        /// "kernel", "initrd" or "firmware".
        what: &'static str,
        /// Path that the file was recorded with.
        path: PathBuf,
    },
    /// The file was refused before.
    #[error(transparent)]
    Refused(Arc<BootError>),
    /// The file is no firmware that this guest can be started with.
    #[error("cannot boot the firmware {}: {reason}", path.display())]
    Firmware {
        /// Path of the firmware file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file is no kernel for x86-64 that this guest can be started with.
    #[error("cannot boot the kernel {}: {reason}", path.display())]
    Kernel {
        /// Path of the kernel file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The initrd does not fit into guest memory above the kernel.
    #[error(
        "guest memory has no room for an initrd of {initrd_bytes} bytes after a kernel that ends at \
         {kernel_end:#x}; give the guest more memory"
    )]
    InitrdTooLarge {
        /// Length of the initrd, in bytes.
        initrd_bytes: u64,
        /// Guest-physical address at which the kernel ends.
        kernel_end: u64,
    },
    /// The command line is longer than the kernel accepts.
    #[error("the kernel command line has {bytes} bytes, this kernel takes at most {max}")]
    CmdlineTooLong {
        /// Length of the command line, in bytes.
        bytes: usize,
        /// The longest that is accepted, in bytes.
        max: usize,
    },
    /// The command line contains a zero byte, which would end it.
    #[error("the kernel command line contains a zero byte")]
    CmdlineZeroByte,
    /// The guest has more processors and devices than there is room for in the ACPI tables.
    #[error("the acpi tables of {bytes} bytes are too long")]
    AcpiTables {
        /// Length of the tables, in bytes.
        bytes: usize,
    },
    /// The guest has more memory than can be mapped for a freestanding program.
    #[error(
        "a program in user mode can have at most {} GiB of memory, this guest has {}",
        long_mode::USER_MEMORY_BYTES_MAX >> 30, bytes >> 30
    )]
    TooMuchMemory {
        /// Size of the guest's memory, in bytes.
        bytes: u64,
    },
    /// The number of entries differs from the number of vCPUs.
    #[error("{entries} entry points for {vcpus} vcpus")]
    EntryCount {
        /// Number of entries given.
        entries: usize,
        /// vCPUs that the guest has.
        vcpus: u8,
    },
    /// The embedded workload cannot be loaded.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// A table or file cannot be written into the guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Loads what `origin` names into a paused, fresh VM and sets the registers of its vCPUs.
pub(crate) fn boot(vm: &Vm, origin: &Origin) -> Result<()> {
    match origin {
        Origin::Workload(params) => boot_workload(vm, params),
        Origin::Kernel(files) => linux::boot(vm, files),
        Origin::Firmware(file) => firmware::boot(vm, file),
    }
}

/// Writes who the guest is: its SMBIOS tables, at the address `smbios`, and the VM generation ID.
///
/// # Errors
/// [`MemoryError::NoSuchAddress`] if the guest has too little memory.
fn identify(vm: &Vm, smbios: u64) -> std::result::Result<(), MemoryError> {
    vm.ram().write(smbios, &smbios::build(smbios, vm.uuid()))?;
    vmgenid::write(vm.ram(), vm.uuid())
}

fn boot_workload(vm: &Vm, params: &WorkloadParams) -> Result<()> {
    let shape = vm.shape();
    let tsc_hz = u64::from(shape.tsc_khz) * 1000;
    let entries = workload::load(vm.ram().memory(), shape.vcpus, tsc_hz, params)
        .map_err(BootError::Workload)?;
    let entries: Vec<UserEntry> = entries
        .iter()
        .map(|entry| UserEntry { rip: entry.rip, rsp: entry.rsp, args: [entry.rdi, entry.rsi] })
        .collect();
    start_user_mode(vm, &entries)
}
