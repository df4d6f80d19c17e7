//! The shells that perform a migration: sockets, clocks, files and guests around the state
//! machines.
//!
//! A session has its own thread with its own small runtime, so a migration uses no more cores than
//! useful, and other work of the process does not delay it. [`start_source`] sends a guest away,
//! [`start_destination`] receives one; both return a [`Handle`] to watch, cancel and resolve the
//! migration, and to await its end. [`estimate`] measures what a migration would meet. Inside, a
//! driver passes events to the state machine and performs its actions; start with `source/mod.rs`
//! and `destination/mod.rs`, then `sender.rs` and `receiver.rs` for the pages, and
//! `serve.rs` and `fetch.rs` for those that follow the guest.

mod accept;
mod clock;
mod connect;
mod control;
mod destination;
mod fetch;
mod handle;
mod heat;
mod hints;
mod journal;
mod limiter;
mod line;
mod links;
mod liveness;
mod measure;
mod outstanding;
mod pace;
mod pool;
mod receiver;
mod record_writer;
mod sender;
mod serve;
mod source;
mod stream_sender;
#[cfg(test)]
mod tests;
mod thread;
mod totals;
mod turns;
mod worker;
mod written;

pub use destination::{DestinationSession, start_destination};
pub use handle::Handle;
pub use measure::{EstimateError, estimate};
pub use source::{SourceSession, start_source};
pub use thread::StartError;
