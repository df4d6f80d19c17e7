//! The metrics of memory optimization: the state of the host and guests at the last inspection,
//! what was planned and done, and how much memory was verifiably returned.
//!
//! `catalogue` is the list, `labels` has the values of its labels, `sample` the plain values that
//! the program provides, and `fill` copies them into the families. Inspected values and decisions
//! have the types of `memopt`.

mod catalogue;
mod fill;
mod labels;
mod sample;

pub use catalogue::{DensityCounted, DensityScraped};
pub(crate) use fill::{fill, show_zeros};
pub use labels::{
    Finding, MissedReason, PageSize, RunOutcome, RunTrigger, ScheduleName, Stall, WindowEnd,
};
pub use sample::{DensityGuest, DensitySample, InspectionSample, ScheduleSample, SurveySample};
