//! Verifies what each step returned: compares a sample of the host before it with one after it has
//! settled.
//!
//! [`Expectation::of`] records what the check will need, [`Expectation::is_settled`] says when to
//! check, and [`Expectation::check`] returns the outcome. The ledger benches an actuator that does
//! not deliver. Where the host can measure an effect, no report of a guest or of ksmd is trusted: a
//! balloon is judged by the memory of the guest's process, merging by the kernel's profit of a
//! guest and that memory, and a ksmd window by the memory of all guests of its domain. This module
//! depends on steps, the policy and the situation. Start reading at [`Outcome`].

mod expectation;
mod outcome;
mod settle;
#[cfg(test)]
mod tests;
mod traces;

pub use expectation::{Expectation, concerns};
pub use outcome::{Outcome, Verdict};
pub use settle::settles_after;
