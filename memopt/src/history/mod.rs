//! The record of what was planned, done and found, run by run, in a folder that outlives the
//! process that writes it.
//!
//! [`History`] is the folder. Each run has a log, with lines for its start, its actions before they
//! are executed, and the result of each once it is known. Everything that a call records is on disk
//! when the call returns. [`LossyHistory`] is a history that tolerates failure: a full disk costs
//! records, but does not stop the work (ADR 18).
//!
//! Of this crate, it depends only on what starts a run ([`crate::schedule::Trigger`]), on plans and
//! on steps. Start reading at [`History`].

mod entry;
mod error;
mod folder;
mod limits;
mod lossy_history;
mod run;
#[cfg(test)]
pub(crate) mod samples;
mod store;
mod ticks;

pub use error::HistoryError;
pub use limits::Limits;
pub use lossy_history::{HistoryEvent, LossyHistory};
pub use run::{Listing, Run, RunAction, RunEnd, RunId, State, StepResult, Summary};
pub use store::{History, Opened, Stored};
