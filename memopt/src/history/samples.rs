//! Plans and steps for tests of the history.

use crate::plan::Plan;
use crate::plan::fixture::{self, plan_of};
use crate::step::{Action, Step};

/// A step on `guest`.
pub(crate) fn step(guest: &str, expected_bytes: i64) -> Step {
    let action = Action::Unmerge { guest: guest.to_owned(), chunks: None };
    fixture::step(action, expected_bytes)
}

/// A plan with one step on `guest`.
pub(crate) fn plan(guest: &str) -> Plan {
    plan_of(vec![step(guest, 1)])
}
