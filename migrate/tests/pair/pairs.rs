//! Two faults in one run, from the pause on: the second one hits what the first one has led to.
//! Messages that are lost before a crash have tests of their own.

use crate::courses::course;
use crate::faults::{Fault, Reached, RecordLoss, Scenario, Side, What, When};
use crate::{postcopy, run_well};

const SIDES: [Side; 2] = [Side::Source, Side::Destination];
/// Actions and messages after the end of a faultless run at which faults occur: the first one leads
/// to further ones.
const ACTIONS_AFTER_END: u32 = 6;
const MESSAGES_AFTER_END: u32 = 4;

/// From the pause to the end, and beyond, the numbers of the actions of a side.
fn actions((pause, end): (&Reached, &Reached), side: Side) -> impl Iterator<Item = u32> {
    pause.action(side)..end.action(side) + ACTIONS_AFTER_END
}

/// A record that cannot be written, and a crash of either side before or after that.
fn a_failed_record_and_a_crash(scenario: &Scenario) {
    let losses = [RecordLoss::Gone, RecordLoss::OnDisk];
    for scenario in scenario.clone().of_each_commit() {
        let (_, pause, end) = course(&scenario);
        let actions = |side| actions((&pause, &end), side);
        let failures = SIDES.into_iter().flat_map(|side| {
            let at = actions(side).map(move |n| When::Before(side, n));
            at.flat_map(move |when| losses.map(|loss| (when, What::FailRecord(side, loss))))
        });
        let points = SIDES.into_iter().flat_map(|side| actions(side).map(move |n| (side, n)));
        let crashes: Vec<_> = points
            .flat_map(|(side, n)| SIDES.map(|it| (When::After(side, n), What::Kill(it))))
            .collect();
        every_pair(&scenario, failures, &crashes);
    }
}

/// A user who cancels on either side, and a message that is lost before or after that.
fn a_cancel_and_a_cut(scenario: &Scenario) {
    let cuts = [
        What::LoseMessage,
        What::Cut { source_ms: 1, destination_ms: 1 },
        What::Cut { source_ms: 4000, destination_ms: 10 },
        What::Cut { source_ms: 10, destination_ms: 4000 },
        What::Outage { ms: 8000 },
    ];
    for scenario in scenario.clone().of_each_commit() {
        let (_, pause, end) = course(&scenario);
        let actions = |side| actions((&pause, &end), side);
        let cancels = SIDES.into_iter().flat_map(|side| {
            actions(side).map(move |n| (When::After(side, n), What::Cancel(side)))
        });
        let messages = pause.message..end.message + MESSAGES_AFTER_END;
        let cuts: Vec<_> = messages.flat_map(|n| cuts.map(|cut| (When::Message(n), cut))).collect();
        every_pair(&scenario, cancels, &cuts);
    }
}

fn every_pair(
    scenario: &Scenario,
    ones: impl Iterator<Item = (When, What)>,
    others: &[(When, What)],
) {
    for one in ones {
        for other in others {
            let faults = [one, *other].map(|(when, what)| Fault { when, what }).into();
            run_well(Scenario { faults, ..scenario.clone() });
        }
    }
}

#[test]
fn a_failed_record_and_a_crash_during_a_hand_over() {
    a_failed_record_and_a_crash(&Scenario::default());
}

#[test]
fn a_failed_record_and_a_crash_while_memory_follows() {
    a_failed_record_and_a_crash(&postcopy::hot());
}

#[test]
fn a_cancel_and_a_cut_during_a_hand_over() {
    a_cancel_and_a_cut(&Scenario::default());
}

#[test]
fn a_cancel_and_a_cut_before_memory_follows() {
    a_cancel_and_a_cut(&postcopy::hot());
}
