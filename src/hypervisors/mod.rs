//! What runs guests on this host, as memory optimization sees it: adapters of
//! [`memopt::hypervisor::Hypervisor`].
//!
//! [`own`] asks lighter's guests over their API, [`foreign`] those that QEMU and Cloud Hypervisor
//! run, over their monitors.

mod foreign;
mod own;

pub(crate) use foreign::ForeignGuests;
pub(crate) use own::OwnGuests;
