//! Memory optimisation of the guests on a host: observe, plan, act, verify.
//!
//! [`observe`] reads what each guest process costs its host, and how much memory the host has left.
//! [`foreign`] queries guests of other VMMs, and [`survey`] samples guest pages. [`situation`]
//! holds the results as plain numbers; every decision is made from them. [`policy`] is what the
//! operator wants, [`ledger`] what has to be remembered between two samples, [`plan`] what to do
//! now and why, and [`verify`] what each [`step`] actually returned. These four are pure: they hold
//! no clock, no file and no socket (ADR 16). [`ksm`] drives the kernel's samepage merging in
//! windows (ADR 17). [`settings`] reads a policy and schedules from their file, and [`units`]
//! defines how sizes, shares and times are written. [`schedule`] decides when all of this runs
//! automatically, and [`history`] records what was planned, done and found (ADR 18). [`service`] is
//! the shell around all of it: one loop, with guests behind the port [`hypervisor`] (ADR 25).
//!
//! Of the workspace, it depends only on `regular-file`. Start reading at [`situation::Situation`],
//! then [`plan::plan`].

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
