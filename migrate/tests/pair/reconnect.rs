//! Connections that are lost while rounds are sent.

use std::time::Duration;

use migrate::Reason;
use migrate::decisions::DecisionKind;
use migrate::destination::KEPT_WITHOUT_SOURCE;
use migrate::report::Outcome;

use crate::courses::{called_off, course};
use crate::faults::{Fault, Reached, Scenario, Side, What, When, boundaries_between, kinds};
use crate::world::{World, limits};
use crate::{outcome, run, run_well};

/// When rounds are under way in [`slow`].
const DURING_ROUNDS: u32 = 110;

const CUT: What = What::Cut { source_ms: 0, destination_ms: 0 };

/// A guest whose first round takes some 100 ms, over a link of several milliseconds: much is under
/// way at any time.
fn slow() -> Scenario {
    Scenario { latency: Duration::from_millis(7), pages_per_second: 4_000, ..Scenario::default() }
}

fn with(faults: &[(When, What)]) -> World {
    let faults = faults.iter().map(|&(when, what)| Fault { when, what }).collect();
    run_well(Scenario { faults, ..slow() })
}

fn count(world: &World, kind: DecisionKind) -> u64 {
    let kinds = world.facts.source_reports[0].decisions.iter().map(|one| one.what.kind());
    kinds.filter(|it| *it == kind).count() as u64
}

#[test]
fn rounds_go_on_after_a_cut_with_what_was_lost_on_the_way() {
    for streams in 1..4 {
        for at in (70..150).step_by(3) {
            let faults = vec![Fault { when: When::At(at), what: CUT }];
            let world = run_well(Scenario { streams, faults, ..slow() });
            let report = &world.facts.source_reports[0];
            assert_eq!(report.outcome, Outcome::Migrated, "{streams} {at} {report:?}");
            assert_eq!(count(&world, DecisionKind::Reconnected), 1, "{streams} {at}");
        }
    }
}

/// The checks can fail: what was handed to a lost connection may not have arrived.
#[test]
fn pages_that_are_lost_on_the_way_and_not_sent_again_are_found() {
    let is_found = |at| {
        let faults = vec![Fault { when: When::At(at), what: CUT }];
        let world = run(Scenario { trusts_streams: true, faults, ..slow() });
        world.facts.violations.iter().any(|it| it.contains("is not the source's"))
    };
    assert!((70..150).any(is_found));
}

/// The same of what is applied too late.
#[test]
fn pages_that_overwrite_newer_ones_after_a_count_that_came_too_early_are_found() {
    let is_found = |at| {
        let faults = vec![Fault { when: When::At(at), what: CUT }];
        let apply = Duration::from_millis(300);
        let world = run(Scenario { counts_early: true, apply, faults, ..slow() });
        world.facts.violations.iter().any(|it| it.contains("is not the source's"))
    };
    assert!((70..150).any(is_found));
}

/// Only what was under way is sent again.
#[test]
fn little_is_sent_twice() {
    let pages =
        |world: &World| world.facts.source_reports[0].rounds.iter().map(|it| it.pages).sum();
    let quiet = |faults| run_well(Scenario { writes_per_second: 0, faults, ..slow() });
    let whole: u64 = pages(&quiet(Vec::new()));
    // The interrupted round is not listed: what is, is what was left of it, and what was lost.
    let cut = Fault { when: When::At(DURING_ROUNDS), what: CUT };
    let rest: u64 = pages(&quiet(vec![cut]));
    assert!((64..whole * 2 / 3).contains(&rest), "{rest} of {whole} pages");
}

#[test]
fn rounds_go_on_after_each_of_eight_losses() {
    // A round of two seconds.
    let (writes_per_second, pages_per_second) = (1_000, 200);
    let cuts = (0..8).map(|n| Fault { when: When::At(DURING_ROUNDS + 350 * n), what: CUT });
    let faults = cuts.collect();
    let world = run_well(Scenario { writes_per_second, pages_per_second, faults, ..slow() });
    assert_eq!(outcome(&world), Outcome::Migrated);
    assert_eq!(count(&world, DecisionKind::Reconnected), 8);
}

#[test]
fn an_outage_is_outlasted_and_time_limits_hold_on_both_sides() {
    let cut = (When::At(DURING_ROUNDS), CUT);
    let outage = |ms| (When::At(DURING_ROUNDS), What::Outage { ms });
    let world = with(&[cut, outage(100_000)]);
    assert_eq!(outcome(&world), Outcome::Migrated);

    let world = with(&[cut, outage(1_000_000)]);
    let report = &world.facts.source_reports[0];
    assert_eq!(report.outcome, Outcome::StayedAtSource);
    assert_eq!(report.error.as_ref().unwrap().reason, Reason::Timeout);
    let limit = limits().total.unwrap().as_secs_f64();
    assert!((limit..limit + 0.1).contains(&report.total_seconds), "{report:?}");
    let there = &world.facts.destination_reports[0];
    let limit = KEPT_WITHOUT_SOURCE.as_secs_f64();
    assert!((limit..limit + 1.0).contains(&there.total_seconds), "{there:?}");
    assert_eq!(there.outcome, Outcome::StayedAtSource);
}

