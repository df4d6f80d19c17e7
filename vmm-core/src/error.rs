//! Errors of virtual machines, worded for the operator who has to fix them.

use crate::RunState;
use crate::boot::BootError;
use crate::memory::MemoryError;
use crate::shape::ShapeError;
use crate::snapshot::SnapshotError;
use crate::state::StateError;
use crate::virtio::DeviceError;

/// Result of the calls of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Failure of a call on a [`crate::Vm`].
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `/dev/kvm` could not be opened.
    #[error(
        "cannot open /dev/kvm: {0}; check that the kvm module is loaded and that this user may read and write the device"
    )]
    OpenKvm(kvm_ioctls::Error),
    /// The host's KVM lacks a capability that every guest needs.
    #[error("the host's kvm lacks {capability}, which is needed to {purpose}")]
    MissingCapability {
        /// Name of the capability as in `linux/kvm.h`.
        capability: &'static str,
        /// What it is needed for, as the end of the sentence "needed to ...".
        purpose: &'static str,
    },
    /// A call on the VM's file descriptor failed.
    #[error("kvm refused {call}: {cause}")]
    Kvm {
        /// Name of the ioctl.
        call: &'static str,
        /// The error from the kernel.
        cause: kvm_ioctls::Error,
    },
    /// A call on a vCPU's file descriptor failed.
    #[error("kvm refused {call} on vcpu {vcpu}: {cause}")]
    Vcpu {
        /// Index of the vCPU.
        vcpu: u8,
        /// Name of the ioctl.
        call: &'static str,
        /// The error from the kernel.
        cause: kvm_ioctls::Error,
    },
    /// A vCPU's thread has ended although the VM is not stopped.
    #[error("the thread of vcpu {0} has ended; stop this guest")]
    VcpuThreadGone(u8),
    /// The thread that slows the vCPUs down could not be started.
    #[error("cannot start a thread to throttle the guest: {0}")]
    StartThrottle(std::io::Error),
    /// A vCPU's thread could not be started.
    #[error("cannot start a thread for vcpu {vcpu}: {cause}")]
    StartThread {
        /// Index of the vCPU.
        vcpu: u8,
        /// The error from the system.
        cause: std::io::Error,
    },
    /// The call is not possible in the VM's current state.
    #[error("cannot {action}: the guest is {state}")]
    WrongState {
        /// The action that was requested.
        action: &'static str,
        /// The VM's current state.
        state: RunState,
    },
    /// The guest was never booted, so it cannot be booted again.
    #[error("it is not known what this guest was booted from")]
    NeverBooted,
    /// A slice of dirty words does not fit the guest's RAM: it extends beyond, or is too short.
    #[error("dirty words {first}..{end} lie outside guest memory of {chunks} chunks")]
    DirtyRange {
        /// First chunk asked for.
        first: usize,
        /// One past the last chunk asked for.
        end: usize,
        /// Chunks that the guest has.
        chunks: usize,
    },
    /// Dirty tracking was used without being started, or was started twice.
    #[error("dirty tracking is {0}")]
    DirtyTracking(&'static str),
    /// The host's rings are shorter than requested.
    #[error(
        "the host's kvm has dirty rings of at most {max} entries, not {entries}: choose --dirty-log ring:{max} or bitmap"
    )]
    DirtyRing {
        /// Entries requested for the ring of each vCPU.
        entries: u32,
        /// Most entries that the host supports.
        max: u32,
    },
    /// Guest memory could not be provided or accessed.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// The shape is invalid, or not possible on this host.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// State could not be saved, encoded, decoded or loaded.
    #[error(transparent)]
    State(#[from] StateError),
    /// The guest cannot be booted.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// A device could not be created, saved or run.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The guest could not be saved to a file or restored from one.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
}

/// Attaches the name of the VM ioctl to its error.
pub(crate) trait KvmContext<T> {
    /// `call` is the ioctl's name.
    fn call(self, call: &'static str) -> Result<T>;
    /// `call` is the ioctl's name, `vcpu` the index of the vCPU it was made on.
    fn vcpu_call(self, vcpu: u8, call: &'static str) -> Result<T>;
}

impl<T> KvmContext<T> for std::result::Result<T, kvm_ioctls::Error> {
    fn call(self, call: &'static str) -> Result<T> {
        self.map_err(|cause| Error::Kvm { call, cause })
    }

    fn vcpu_call(self, vcpu: u8, call: &'static str) -> Result<T> {
        self.map_err(|cause| Error::Vcpu { vcpu, call, cause })
    }
}
