//! The embedded `workload` guest: parameters, loading, control, and decoding its reports.
//!
//! The guest itself is a small freestanding program (`vmm-core/workload/`) that is part of the
//! binary. It fills memory with stamped pages, rewrites them at a set rate, checks every page it
//! touches and measures its own longest stall. Its host controls and reads it through three kinds
//! of pages at fixed addresses in guest RAM, which takes no exits:
//!
//! * [`abi`] is the layout of those pages, and [`stamp`] the content of a stamped page; both are
//!   `no_std`, hold no `unsafe`, and are compiled into the guest as well;
//! * [`load()`] puts image, parameters and first control values into RAM;
//! * [`Control`] steers a running guest, [`Report`] reads what it found;
//! * [`verify_image`] checks the whole memory of a paused guest from outside;
//! * [`Doorbell`] names the few events that the guest announces through an I/O port.
//!
//! Start reading at [`WorkloadParams`]. Nothing here depends on the rest of `vmm-core`.

pub mod abi;
mod control;
mod doorbell;
mod error;
mod load;
mod memory;
mod params;
mod report;
pub mod stamp;
mod verify;

pub use abi::{DOORBELL_PORT, VCPUS_MAX};
pub use control::Control;
pub use doorbell::Doorbell;
pub use error::WorkloadError;
pub use load::{VcpuEntry, load};
pub use params::{Order, Pattern, WorkloadParams};
pub use report::{Phase, Report, VcpuReport};
pub use stamp::{Fault, FaultKind};
pub use verify::{ImageVerdict, verify_image};
