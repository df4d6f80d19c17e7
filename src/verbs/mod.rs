//! What the command line's verbs do: they find a guest's process and talk to it. Nothing here owns
//! a guest.
//!
//! A verb is a file with a `run`; [`session`] is how they reach guests, [`off`] how guests without
//! a process are shown, [`follow`], [`progress`] and [`summary`] how a migration is watched. Start
//! at [`list`] for the simplest, [`migrate`] for the one that matters.

pub(crate) mod balloon;
pub(crate) mod cancel;
pub(crate) mod certs;
pub(crate) mod console;
pub(crate) mod cpu_models;
pub(crate) mod define;
pub(crate) mod density;
pub(crate) mod events;
pub(crate) mod follow;
pub(crate) mod list;
pub(crate) mod migrate;
pub(crate) mod off;
pub(crate) mod power;
pub(crate) mod progress;
pub(crate) mod save;
pub(crate) mod session;
pub(crate) mod show;
pub(crate) mod summary;
