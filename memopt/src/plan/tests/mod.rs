//! Plans for small hosts, law by law; `invariants.rs` has what holds for all hosts.

mod balloons;
mod invariants;
mod merging;
mod names;

use super::*;
use crate::plan::fixture::*;
use crate::situation::Situation;
use crate::step::{Action, ChunkRange};
use crate::units::{GIB, MIB};

/// The plan for a sample that follows another one a minute earlier.
fn settled(situation: &Situation, policy: &Policy, goal: Goal) -> (Plan, Ledger) {
    let mut ledger = Ledger::default();
    let _ = round(situation, policy, &mut ledger, &goal);
    let now = later(situation, 60);
    let plan = round(&now, policy, &mut ledger, &goal);
    (plan, ledger)
}

/// The balloon target that the plan sets for `name`.
fn set_to(plan: &Plan, name: &str) -> Option<u64> {
    plan.steps.iter().find_map(|step| match &step.action {
        Action::SetBalloon { guest, to_bytes, .. } if guest == name => Some(*to_bytes),
        _ => None,
    })
}

/// Why the guest `name`, or one actuator for it, is skipped.
fn why(plan: &Plan, name: &str, actuator: Actuator) -> SkipReason {
    let found = plan
        .skipped
        .iter()
        .find(|it| it.guest == name && it.actuator.is_none_or(|it| it == actuator));
    found.unwrap_or_else(|| panic!("{name} is not skipped: {plan:#?}")).skip_reason.clone()
}
