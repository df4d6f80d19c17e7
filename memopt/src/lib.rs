//! Memory optimisation of the guests on a host: observe, plan, act, verify.
//!
//! [`observe`] reads what each guest process really costs its host, and what the host has left; [`situation`] holds
//! it all as plain numbers, from which everything else decides. [`policy`] is what the operator wants, [`ledger`]
//! what has to be remembered between two looks, [`plan`] what to do now and why, and [`verify`] what really came of
//! it. These four are pure: they hold no clock, no file and no socket (ADR 16).
//!
//! It depends on nothing else of the workspace. Start reading at [`situation::Situation`], then [`plan::plan`].

pub mod ledger;
pub mod observe;
pub mod plan;
pub mod policy;
pub mod situation;
pub mod verify;
