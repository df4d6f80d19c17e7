//! Hypervisors of this host, as memory optimization sees them: adapters of
//! [`memopt::hypervisor::Hypervisor`].
//!
//! [`own`] talks to lighter's guests over their API, [`foreign`] to those of QEMU and Cloud
//! Hypervisor over their monitor sockets.

mod foreign;
mod own;

pub(crate) use foreign::ForeignGuests;
pub(crate) use own::OwnGuests;
