//! What was planned, done and found, run by run, in a folder that survives whoever writes it.
//!
//! [`History`] is the folder. A run is put down when it begins, its actions before they are carried
//! out, and what came back of each when that is known: lines of the run's log. Whatever a call has
//! put down is on disk when it returns. [`Chronicle`] is a history that may be missing: a full disk
//! costs the records and not the work (ADR 18).
//!
//! It knows what a run is begun by ([`crate::schedule::Trigger`]), its plan and its steps, and no
//! more of this crate. Start reading at [`History`].

mod chronicle;
mod entry;
mod error;
mod folder;
mod limits;
mod run;
#[cfg(test)]
pub(crate) mod samples;
mod store;
mod ticks;

pub use chronicle::{Chronicle, News};
pub use error::HistoryError;
pub use limits::Limits;
pub use run::{Deed, Found, Listing, Run, RunEnd, RunId, State, Summary};
pub use store::{History, Opened, Stored};
