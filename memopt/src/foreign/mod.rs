//! Guests run by other VMMs: QEMU, with or without libvirt, and Cloud Hypervisor.
//!
//! [`discover()`] finds them among the host's processes. [`query()`] asks one guest's monitor for
//! its balloon, and [`set_balloon`] sets the balloon: through QMP, or through Cloud Hypervisor's
//! HTTP API. What they cost is measured as for any process ([`crate::observe`]). lighter never
//! migrates them and changes nothing else in them, except that it makes QEMU poll its guest for
//! statistics if no client has done so.
//!
//! Any user may own their processes. So their data is bounded and validated, and lighter uses a
//! socket only if the process that named it is also the one that listens on it. The Cloud
//! Hypervisor client has been tested only against the API's description and a test server.

mod discover;
mod error;
mod hypervisor;
mod hypervisor_line;
mod names;
mod options;
mod qemu_line;
mod qmp;
mod query;
mod socket;
mod statistics;

use std::path::PathBuf;

pub use discover::{Discovery, discover};
pub use error::ForeignError;
pub use hypervisor::{Counters, Hypervisor};
pub use names::make_names_unique;
pub use qmp::Qmp;
pub use query::{QueryOptions, Reading, query, set_balloon};

use crate::situation::{Backing, Vmm};
use discover::Mounts;

/// A guest of another VMM, as its process describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiscoveredGuest {
    /// The process that holds the guest's memory.
    pub pid: u32,
    /// The start time of that process, in ticks since boot; its pid may be reused later.
    pub started: u64,
    /// The name that the command line claims, or one made from the pid. It is unique only after
    /// [`make_names_unique`].
    pub name: String,
    /// The VMM that runs the guest.
    pub vmm: Vmm,
    /// The user that owns the process, according to the kernel; absent if the process has the
    /// rights of several users.
    pub uid: Option<u32>,
    /// The guest's RAM. If the command line does not give it: 0, or QEMU's default.
    pub memory_bytes: u64,
    /// What backs the RAM.
    pub backing: Backing,
    /// Whether the kernel may merge the guest's pages.
    pub is_mergeable: bool,
    /// Whether the guest has a device of the host (VFIO, vDPA), according to its command line or
    /// open files: then all its memory is pinned, and its balloon returns nothing to the host.
    pub has_passthrough: bool,
    /// Whether the guest was started to receive a migration.
    pub is_incoming: bool,
    /// How lighter can reach the guest's monitor.
    pub monitor: Monitor,
}

/// What the command line of a guest's process says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CommandLine {
    name: Option<String>,
    memory_bytes: u64,
    backing: Backing,
    is_mergeable: bool,
    has_passthrough: bool,
    is_incoming: bool,
    monitor: Monitor,
}

impl CommandLine {
    /// Creates a line without any settings.
    const fn new(memory_bytes: u64, no_monitor: &'static str) -> Self {
        Self {
            name: None,
            memory_bytes,
            backing: Backing::Anonymous,
            is_mergeable: false,
            has_passthrough: false,
            is_incoming: false,
            monitor: Monitor::None(no_monitor),
        }
    }
}

/// How lighter can reach a guest's monitor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Monitor {
    /// QMP on a Unix socket. It serves one client at a time.
    Qmp(PathBuf),
    /// HTTP on a Unix socket.
    CloudHypervisor(PathBuf),
    /// The only monitor is libvirt's, which stays connected to it. A second one in the domain's XML
    /// (`<qemu:commandline>` with `-qmp unix:PATH,server=on,wait=off`) would be available to
    /// lighter.
    Libvirt,
    /// No usable monitor; why, and what to do about it.
    None(&'static str),
}
