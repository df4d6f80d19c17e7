//! Guests that somebody else runs: QEMU's, with or without libvirt, and Cloud Hypervisor's.
//!
//! [`discover()`] finds them among the processes of the host. [`look()`] asks one of them for its
//! balloon, and [`set_balloon`] sets it: through QMP, or through Cloud Hypervisor's HTTP API. What
//! they cost is read as for any process ([`crate::observe`]). They are never migrated, and nothing
//! else of them is changed, but that QEMU is told to ask its guest for statistics if nobody has.
//!
//! Their processes may be anybody's: what they say is bounded and checked, and a socket is talked
//! to only if the very process listens on it that named it. Cloud Hypervisor's side is tested
//! against its API's description and a server of ours alone.

mod discover;
mod error;
mod hypervisor;
mod hypervisor_line;
mod look;
mod names;
mod options;
mod qemu_line;
mod qmp;
mod socket;
mod statistics;

use std::path::PathBuf;

pub use discover::{Discovery, discover};
pub use error::ForeignError;
pub use hypervisor::{Counters, Hypervisor};
pub use look::{Asking, Look, look, set_balloon};
pub use names::name_apart;
pub use qmp::Qmp;

use crate::situation::{Backing, Vmm};
use discover::Mounts;

/// A guest of another monitor, as its process describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The process that holds its memory.
    pub pid: u32,
    /// When that process began, in ticks since the host booted: its number may be another's by now.
    pub started: u64,
    /// The name that its command line claims, or one that is made of its process's number: not one
    /// guest's only before [`name_apart`].
    pub name: String,
    /// Who runs it.
    pub vmm: Vmm,
    /// Whose process it is, as the kernel has it; absent when it has the rights of several users.
    pub uid: Option<u32>,
    /// Its RAM; 0 when the command line does not tell.
    pub memory_bytes: u64,
    /// What its RAM is made of.
    pub backing: Backing,
    /// Whether it lets the kernel merge its pages.
    pub is_mergeable: bool,
    /// Whether it has a device of the host (VFIO, vDPA), by its command line or the files that it
    /// has open: then all its memory is pinned, and a balloon gives the host nothing.
    pub has_passthrough: bool,
    /// Whether it was started to receive a migration.
    pub is_incoming: bool,
    /// How it can be asked.
    pub door: Door,
}

/// What the command line of a guest's process tells.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Line {
    name: Option<String>,
    memory_bytes: u64,
    backing: Backing,
    is_mergeable: bool,
    has_passthrough: bool,
    is_incoming: bool,
    door: Door,
}

impl Line {
    /// One that tells nothing.
    const fn new(memory_bytes: u64, no_door: &'static str) -> Self {
        Self {
            name: None,
            memory_bytes,
            backing: Backing::Anonymous,
            is_mergeable: false,
            has_passthrough: false,
            is_incoming: false,
            door: Door::None(no_door),
        }
    }
}

/// How a guest can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Door {
    /// QMP on a Unix socket. It serves one client at a time.
    Qmp(PathBuf),
    /// HTTP on a Unix socket.
    CloudHypervisor(PathBuf),
    /// Its only monitor is libvirt's, which keeps it connected. A second one in the domain's XML
    /// (`<qemu:commandline>` with `-qmp unix:PATH,server=on,wait=off`) would be ours.
    Libvirt,
    /// Not at all: why not, and the way out.
    None(&'static str),
}
