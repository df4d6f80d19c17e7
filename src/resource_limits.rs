//! Limits of this process's use of the host's resources.

use rustix::io;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit of a resource to the hard one.
///
/// # Errors
/// The error from the kernel.
pub(crate) fn raise(resource: Resource) -> io::Result<()> {
    let limit = getrlimit(resource);
    setrlimit(resource, Rlimit { current: limit.maximum, ..limit })
}
