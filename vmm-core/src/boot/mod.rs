//! Giving a new guest something to run.
//!
//! Every guest starts in a state that the VMM sets up directly: no firmware runs. A Linux kernel is
//! entered as its boot protocols say (`linux.rs`) and finds the machine described in ACPI tables
//! (`acpi.rs`); a freestanding program, such as the embedded workload, starts in 64-bit user mode
//! at once ([`long_mode`]), where code runs at full speed even on hosts whose KVM has to emulate
//! the guest's kernel mode.

mod acpi;
mod bzimage;
mod kernel;
mod layout;
mod linux;
pub mod long_mode;
mod mptable;
mod source;
mod tables;

use std::path::PathBuf;

#[cfg(test)]
pub(crate) use linux::start_protected_mode;
#[cfg(test)]
pub(crate) use long_mode::start_kernel_mode;
pub use long_mode::{UserEntry, start_user_mode};
pub(crate) use source::Origin;
pub use source::{Acpi, BootRecord, FileRecord, KernelSource, WantedFile};

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
}

/// A command line for a kernel with ACPI tables.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";
/// A command line for a kernel without ACPI tables. It resets by the keyboard controller, the one
/// way that is left.
pub const DEFAULT_CMDLINE_WITHOUT_ACPI: &str = "console=ttyS0 acpi=off reboot=k";

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file could not be read.
    #[error("cannot read {what} {}: {cause}", path.display())]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        cause: std::io::Error,
    },
    /// A file is larger than the guest's memory.
    #[error("the {what} {} has {bytes} bytes, more than the guest has memory", path.display())]
    FileTooLarge {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A guest that boots again does not find the file that it was first booted from.
    #[error("{} is not the {what} that the guest was started with", path.display())]
    Changed {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// The kernel file is no kernel for x86-64 that can be started.
    #[error(
        "{} is not a kernel that can be started: {reason}; give a bzImage or an ELF vmlinux for x86-64",
        path.display()
    )]
    Kernel {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The initial RAM disk does not fit above the kernel.
    #[error(
        "guest memory has no room for an initrd of {initrd_bytes} bytes after a kernel that ends at \
         {kernel_end:#x}; give the guest more memory"
    )]
    InitrdTooLarge {
        /// Its length.
        initrd_bytes: u64,
        /// Guest-physical address at which the kernel ends.
        kernel_end: u64,
    },
    /// The command line is longer than the kernel takes.
    #[error("the kernel command line has {bytes} bytes, this kernel takes at most {max}")]
    CmdlineTooLong {
        /// Its length.
        bytes: usize,
        /// The longest one.
        max: usize,
    },
    /// The command line has a byte that no command line can have.
    #[error("the kernel command line contains a zero byte")]
    CmdlineZeroByte,
    /// There are more devices than the ACPI tables have room for.
    #[error("the acpi tables have no room for {devices} devices")]
    AcpiTables {
        /// Devices of the guest.
        devices: usize,
    },
    /// The guest has more memory than a freestanding program can be given.
    #[error(
        "a program in user mode can have at most {} GiB of memory, this guest has {}",
        long_mode::USER_MEMORY_BYTES_MAX >> 30, bytes >> 30
    )]
    TooMuchMemory {
        /// The guest's memory.
        bytes: u64,
    },
    /// As many entries as vCPUs are needed.
    #[error("{entries} entry points for {vcpus} vcpus")]
    EntryCount {
        /// Entries given.
        entries: usize,
        /// vCPUs that the guest has.
        vcpus: u8,
    },
    /// The embedded workload cannot be loaded.
    #[error(transparent)]
    Workload(#[from] WorkloadError),
    /// The guest's memory does not take what has to be written.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// Loads what `origin` names into a paused, fresh VM and sets the registers of its vCPUs.
pub(crate) fn boot(vm: &Vm, origin: &Origin) -> Result<()> {
    match origin {
        Origin::Workload(params) => boot_workload(vm, params),
        Origin::Kernel(files) => linux::boot(vm, files),
    }
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
