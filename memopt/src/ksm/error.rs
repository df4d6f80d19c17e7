//! What can go wrong while the kernel's samepage merging is driven.

use std::io;

use super::knob::Knob;
use crate::observe::ObserveError;

/// Why ksmd cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum KsmError {
    /// Its state cannot be read, as on a kernel without it.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Somebody else drives it.
    #[error(
        "another lighter drives the kernel's samepage merging ({file} is locked); one node does that on a host: stop the other one"
    )]
    Driven {
        /// The file or folder that is locked.
        file: String,
    },
    /// A setting was refused.
    #[error("cannot set {file} to {value}: {cause}; this needs root (the owner of the file)")]
    Write {
        /// The file under `/sys/kernel/mm/ksm`.
        file: String,
        /// What was to be written.
        value: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The journal cannot be kept, so nothing is changed.
    #[error(
        "cannot keep the journal {file} of the settings of ksmd, so they are left alone: {cause}"
    )]
    Journal {
        /// The journal.
        file: String,
        /// The system's answer.
        cause: io::Error,
    },
    /// The journal is no journal, so nothing is changed by it.
    #[error(
        "{file} is no journal of the settings of ksmd ({cause}): look at /sys/kernel/mm/ksm, set what is wrong there, and remove the file"
    )]
    Damaged {
        /// The journal.
        file: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Merging is forbidden on this host.
    #[error(
        "/sys/kernel/mm/ksm/run is 2: somebody had everything unmerged on this host; write 0 to it to allow merging again"
    )]
    Unmerged,
    /// A value that a knob cannot have.
    #[error("{knob} cannot be {value}")]
    Value {
        /// The knob.
        knob: Knob,
        /// The value.
        value: u64,
    },
}
