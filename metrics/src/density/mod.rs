//! The metrics of memory optimization: what the node saw of its host and guests at its last
//! inspection, what it planned and did, and what really came back.
//!
//! `catalogue` is the list, `labels` what its labels can say, `sample` the plain values that the
//! program hands over, `fill` puts them into the families. What is inspected and decided by is
//! shown as the types of `memopt`.

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
