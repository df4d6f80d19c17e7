//! What really came back: each step is held against a look at the host before it, and one after it
//! has settled.
//!
//! [`Expectation::of`] keeps what will be needed, [`Expectation::is_settled`] says when to look,
//! and [`Expectation::check`] what came of it. The ledger benches what does not deliver. Nobody's
//! word is taken for what the host can measure: a balloon counts by the memory of the guest's
//! process, merging by the kernel's profit of a guest and that memory, a window of ksmd by the
//! memory of all guests of its domain. It depends on steps, the policy and the situation. Start
//! reading at [`Outcome`].

mod expectation;
mod outcome;
mod settle;
#[cfg(test)]
mod tests;
mod traces;

pub use expectation::{Expectation, concerns};
pub use outcome::{Outcome, Verdict};
pub use settle::settles_after;
