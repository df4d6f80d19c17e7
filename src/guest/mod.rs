//! The process of one guest: it owns the machine, the guest's end of a migration, and the guest's
//! API.
//!
//! [`plan`] is what a command line means; [`start`] builds the machine by it and lives until the
//! guest ends ([`process`], which [`control`] opens to the routes of [`api`]). [`machine`] makes a virtual
//! machine fit for a migration, [`leaving`] and [`arriving`] are its two directions, [`session`]
//! what they share, [`disks`] the disks that are copied, [`unconfined`] the threads that make and
//! open files for a guest that arrives. [`console`] is the serial line, [`background`] is
//! `--detach`, [`workload`] the built-in guest, [`merging`] whether its pages may be merged,
//! [`survey`] whether that is worth it, [`treatment`] has it done, [`addresses`] whether they are
//! its own, [`events`] what happens to the guest. Start at [`start`].

mod addresses;
mod api;
mod arriving;
mod background;
mod balloon;
mod console;
mod control;
mod disks;
mod events;
mod leaving;
mod machine;
mod maker;
mod merging;
mod opener;
mod plan;
mod process;
mod saved;
mod session;
mod start;
mod survey;
mod treatment;
mod unconfined;
mod workload;

pub(crate) use start::{incoming, restore, run, start_defined};
