//! Guests that run at their destination before all of their memory is there: faults of every kind
//! at every boundary.

use std::time::Duration;

use migrate::record::{DestinationState, SourceState};
use migrate::report::Outcome;
use migrate::{OnStall, Phase, Reason};

use crate::courses::course;
use crate::faults::{
    Fault, HOUR_MS, Reached, Scenario, Side, What, When, boundaries_between, kinds,
};
use crate::world::World;
use crate::{outcome, run, run_well, trace_of};

/// A guest that writes faster than the link carries, and is handed over before its memory.
pub(crate) fn hot() -> Scenario {
    Scenario {
        writes_per_second: 20_000,
        working_set: 384,
        pages_per_second: 1_000,
        on_stall: OnStall::Wait,
        postcopy_at_ms: Some(600),
        ..Scenario::default()
    }
}

fn hot_with(faults: &[(When, What)]) -> Scenario {
    let faults = faults.iter().map(|(when, what)| Fault { when: *when, what: *what }).collect();
    Scenario { faults, ..hot() }
}

fn with(faults: &[(When, What)]) -> World {
    run_well(hot_with(faults))
}

#[test]
fn a_hot_guest_arrives_before_its_memory() {
    let world = with(&[]);
    let report = &world.facts.source_reports[0];
    assert_eq!(report.outcome, Outcome::Migrated, "{report:?}");
    assert!(report.downtime_seconds.unwrap() < 0.05, "{report:?}");
    let last = report.phases.last().unwrap();
    assert!(last.phase == Phase::Postcopy && last.seconds > 0.1, "{report:?}");
    assert_eq!(world.facts.destination_reports[0].outcome, Outcome::Migrated);
}

/// A page that was missing from the first collection on, written once more before the pause, and
/// placed before it is dropped for that, would never come again.
#[test]
fn pages_that_are_placed_before_the_last_are_dropped_are_found() {
    let world = run(Scenario { places_early: true, ..hot() });
    assert!(!world.facts.violations.is_empty(), "{}", trace_of(&world.scenario));
}

#[test]
fn a_guest_that_stalls_is_handed_over_before_its_memory() {
    let stalls = Scenario { on_stall: OnStall::Postcopy, postcopy_at_ms: None, ..hot() };
    let world = run_well(stalls);
    let report = &world.facts.source_reports[0];
    assert_eq!(report.outcome, Outcome::Migrated, "{report:?}");
    assert!(report.stall.unwrap().postcopy, "{report:?}");
    assert!(report.downtime_seconds.unwrap() < 0.05, "{report:?}");
}

#[test]
fn it_may_be_asked_for_at_any_time() {
    for at in (0..40).chain([100, 599, 5_000]) {
        let scenario = Scenario { postcopy_at_ms: Some(at), ..hot() };
        let world = run_well(scenario);
        assert_eq!(outcome(&world), Outcome::Migrated, "{at}");
    }
}

#[test]
fn a_guest_that_its_user_had_paused_stays_paused() {
    let paused = Scenario { paused_by_user: true, saves_late: true, ..hot() };
    let world = run_well(Scenario { postcopy_at_ms: Some(5), ..paused });
    assert_eq!(outcome(&world), Outcome::Migrated);
}

/// The link is cut again and again, for a day in the end: both sides keep all they have.
#[test]
fn memory_goes_on_arriving_however_often_the_link_is_lost() {
    let cuts = (0..12).map(|cut| (650 + cut * 37, What::Cut { source_ms: 3, destination_ms: 5 }));
    let day = (1_000, What::Outage { ms: 24 * HOUR_MS });
    let faults: Vec<_> = cuts.chain([day]).map(|(at, what)| (When::At(at), what)).collect();
    let world = with(&faults);
    let report = &world.facts.source_reports[0];
    assert_eq!(report.outcome, Outcome::Migrated, "{report:?}");
    assert!(report.total_seconds > f64::from(24 * HOUR_MS) / 1e3, "{report:?}");
}

/// The message of which the loss is noticed by the time that it takes is the one in which the
/// destination says what it lacks.
#[test]
fn a_list_of_missing_pages_that_is_lost_is_asked_for_again() {
    let cut = (When::At(700), What::Cut { source_ms: 1, destination_ms: 1 });
    let waited = (0..30).filter(|message| {
        let world = with(&[cut, (When::Message(*message), What::LoseMessage)]);
        let report = world.facts.source_reports.last().unwrap();
        report.outcome == Outcome::Migrated && report.total_seconds > 60.0
    });
    assert!(waited.count() > 0);
}

