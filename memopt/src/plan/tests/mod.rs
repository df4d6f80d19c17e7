//! Plans for small hosts, law by law; what holds for all hosts is in `invariants.rs`.

mod balloons;
mod invariants;
mod merging;
mod names;

use super::*;
use crate::plan::fixture::*;
use crate::situation::Situation;
use crate::step::{Action, ChunkRange};
use crate::units::{GIB, MIB};

/// The plan for a look that follows on one a minute earlier.
fn settled(situation: &Situation, policy: &Policy, goal: Goal) -> (Plan, Ledger) {
    let mut ledger = Ledger::default();
    let _ = round(situation, policy, &mut ledger, &goal);
    let now = later(situation, 60);
    let plan = round(&now, policy, &mut ledger, &goal);
    (plan, ledger)
}

/// What the balloon of `name` is set to.
fn set_to(plan: &Plan, name: &str) -> Option<u64> {
    plan.steps.iter().find_map(|step| match &step.action {
        Action::SetBalloon { guest, to_bytes, .. } if guest == name => Some(*to_bytes),
        _ => None,
    })
}

/// Why the balloon of `name`, or all of it, is left alone.
fn why(plan: &Plan, name: &str, actuator: Actuator) -> Because {
    let found = plan
        .skipped
        .iter()
        .find(|it| it.guest == name && it.actuator.is_none_or(|it| it == actuator));
    found.unwrap_or_else(|| panic!("{name} is not skipped: {plan:#?}")).because.clone()
}
