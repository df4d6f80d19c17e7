//! What was planned, done and found, run by run, in a file that survives whoever writes it.
//!
//! [`History`] is the file: a run is put down when it begins, its actions before they are carried
//! out, and what came back of each when that is known. Whatever a call has put down is on disk when
//! it returns. [`Chronicle`] is a history that may be missing: a full disk or a damaged file costs
//! the records and not the work (ADR 18).
//!
//! Plans, actions and outcomes are anything that serde can write, see [`Payloads`]. It depends on
//! [`crate::schedule::Trigger`] and on nothing else of this crate. Start reading at [`History`].

mod chronicle;
mod draft;
mod error;
mod json;
mod limits;
mod retention;
mod run;
mod store;
mod tables;

pub use chronicle::{Chronicle, News};
pub use error::HistoryError;
pub use limits::Limits;
pub use run::{Deed, Json, Listing, Payloads, Run, RunId, State, Summary};
pub use store::{Found, History, Opened, Stored};
