//! Giving a new guest something to run.
//!
//! Every guest starts in a state that the VMM sets up directly: no firmware runs. A Linux kernel is
//! entered as its boot protocols say (`linux.rs`); a freestanding program, such as the embedded
//! workload, starts in 64-bit user mode at once ([`long_mode`]), where code runs at full speed even on
//! hosts whose KVM has to emulate the guest's kernel mode.

mod layout;
mod linux;
pub mod long_mode;
mod mptable;
mod tables;

use std::path::PathBuf;

#[cfg(test)]
pub(crate) use linux::start_protected_mode;
#[cfg(test)]
pub(crate) use long_mode::start_kernel_mode;
pub use long_mode::{UserEntry, start_user_mode};

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

/// A Linux kernel and what it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelSource {
    /// An uncompressed ELF `vmlinux`. Entered through its PVH note if it has one, else at its 64-bit
    /// entry.
    pub kernel: PathBuf,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line, to which the places of virtio devices are added; see
    /// [`DEFAULT_CMDLINE`].
    pub cmdline: String,
}

/// A command line that suits the devices that guests have here.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0 acpi=off reboot=k panic=-1";

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
    /// The kernel file is no ELF kernel for x86-64.
    #[error(
        "{} is not a kernel that can be started: {reason}; give an uncompressed ELF vmlinux",
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
    /// The command line is longer than Linux takes.
    #[error("the kernel command line has {0} bytes, at most {max} are possible", max = layout::CMDLINE_BYTES_MAX)]
    CmdlineTooLong(usize),
    /// The command line has a byte that no command line can have.
    #[error("the kernel command line contains a zero byte")]
    CmdlineZeroByte,
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

/// Loads `source` into a paused, fresh VM and sets the registers of its vCPUs.
pub(crate) fn boot(vm: &Vm, source: &BootSource) -> Result<()> {
    match source {
        BootSource::Workload(params) => boot_workload(vm, params),
        BootSource::Kernel(kernel) => linux::boot(vm, kernel),
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
