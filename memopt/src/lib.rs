//! Memory optimisation of the guests on a host: observe, plan, act, verify.
//!
//! [`observe`] reads what each guest process really costs its host, and what the host has left;
//! [`situation`] holds it all as plain numbers, from which everything else decides.
//! [`schedule`] says when that is done by itself, and [`history`] keeps what was planned, done and found.
//!
//! It depends on nothing else of the workspace. Start reading at [`situation::Situation`].

pub mod history;
pub mod observe;
pub mod schedule;
pub mod situation;