#[test]
fn a_cancel_is_obeyed_while_the_destination_is_out_of_reach() {
    let faults = [
        (When::At(DURING_ROUNDS), CUT),
        (When::At(DURING_ROUNDS), What::Outage { ms: 60_000 }),
        (When::At(20_000), What::Cancel(Side::Source)),
    ];
    let world = with(&faults);
    let report = &world.facts.source_reports[0];
    assert_eq!(report.error.as_ref().unwrap().reason, Reason::Cancelled);
    assert!(report.total_seconds < 21.0, "{report:?}");
    let there = &world.facts.destination_reports[0];
    assert!((60.0..80.0).contains(&there.total_seconds), "it hears it once the link is back");
}

#[test]
fn a_destination_whose_process_has_died_is_no_longer_looked_for() {
    let world = with(&[(When::At(DURING_ROUNDS), What::Kill(Side::Destination))]);
    let report = &world.facts.source_reports[0];
    assert_eq!(report.outcome, Outcome::StayedAtSource);
    assert!(report.total_seconds < 30.0, "{report:?}");
}

/// All has arrived but the commit, and is applied once the connection is lost. The source dies
/// before it is reached again.
#[test]
fn a_copy_that_becomes_complete_after_the_loss_outlasts_its_source() {
    let late = Scenario { apply: Duration::from_millis(400), ..slow() };
    let (_, _, end) = course(&late);
    let end_ms = end.at.as_millis() as u32;
    let mut outlasts = 0;
    for message in 4..end.message {
        for at in (DURING_ROUNDS..end_ms).step_by(5) {
            let fault = |when, what| Fault { when, what };
            let faults = vec![
                fault(When::Message(message), What::LoseMessage),
                fault(When::At(at), CUT),
                fault(When::At(at), What::Outage { ms: 600_000 }),
                fault(When::At(at + 1000), What::Kill(Side::Source)),
            ];
            let world = run_well(Scenario { faults, ..late.clone() });
            let runs_after_outage = world.facts.destination_ran && world.now.as_secs() >= 600;
            outlasts += u32::from(world.facts.source_killed && runs_after_outage);
        }
    }
    assert!(outlasts > 0);
}

/// Any other fault at any boundary between `from` and the end of a scenario that has a loss.
fn then_any_fault(scenario: &Scenario, from: &Reached) {
    let world = run_well(scenario.clone());
    let total = Duration::from_secs_f64(world.facts.source_reports[0].total_seconds);
    let end = Reached { at: total, ..world.reached() };
    for when in boundaries_between(from, &end, 30) {
        for what in kinds() {
            let mut faults = scenario.faults.clone();
            faults.push(Fault { when, what });
            run_well(Scenario { faults, ..scenario.clone() });
        }
    }
}

#[test]
fn a_loss_while_rounds_are_sent_and_then_any_fault() {
    let losses = [
        CUT,
        What::Cut { source_ms: 1, destination_ms: 400 },
        What::Cut { source_ms: 4000, destination_ms: 10 },
        What::Outage { ms: 30_000 },
    ];
    let from = Reached { at: Duration::from_millis(DURING_ROUNDS.into()), ..Reached::default() };
    for loss in losses {
        let late = Scenario { apply: Duration::from_millis(250), ..slow() };
        for scenario in slow().of_each_commit().into_iter().chain([late]) {
            let loss = Fault { when: When::At(DURING_ROUNDS), what: loss };
            then_any_fault(&Scenario { faults: vec![loss], ..scenario }, &from);
        }
    }
}

/// The destination is reached again before the dry run that follows is over.
#[test]
fn a_loss_while_a_hand_over_is_called_off_and_then_any_fault() {
    let slow = Scenario { probe: Duration::from_millis(300), ..called_off() };
    for scenario in slow.of_each_commit() {
        let (_, turn, _) = course(&scenario);
        let lost_after = |n| {
            let loss = Fault { when: When::After(Side::Source, n), what: CUT };
            Scenario { faults: vec![loss], ..scenario.clone() }
        };
        let first = turn.source_action;
        let is_after_return = |scenario: &Scenario| {
            let world = run_well(scenario.clone());
            let decided = &world.facts.source_reports[0].decisions;
            let kinds: Vec<_> = decided.iter().map(|it| it.what.kind()).collect();
            outcome(&world) == Outcome::Migrated
                && kinds.starts_with(&[DecisionKind::CalledOff, DecisionKind::Disconnected])
        };
        let lost = (first..first + 20).map(lost_after).find(is_after_return);
        then_any_fault(&lost.expect("a loss after the return"), &turn);
    }
}
