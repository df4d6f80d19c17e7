//! The source's side of a migration, as a state machine.
//!
//! [`Source::handle`] takes what happened ([`Event`]) and returns what is to be done ([`Action`]),
//! in that order. It holds every decision of the source: when to send another round, when to pause,
//! when the guest goes on here, and, after the commit, that it never does on its own.
//!
//! Reading order: `state` (what it waits for), `machine` (who handles which event), `rounds` (up to
//! the pause), `handover` (from the pause to the end),
//! `standstill` (what the guest waits for meanwhile), `unwind` (back to a guest that runs here).

mod action;
mod event;
mod handover;
mod machine;
mod rounds;
mod standstill;
mod state;
#[cfg(test)]
mod tests;
mod unwind;

pub use action::{Action, DataPath};
pub use event::{Event, FinalSent, Probe, RoundSent};
pub use machine::{Source, SourceConfig};
