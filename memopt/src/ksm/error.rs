//! Errors from driving the kernel's samepage merging.

use std::io;

use super::knob::Knob;
use crate::observe::ObserveError;

/// Why ksmd cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum KsmError {
    /// ksmd's state cannot be read, e.g. because the kernel has no KSM.
    #[error(transparent)]
    Observe(#[from] ObserveError),
    /// Another process drives ksmd.
    #[error(
        "another lighter drives the kernel's samepage merging ({file} is locked); one node does that on a host: stop the other one"
    )]
    Driven {
        /// The locked file or folder.
        file: String,
    },
    /// The kernel refused a setting.
    #[error("cannot set {file} to {value}: {cause}; this needs root (the owner of the file)")]
    Write {
        /// The file under `/sys/kernel/mm/ksm`.
        file: String,
        /// The value that was to be written.
        value: String,
        /// The kernel's error.
        cause: io::Error,
    },
    /// The journal cannot be written, so no setting is changed.
    #[error(
        "cannot keep the journal {file} of the settings of ksmd, so they are left alone: {cause}"
    )]
    Journal {
        /// The journal's path.
        file: String,
        /// The system's error.
        cause: io::Error,
    },
    /// The journal cannot be read or parsed, so no setting is restored from it.
    #[error(
        "{file} is not a journal of ksmd's settings ({cause}): check /sys/kernel/mm/ksm, correct it, and remove the file"
    )]
    Damaged {
        /// The journal's path.
        file: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Merging is forbidden on this host: `run` is 2.
    #[error(
        "/sys/kernel/mm/ksm/run is 2: all pages of this host were unmerged by hand; write 0 to it to allow merging again"
    )]
    Unmerged,
    /// A value that the knob cannot have.
    #[error("{knob} cannot be {value}")]
    Value {
        /// The knob that was to be set.
        knob: Knob,
        /// The rejected value.
        value: u64,
    },
}
