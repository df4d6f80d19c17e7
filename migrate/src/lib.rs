//! Live migration of a guest from one process to another.
//!
//! Two state machines, [`source::Source`] and [`destination::Destination`], hold every decision of
//! a migration and know no clock, socket or file: `handle(event, now)` returns the actions to take.
//! The shells around them do the work and report what became of it. Start reading at [`phase`]
//! (what happens in which order), [`protocol`] (what is said), then [`source`] and [`destination`].
//! What a guest has to offer is in [`guest`]; who may run it after a failure is decided by the
//! durable records of [`record`].
//!
//! This crate depends on no virtual machine: `vmm-core` is adapted to [`guest`] by the program.

pub mod convergence;
pub mod destination;
pub mod error;
mod failpoint;
mod framing;
pub mod front;
pub mod guest;
pub mod limits;
pub mod memory;
pub mod pages;
pub mod phase;
pub mod progress;
pub mod protocol;
pub mod quic;
pub mod reason;
pub mod record;
pub mod report;
pub mod resolve;
pub mod session;
pub mod source;
mod telemetry;
pub mod text;

pub use error::MigrationError;
pub use guest::{
    DestinationGuest, DiskCopy, ExistingFile, GuestDescription, GuestError, GuestFactory,
    HintProgress, Refusal, RunState, SourceGuest,
};
pub use limits::Limits;
pub use memory::{MemoryLayout, PageSet};
pub use phase::Phase;
pub use progress::Progress;
pub use protocol::{MigrationId, Token};
pub use reason::Reason;
pub use report::Report;
