//! The source's side of a migration, as a state machine.
//!
//! [`Source::handle`] takes an event ([`Event`]) and returns the actions to perform ([`Action`]),
//! in order. It makes every decision of the source: when to send another round, when to pause, when
//! to resume the guest here. After the commit, the source never resumes the guest without the
//! destination or an operator.
//!
//! Reading order: `state` (what it waits for), `machine` (dispatch of events), `rounds` (up to the
//! pause), `reconnect` (rounds over a new connection), `handover` (from the pause to the end),
//! `early` (what differs if the destination is not awaited before the commit), `returning` (back to
//! rounds), `postcopy` (what differs if memory follows the guest), `unwind` (resuming the guest
//! here). They rely on `round` (what is still to be sent), `estimate` (whether to switch over),
//! `stall` (what to do when that does not come nearer) and `standstill` (what the paused guest
//! waits for).

mod action;
mod early;
mod estimate;
mod event;
mod handover;
mod machine;
mod postcopy;
mod reconnect;
mod returning;
mod round;
mod rounds;
mod stall;
mod standstill;
mod state;
#[cfg(test)]
mod tests;
mod unwind;

pub use action::{Action, DataPath};
pub use event::{Event, FinalSent, Probe, RoundSent};
pub use machine::{Source, SourceConfig};
pub use reconnect::RECONNECT_WITHIN;
