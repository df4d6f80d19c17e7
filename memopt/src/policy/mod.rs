//! What the operator wants: a preset (`safe`, `balanced`, `dense`), numbers that differ from it,
//! and limits for single guests.
//!
//! [`Policy::parse`] reads TOML; every number of every preset is in `numbers.rs`, with where it
//! comes from in the documentation of the fields here. A policy is plain data: [`crate::plan`] does
//! what it says. It depends on [`crate::situation`], [`crate::settings`], [`crate::units`] and
//! [`crate::labels`] alone. Start reading at [`Policy`].

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
    BalloonPolicy, HostPolicy, HugePolicy, MergePolicy, PainPolicy, Policy, PoolPolicy,
};
