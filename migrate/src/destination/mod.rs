//! The destination's side of a migration, as a state machine.
//!
//! [`Destination::handle`] takes what happened ([`Event`]) and returns what is to be done
//! ([`Action`]), in that order. It never lets a guest run that was not committed to it, and forgets
//! none that may have been.

mod action;
mod event;
mod machine;

pub use action::Action;
pub use event::Event;
pub use machine::{Destination, DestinationConfig};