#[test]
fn a_side_that_dies_while_memory_is_fetched_loses_the_guest_and_both_sides_know() {
    for at in [700, 750, 800] {
        let world = with(&[(When::At(at), What::Kill(Side::Destination))]);
        let report = world.facts.source_reports.last().unwrap();
        assert_eq!(report.outcome, Outcome::Lost, "{report:?}");

        let world = with(&[(When::At(at), What::Kill(Side::Source))]);
        let report = world.facts.destination_reports.last().unwrap();
        assert_eq!(report.outcome, Outcome::Lost, "{report:?}");
        assert_eq!(report.error.as_ref().unwrap().reason, Reason::Data);
    }
}

#[test]
fn a_destination_that_was_only_out_of_reach_hears_that_its_memory_was_given_up() {
    let outage = (When::At(700), What::Outage { ms: 60_000 });
    let world = with(&[outage, (When::At(20_000), What::OperatorDiscards(Side::Source))]);
    for reports in [&world.facts.source_reports, &world.facts.destination_reports] {
        assert_eq!(reports.last().unwrap().outcome, Outcome::Lost, "{reports:?}");
    }
    assert_eq!(world.source_disk, Some(SourceState::Done));
    assert_eq!(world.destination_disk, Some(DestinationState::Lost));
}

#[test]
fn memory_is_kept_until_the_operator_knows_that_its_destination_is_gone_for_good() {
    let world = with(&[(When::At(700), What::LoseDestinationHost)]);
    let report = world.facts.source_reports.last().unwrap();
    assert_eq!(report.error.as_ref().unwrap().reason, Reason::Operator, "{report:?}");
}

#[test]
fn a_cancel_is_heard_until_the_guest_is_handed_over() {
    let (mut stayed, mut moved) = (0, 0);
    for at in 590..700 {
        let world = with(&[(When::At(at), What::Cancel(Side::Source))]);
        let expected = match world.facts.cancelled_in_time {
            true => (&mut stayed, Outcome::StayedAtSource),
            false => (&mut moved, Outcome::Migrated),
        };
        *expected.0 += 1;
        assert_eq!(outcome(&world), expected.1, "{at}");
    }
    assert!(stayed > 10 && moved > 10, "{stayed} stayed, {moved} moved");
}

#[test]
fn any_single_fault_at_any_boundary_of_post_copy() {
    let by_operators = [
        What::OperatorRunsAfterDeathOfSource,
        What::OperatorDiscards(Side::Source),
        What::OperatorDiscards(Side::Destination),
    ];
    let from = Reached { at: Duration::from_millis(595), ..Reached::default() };
    for scenario in hot().of_each_commit() {
        let (_, _, end) = course(&scenario);
        for when in boundaries_between(&from, &end, 40) {
            for what in kinds().into_iter().chain(by_operators) {
                run_well(Scenario { faults: vec![Fault { when, what }], ..scenario.clone() });
            }
        }
    }
}

/// A cut, and then a crash of either side at any boundary.
#[test]
fn a_cut_and_then_a_crash() {
    let cuts = [
        What::LoseMessage,
        What::Cut { source_ms: 1, destination_ms: 1 },
        What::Cut { source_ms: 4000, destination_ms: 10 },
        What::Outage { ms: 8000 },
    ];
    for (message, cut) in (6..16).flat_map(|message| cuts.map(|cut| (message, cut))) {
        for (side, n) in (10..34).flat_map(|n| [(Side::Source, n), (Side::Destination, n)]) {
            for killed in [Side::Source, Side::Destination] {
                let crash = (When::After(side, n), What::Kill(killed));
                hot_with(&[(When::Message(message), cut), crash])
                    .of_each_commit()
                    .into_iter()
                    .for_each(|it| drop(run_well(it)));
            }
        }
    }
}

#[test]
fn a_link_of_any_kind_carries_it() {
    for (ms, pages_per_second) in [(1, 100_000), (19, 2_000), (60, 500)] {
        let link = Scenario { latency: Duration::from_millis(ms), pages_per_second, ..hot() };
        assert_eq!(outcome(&run_well(link)), Outcome::Migrated);
    }
}
