//! Decides what to do now, and why: a pure function of a sample of the host, the policy, the ledger
//! and the goal.
//!
//! [`round`] records a sample in the ledger and plans; [`plan`] only plans. A dry run is a plan
//! that is not executed. The same inputs give the same plan, whatever the order of the guests. Each
//! law has its own file: `balloon.rs` one balloon, `squeeze.rs` and `share.rs` all balloons
//! together, `chunks.rs` the value of a chunk, `domain.rs` the merged domain, `afford.rs` what ksmd
//! has the CPU time for, `ksm.rs` the windows, `need.rs` how much memory is wanted. ADR 16 has the
//! reasons. This module depends on steps, the policy, the ledger and the situation. Start reading
//! at [`Plan`].

mod afford;
mod balloon;
mod chunks;
mod domain;
mod effect;
#[cfg(test)]
pub(crate) mod fixture;
mod give;
mod huge;
mod ksm;
mod merge;
mod missed;
mod need;
mod pool;
mod reviewed;
mod share;
mod sheet;
mod skip_reason;
mod squeeze;
mod template;
#[cfg(test)]
mod tests;
mod unsurveyed;
mod view;
mod yields;
mod zeros;

pub use domain::{exposed, wants_merging};
pub use missed::Missed;
pub use sheet::{DomainChoice, Plan, Skipped};
pub use skip_reason::{Advice, SkipReason};
pub(crate) use unsurveyed::pages_matter;

use std::collections::BTreeMap;

use self::need::Need;
use self::sheet::Draft;
use self::view::Context;
use crate::ledger::{Ledger, Level};
use crate::policy::{Actuator, Goal, Policy};
use crate::situation::Situation;
use crate::step::Step;
use crate::units::signed;

/// Records a sample of the host in `ledger` and makes its plan, which already responds to pressure
/// that a guest shows in this sample.
pub fn round(situation: &Situation, policy: &Policy, ledger: &mut Ledger, goal: &Goal) -> Plan {
    ledger.observe(situation, policy);
    plan(situation, policy, ledger, goal)
}

/// Makes the plan for `situation`, which `ledger` must have observed already.
#[must_use]
pub fn plan(situation: &Situation, policy: &Policy, ledger: &Ledger, goal: &Goal) -> Plan {
    let context = Context { situation, policy, ledger, goal: *goal };
    let mut draft = Draft::default();
    let (all, free) = context.views(&mut draft);
    let denied = free.iter().filter(|view| view.limits.is_denied);
    draft.advice.extend(denied.map(|view| Advice::NameUser { guest: view.name().to_owned() }));
    let wanted = Need::of(*goal, ledger.level, &situation.host, policy);
    let mut need = wanted;
    draft.under_way_bytes = ledger.ksm.under_way_bytes();
    need.met_by(signed(draft.under_way_bytes));

    let clones = context.templates(&free, &mut need, &mut draft);
    let domain = context.choose_domain(&all, &free);
    let is_clone = |name: &str| clones.iter().any(|clone| clone == name);
    let (waiting, mut mergeable): (Vec<_>, Vec<_>) =
        free.into_iter().partition(|view| is_clone(&view.guest.name) && !view.guest.is_mergeable);
    for view in &waiting {
        draft.skip(view.name(), Actuator::Merge, SkipReason::TemplateFirst);
    }
    context.zeros(&mut mergeable, domain.as_ref(), &mut need, &mut draft);
    let marked = context.merges(&mergeable, domain.as_ref(), &mut need, &mut draft);
    context.windows(domain.as_ref(), &marked, &mut need, &mut draft);
    context.pools(&mut need, &mut draft);

    let mut free: Vec<_> = mergeable.into_iter().chain(waiting).collect();
    free.sort_by(|a, b| a.name().cmp(b.name()));
    context.hot(&free, &mut need, &mut draft);
    // A host that is about to swap cannot wait for memory that the other steps return later: the
    // balloons have to return everything that is wanted.
    let balloons = match ledger.level {
        Level::Red => Need { bytes: wanted.bytes, ..need },
        _ => need,
    };
    context.balloons(&free, balloons, &mut draft);
    finish(&context, wanted, domain.map(|domain| domain.choice), draft)
}

/// Sorts the draft, and turns it into a plan.
fn finish(
    context: &Context<'_>,
    wanted: Need,
    domain: Option<DomainChoice>,
    mut draft: Draft,
) -> Plan {
    draft.steps.sort_by(|a, b| {
        let key = |step: &Step| (step.action.rank(), std::cmp::Reverse(step.expected_bytes));
        key(a).cmp(&key(b)).then_with(|| a.action.guest().cmp(&b.action.guest()))
    });
    let pids: BTreeMap<_, _> =
        context.situation.guests.iter().map(|guest| (guest.name.as_str(), guest.pid)).collect();
    for step in &mut draft.steps {
        step.pid = step.action.guest().and_then(|guest| pids.get(guest).copied());
    }
    draft.skipped.sort_by(|a, b| (&a.guest, a.actuator).cmp(&(&b.guest, b.actuator)));
    draft.advice.sort_by_key(ToString::to_string);
    let expected = draft.steps.iter().map(|step| step.expected_bytes);
    let expected_bytes = expected.fold(0, i64::saturating_add);
    let open_bytes = signed(draft.later_bytes.saturating_add(draft.under_way_bytes));
    let returned_bytes = expected_bytes.saturating_add(open_bytes);
    Plan {
        unix_seconds: context.situation.unix_seconds,
        uptime: context.situation.uptime,
        goal: context.goal,
        level: context.ledger.level,
        wanted_bytes: wanted.bytes,
        expected_bytes,
        later_bytes: draft.later_bytes,
        missed: Missed::of(wanted.bytes, returned_bytes, &draft.skipped),
        survey_bytes: context.unsurveyed_bytes(),
        domain,
        steps: draft.steps,
        skipped: draft.skipped,
        advice: draft.advice,
    }
}
