//! Memory optimisation of the guests on a host: observe, plan, act, verify.
//!
//! [`observe`] reads what each guest process really costs its host, and what the host has left;
//! [`foreign`] asks guests of other programs, [`survey`] looks at pages; [`situation`] holds it all
//! as plain numbers, from which everything else decides. [`policy`] is what the operator wants,
//! [`ledger`] what has to be remembered between two looks, [`plan`] what to do now and why, and
//! [`verify`] what really came of it, all of it in terms of a [`step`]. These four are pure: they
//! hold no clock, no file and no socket (ADR 16). [`ksm`] drives the kernel's samepage merging in
//! windows (ADR 17). [`settings`] is how a policy and schedules are read from their file, [`units`]
//! how sizes, shares and times are written. [`schedule`] says when all that is done by itself, and
//! [`history`] keeps what was planned, done and found (ADR 18). [`service`] is the shell around all
//! of it: one loop, with guests behind the port [`hypervisor`] (ADR 25).
//!
//! It depends on nothing else of the workspace but `regular-file`. Start reading at
//! [`situation::Situation`], then [`plan::plan`].

pub mod foreign;
pub mod history;
pub mod hypervisor;
mod json;
pub mod ksm;
pub mod labels;
pub mod ledger;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod schedule;
pub mod service;
pub mod settings;
pub mod situation;
pub mod step;
pub mod survey;
pub mod units;
pub mod verify;
