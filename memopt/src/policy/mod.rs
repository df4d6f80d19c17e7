//! The operator's policy: a preset (`safe`, `balanced`, `dense`), numbers that differ from it, and
//! limits for single guests.
//!
//! [`Policy::parse`] reads TOML. The values of every preset are in `numbers.rs`; the documentation
//! of the fields in `sections.rs` gives their meaning and sources. A policy is plain data, which
//! [`crate::plan`] carries out. It depends on [`crate::situation`], [`crate::settings`],
//! [`crate::units`] and [`crate::labels`] alone. Start reading at [`Policy`].

mod activity;
mod actuator;
mod file;
mod goal;
mod limits;
mod numbers;
mod preset;
mod retired;
mod rule;
mod sections;
#[cfg(test)]
mod tests;

pub use activity::Activity;
pub use actuator::{Actuator, Actuators};
pub use file::RULES_MAX;
pub use goal::{Goal, GoalError};
pub use limits::GuestLimits;
pub use preset::Preset;
pub use rule::{DomainRule, GuestRule, NamePattern};
pub use sections::{
    BalloonPolicy, HostPolicy, HugePolicy, MergePolicy, Policy, PoolPolicy, PressurePolicy,
};
