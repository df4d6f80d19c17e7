//! The destination's side of a migration, as a state machine.
//!
//! [`Destination::handle`] takes what happened ([`Event`]) and returns what is to be done
//! ([`Action`]), in that order. It never lets a guest run that was not committed to it, and forgets
//! none that may have been.
//!
//! Reading order: `state` (what it waits for), `machine` (who handles which event), `receive` (up
//! to being ready), `takeover` (from there to a guest that runs, or is gone).

mod action;
mod event;
mod machine;
mod receive;
mod state;
mod takeover;
#[cfg(test)]
mod tests;

pub use action::Action;
pub use event::Event;
pub use machine::{Destination, DestinationConfig};
