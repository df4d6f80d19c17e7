//! The metrics of memory optimization: what the node saw of its host and guests at its last look, what it planned and did, and
//! what really came back.
//!
//! `catalogue` is the list, `labels` what its labels can say, `sample` the plain values that the program hands over, `fill`
//! puts them into the families. As everywhere in this crate, nothing here knows the crate that plans.

mod catalogue;
mod fill;
mod labels;
mod sample;

pub use catalogue::{DensityCounted, DensityScraped};
pub(crate) use fill::{fill, show_zeros};
pub use labels::{
    Actuator, Finding, Hindrance, Level, MissedReason, PageSize, RunOutcome, RunTrigger,
    ScheduleName, Stall, Verdict, Vmm, WindowEnd,
};
pub use sample::{
    BalloonSample, DensityGuest, DensityHost, DensitySample, KsmSample, LookSample, PoolSample,
    PressureSample, ScheduleSample, StatisticsSample, SurveySample,
};
