//! Live migration of a guest from one process to another.
//!
//! Two state machines, [`source::Source`] and [`destination::Destination`], make every decision of
//! a migration. They use no clock, socket or file: `handle(event, now)` returns the actions to
//! take. The shells around them perform the actions and report the results. Start reading at
//! [`phase`] (what happens in which order) and [`protocol`] (the messages), then [`source`] and
//! [`destination`]. [`estimate`] forecasts a migration with the same machine. [`guest`] defines
//! what a guest must provide; the durable records of [`record`] decide who may run the guest after
//! a failure.
//!
//! This crate depends on no virtual machine: the program adapts `vmm-core` to [`guest`].

pub mod convergence;
pub mod decisions;
pub mod destination;
pub mod error;
pub mod estimate;
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
pub mod stall;
mod telemetry;
pub mod text;
pub mod waits;

pub use error::MigrationError;
pub use guest::{
    DestinationGuest, DiskCopy, ExistingFile, GuestDescription, GuestError, GuestFactory,
    HintProgress, Refusal, RunState, SourceGuest, Throttle, Throttled,
};
pub use limits::Limits;
pub use memory::{MemoryLayout, PageSet};
pub use phase::Phase;
pub use progress::Progress;
pub use protocol::{MigrationId, Token};
pub use reason::Reason;
pub use report::Report;
pub use stall::OnStall;
