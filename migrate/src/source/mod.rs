//! The source's side of a migration, as a state machine.
//!
//! [`Source::handle`] takes what happened ([`Event`]) and returns what is to be done ([`Action`]),
//! in that order. It holds every decision of the source: when to send another round, when to pause,
//! when the guest goes on here, and, after the commit, that it never does on its own.

mod action;
mod event;
mod machine;

pub use action::{Action, DataPath};
pub use event::{Event, FinalSent, Probe, RoundSent};
pub use machine::{Source, SourceConfig};
