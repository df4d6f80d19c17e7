//! The commands of the command line: they find a guest's process and talk to it. No command runs a
//! guest itself.
//!
//! Each command is a file with a `run`. [`session`] is how commands reach guests, [`off`] shows
//! guests without a process, [`follow`], [`progress`] and [`summary`] show a migration, and
//! [`estimate`] shows how one would go. Start at [`list`] for the simplest command, and at
//! [`migrate`] for the most important one.

mod attach_there;
pub(crate) mod balloon;
pub(crate) mod blockresize;
pub(crate) mod cancel;
pub(crate) mod certs;
pub(crate) mod console;
mod console_output;
pub(crate) mod cpu_models;
pub(crate) mod define;
pub(crate) mod density;
mod estimate;
pub(crate) mod events;
pub(crate) mod follow;
pub(crate) mod hot_plug;
pub(crate) mod list;
pub(crate) mod logs;
pub(crate) mod migrate;
pub(crate) mod off;
pub(crate) mod power;
pub(crate) mod progress;
pub(crate) mod save;
pub(crate) mod session;
pub(crate) mod show;
pub(crate) mod stats;
pub(crate) mod summary;
pub(crate) mod version;
