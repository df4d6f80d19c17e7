//! The protocol between a source and the destination's node.
//!
//! Before a migration, a source asks the node to [`admit`] a guest and receives the port and the
//! token of the process that will receive it. If it loses that process, it asks the node for the
//! outcome ([`ask`]). If the source's own process died, its node reports what the record says
//! ([`resolve`]). Before an operator has a copy run by hand, [`trace`] asks where the guest is, and
//! before a guest gets a disk with which another one has left, [`disk_users`] asks who writes it.
//! [`boot_files`] asks whether a guest could boot again at its destination, and [`attach_device`]
//! has a guest that has arrived get a device there. Before an estimate, a source measures the path
//! to the node. The node answers with [`serve()`]. Each connection carries
//! one request; everything is bounded in size and time.

mod dial;
mod serve;
mod sink;

pub use dial::{
    Admission, FrontError, ResolveTarget, Sought, Traced, admit, ask, attach_device, boot_files,
    disk_users, expect_attachable, resolve, trace,
};
pub use serve::{FrontHandler, serve};
pub(crate) use sink::{SINKS_MAX, open_sink};
