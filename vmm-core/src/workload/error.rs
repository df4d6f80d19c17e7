//! Errors between the host and the workload guest.

use vm_memory::GuestMemoryError;

/// Failure to start, control or read the workload guest.
#[derive(Debug, thiserror::Error)]
pub enum WorkloadError {
    /// A parameter is outside its range.
    #[error("workload parameter {name} is {value}: {allowed}")]
    Parameter {
        /// Field of [`super::WorkloadParams`], or of the call.
        name: &'static str,
        /// The value given.
        value: u64,
        /// The accepted values.
        allowed: &'static str,
    },
    /// Guest RAM cannot hold the image, the ledger and the working memory.
    #[error(
        "workload wants {wanted_bytes} bytes of working memory but guest memory has room for \
         {available_bytes} bytes: give the guest {enough_mib} MiB of memory or the workload less"
    )]
    MemoryTooSmall {
        /// Working memory requested.
        wanted_bytes: u64,
        /// Working memory that would fit.
        available_bytes: u64,
        /// Guest memory that would be enough, MiB.
        enough_mib: u64,
    },
    /// Guest RAM does not hold a workload guest, or one of another version.
    #[error("guest memory holds no workload guest of version {version}: was it started as one?")]
    NotAWorkload {
        /// The version that this build knows.
        version: u64,
    },
    /// The guest's report contains a value that no workload writes.
    #[error("workload report of vcpu {vcpu} is damaged: {field} is {value}")]
    Report {
        /// Index of the vCPU.
        vcpu: u64,
        /// Name of the field.
        field: &'static str,
        /// Value of the field.
        value: u64,
    },
    /// Guest RAM could not be read or written.
    #[error("workload guest memory at {gpa:#x} is not accessible: {cause}")]
    Memory {
        /// Guest physical address.
        gpa: u64,
        /// Cause of the failure.
        cause: GuestMemoryError,
    },
}
