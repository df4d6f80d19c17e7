//! Reads from `/proc` and `/sys` what guests cost and how much memory the host has left.
//!
//! Parsers are pure functions of text. The readers around them are thin: they read at most 1 MiB of
//! a file (80 MiB of `smaps`), below the root of a [`Sources`], so that tests can supply files of
//! their own. [`host()`] reads all host state that plans need. [`Meter`] measures what many guests
//! cost without walking all their page tables in each round. All sizes are bytes.

mod cost;
mod error;
mod fields;
mod host;
mod huge;
mod ksm;
mod mergeable;
mod meter;
mod pools;
mod pressure;
mod process;
pub(crate) mod sources;
mod stat;

pub use cost::{ProcessCost, parse_process_cost, process_cost, resident_bytes};
pub use error::ObserveError;
pub use host::{HostMemory, Missing, Part, host, host_memory, parse_meminfo};
pub use huge::{Activity, HugePagePolicy, HugePages, activity, huge_pages, parse_vmstat};
pub use ksm::{Advisor, KsmKnobs, KsmState, ksm, ksm_knobs, ksmd_time};
pub use mergeable::{mergeable_areas, mergeable_processes, named_process};
pub use meter::{Meter, Metered};
pub use pools::pools;
pub use pressure::{parse_pressure, pressure};
pub use process::{Merged, cost, merged, parse_ksm_stat};
pub use sources::Sources;
pub use stat::{CpuTime, cpu_time};
pub(crate) use stat::{started_of, time_of};
