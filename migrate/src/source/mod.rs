//! The source's side of a migration, as a state machine.
//!
//! [`Source::handle`] takes what happened ([`Event`]) and returns what is to be done ([`Action`]),
//! in that order. It holds every decision of the source: when to send another round, when to pause,
//! when the guest goes on here, and, after the commit, that it never does on its own.
//!
//! Reading order: `state` (what it waits for), `machine` (who handles which event), `rounds` (up to
//! the pause), `handover` (from the pause to the end), `unwind` (back to a guest that runs here).
//! What they reckon with: `round` (what is to be sent), `estimate` (whether it is time to switch
//! over), `standstill` (what the guest waits for meanwhile).

mod action;
mod estimate;
mod event;
mod handover;
mod machine;
mod round;
mod rounds;
mod standstill;
mod state;
#[cfg(test)]
mod tests;
mod unwind;

pub use action::{Action, DataPath};
pub use event::{Event, FinalSent, Probe, RoundSent};
pub use machine::{Source, SourceConfig};
