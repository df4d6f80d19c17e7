//! The destination's side of a migration, as a state machine.
//!
//! [`Destination::handle`] takes an event ([`Event`]) and returns the actions to perform
//! ([`Action`]), in order. The destination never runs a guest that was not committed to it, and
//! never drops one that may have been.
//!
//! Reading order: `state` (what it waits for), `machine` (dispatch of events), `receive` (up to
//! being ready), `reconnect` (if the connection is lost before), `takeover` (from there until the
//! guest runs or is discarded).

mod action;
mod event;
mod machine;
mod postcopy;
mod receive;
mod reconnect;
mod state;
mod takeover;
#[cfg(test)]
mod tests;

pub use action::Action;
pub use event::Event;
pub use machine::{Destination, DestinationConfig};
pub use reconnect::KEPT_WITHOUT_SOURCE;
