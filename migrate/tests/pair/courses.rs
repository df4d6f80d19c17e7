//! Guests that are throttled, forced, or kept because their hand-over takes too long: faults of
//! every kind at every boundary from where their course leaves that of a guest that converges.

use std::time::Duration;

use migrate::OnStall;
use migrate::report::Outcome;

use crate::faults::{Fault, Reached, Scenario, Side, What, When, boundaries_between, kinds};
use crate::world::World;
use crate::{hot, outcome, run_well};

/// Points in time of each course at which faults occur.
const TIMES: u32 = 12;
/// Actions before and after the end of a faultless run in which a process is killed: what is lost
/// first leads to further ones.
const ACTIONS_BEFORE_END: u32 = 12;
const ACTIONS_AFTER_END: u32 = 6;

/// A guest whose first hand-over takes too long and is called off: its last pages are under way as
/// long as its disks are flushed. The next hand-over takes as long as expected.
pub(crate) fn called_off() -> Scenario {
    Scenario {
        slower_after_pause: 1_000,
        flush: Duration::from_secs(3),
        slow_hand_overs: 1,
        ..Scenario::default()
    }
}

/// Runs the course without a fault; returns where it leaves that of any other guest, or pauses it,
/// and its end.
pub(crate) fn course(scenario: &Scenario) -> (World, Reached, Reached) {
    let world = run_well(scenario.clone());
    assert_eq!(outcome(&world), Outcome::Migrated, "{scenario:?}");
    let turn = world.turn.expect("a guest that is throttled or paused");
    let total = Duration::from_secs_f64(world.facts.source_reports[0].total_seconds);
    let end = Reached { at: total, ..world.reached() };
    (world, turn, end)
}

/// Every kind of fault at every boundary of the course.
fn any_single_fault(scenario: &Scenario) {
    for scenario in scenario.clone().of_each_commit() {
        let (_, turn, end) = course(&scenario);
        for when in boundaries_between(&turn, &end, TIMES) {
            for what in kinds() {
                run_well(Scenario { faults: vec![Fault { when, what }], ..scenario.clone() });
            }
        }
    }
}

/// A message of the course that is lost, and then a crash of either side.
fn a_lost_message_and_then_a_crash(scenario: &Scenario) {
    let losses = [
        What::LoseMessage,
        What::Cut { source_ms: 1, destination_ms: 1 },
        What::Cut { source_ms: 4000, destination_ms: 10 },
        What::Outage { ms: 8000 },
    ];
    for scenario in scenario.clone().of_each_commit() {
        let (_, turn, end) = course(&scenario);
        let actions = |side| {
            let end = end.action(side);
            let numbers = end.saturating_sub(ACTIONS_BEFORE_END)..end + ACTIONS_AFTER_END;
            numbers.map(move |n| When::After(side, n))
        };
        let crashes: Vec<_> = actions(Side::Source).chain(actions(Side::Destination)).collect();
        for (message, loss) in (turn.message..end.message).flat_map(|n| losses.map(|it| (n, it))) {
            for (when, killed) in
                crashes.iter().flat_map(|n| [(*n, Side::Source), (*n, Side::Destination)])
            {
                let loss = Fault { when: When::Message(message), what: loss };
                let crash = Fault { when, what: What::Kill(killed) };
                run_well(Scenario { faults: vec![loss, crash], ..scenario.clone() });
            }
        }
    }
}

#[test]
fn a_guest_is_handed_over_after_a_hand_over_that_was_called_off() {
    let (world, ..) = course(&called_off());
    let report = &world.facts.source_reports[0];
    assert!(report.returns == 1 && world.hand_overs == 2, "{report:?}");
    assert!(report.downtime_seconds.unwrap() < 0.1, "{report:?}");
}

#[test]
fn any_single_fault_while_a_guest_is_throttled() {
    any_single_fault(&hot(OnStall::Throttle));
}

#[test]
fn any_single_fault_while_a_guest_is_forced() {
    any_single_fault(&hot(OnStall::Force));
}

#[test]
fn any_single_fault_while_a_hand_over_is_called_off() {
    any_single_fault(&called_off());
}

#[test]
fn a_lost_message_and_then_a_crash_while_a_guest_is_throttled() {
    a_lost_message_and_then_a_crash(&hot(OnStall::Throttle));
}

#[test]
fn a_lost_message_and_then_a_crash_while_a_guest_is_forced() {
    a_lost_message_and_then_a_crash(&hot(OnStall::Force));
}

#[test]
fn a_lost_message_and_then_a_crash_while_a_hand_over_is_called_off() {
    a_lost_message_and_then_a_crash(&called_off());
}
