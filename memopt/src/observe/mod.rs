//! What guests cost and what the host has left, read from `/proc`.
//!
//! `smaps_rollup`, `status` and `meminfo` share one line format, parsed once in `fields.rs`; the
//! parsers are pure functions of text, and [`process_cost`] and [`host_memory`] are the thin readers
//! around them. All numbers are bytes.

mod cost;
mod error;
mod fields;
mod host;

pub use cost::{ProcessCost, parse_process_cost, process_cost, resident_bytes};
pub use error::ObserveError;
pub use host::{HostMemory, host_memory, parse_meminfo};
