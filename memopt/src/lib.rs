//! Memory optimisation of the guests on a host. What stands here so far is the first step,
//! [`observe`]: what each guest process really costs its host, and what the host has left.
//!
//! It depends on nothing else of the workspace: it reads `/proc` and gives plain numbers. Start
//! reading at [`observe::process_cost`].

pub mod observe;
