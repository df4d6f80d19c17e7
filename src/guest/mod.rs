//! The process of one guest. It owns the machine, the guest's side of a migration, and the guest's
//! API.
//!
//! [`plan`] translates a command line, and [`start`] builds the machine from it and lives until the
//! guest ends ([`process`], which [`control`] opens to the routes of [`api`]; [`ending`] says why).
//! [`machine`] adapts a virtual machine to migrations, [`leaving`] and [`arriving`] are the two
//! directions, [`session`] is what they share, and [`estimating`] says how leaving would go.
//! [`following`] is memory that arrives after its guest, [`disks`] has the disks that are copied,
//! and [`unconfined`] the threads that create and open files for an incoming guest. [`console`] is
//! the serial line, [`background`] is `--detach`, and [`workload`] the built-in guest. [`merging`]
//! decides whether pages may be merged, [`survey`] whether that is worth it, and [`treatment`] does
//! it. [`addresses`] checks MAC addresses, and [`events`] reports what happens to the guest, as
//! [`firmware`] does when nothing boots. [`devices`] attaches and detaches devices, for the
//! commands of [`attaching`], which run in processes of their own. Start at [`start`].

mod addresses;
mod api;
mod arriving;
mod attaching;
mod background;
mod balloon;
mod before_start;
mod console;
mod control;
mod devices;
mod disks;
mod ending;
mod estimating;
mod events;
mod firmware;
mod following;
mod growing;
mod host_devices;
mod leaving;
mod machine;
mod maker;
mod merging;
mod opener;
mod plan;
mod process;
mod saved;
mod seed;
mod session;
mod start;
mod survey;
mod treatment;
mod unconfined;
mod variables;
mod workload;

pub(crate) use attaching::{attach_disk, attach_interface, detach_disk, detach_interface};
pub(crate) use start::{incoming, restore, run, start_defined};
