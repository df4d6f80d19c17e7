//! A source and a destination connected to each other in virtual time: latency, cuts, lost
//! messages, crashes, full disks, cancels and operators, at every boundary and in thousands of
//! combinations. The guest is simulated, with real content that is compared at the end.

#![allow(clippy::unwrap_used)] // all of it is test

mod arrivals;
mod check;
mod courses;
mod faults;
mod guest;
mod network;
mod pairs;
mod postcopy;
mod reconnect;
mod rounds;
mod shells;
mod standstill;
mod world;

use std::time::Duration;

use migrate::OnStall;
use migrate::decisions::DecisionKind;
use migrate::report::Outcome;
use proptest::prelude::*;

use courses::course;
use faults::{
    Fault, HOUR_MS, Reached, RecordLoss, Scenario, Side, What, When, boundaries_between, kinds,
};
use world::{DOWNTIME_LIMIT, World};

/// Runs a scenario to its end and checks all invariants.
fn run(scenario: Scenario) -> World {
    let mut world = World::new(scenario);
    world.run();
    world.check_end();
    world
}

/// Runs a scenario and panics with its whole trace if an invariant is violated.
fn run_well(scenario: Scenario) -> World {
    let world = run(scenario);
    let (scenario, violations) = (&world.scenario, &world.facts.violations);
    assert!(violations.is_empty(), "{violations:#?}\n{}", trace_of(scenario));
    world
}

/// Returns the scenario and all that happens in it.
fn trace_of(scenario: &Scenario) -> String {
    let mut world = World::new(scenario.clone());
    world.trace = Some(Vec::new());
    world.run();
    world.check_end();
    format!("{scenario:?}\n{}", world.trace.unwrap_or_default().join("\n"))
}

fn with_fault(when: When, what: What) -> Scenario {
    Scenario { faults: vec![Fault { when, what }], ..Scenario::default() }
}

fn outcome(world: &World) -> Outcome {
    world.facts.source_reports.last().unwrap().outcome
}

#[test]
fn migrates_a_guest_that_writes() {
    let world = run_well(Scenario::default());

    let report = &world.facts.source_reports[0];
    assert_eq!(report.outcome, Outcome::Migrated);
    assert!(report.rounds_total >= 2, "{report:?}");
    assert!(report.downtime_seconds.unwrap() < 0.1, "{report:?}");
    assert_eq!(report.error, None);
    assert_eq!(report.phases.len(), 7, "{report:?}");
    assert_eq!(world.facts.destination_reports[0].outcome, Outcome::Migrated);
}

#[test]
fn keeps_a_guest_paused_that_its_user_had_paused() {
    let world = run_well(Scenario { paused_by_user: true, ..Scenario::default() });
    assert_eq!(outcome(&world), Outcome::Migrated);
}

#[test]
fn a_paused_guest_is_taken_over_without_a_report_from_its_process() {
    let after = |count, what| Fault { when: When::After(Side::Destination, count), what };
    let lost = vec![after(9, What::Garble(Side::Source)), after(11, What::Kill(Side::Destination))];
    let paused = Scenario { paused_by_user: true, saves_late: true, ..Scenario::default() };
    let world = run_well(Scenario { faults: lost, ..paused });
    assert_eq!(outcome(&world), Outcome::Migrated);
}

/// For a day the destination does not learn that the source has received its message, and the
/// record that the guest runs could not be written at first.
#[test]
fn a_guest_that_could_not_be_recorded_as_running_is_no_doubt_an_hour_later() {
    let outage = What::Outage { ms: 24 * HOUR_MS };
    let full = What::FailRecord(Side::Destination, RecordLoss::Gone);
    let outage = Fault { when: When::After(Side::Destination, 9), what: outage };
    let full = Fault { when: When::Message(8), what: full };
    let world = run_well(Scenario { faults: vec![outage, full], ..Scenario::default() });
    assert_eq!(outcome(&world), Outcome::Migrated);
}

#[test]
fn a_guest_that_never_converges_stays_when_the_time_is_over() {
    let world = run_well(Scenario {
        writes_per_second: 1_000_000,
        working_set: 384,
        pages_per_second: 2_000,
        on_stall: OnStall::Wait,
        ..Scenario::default()
    });
    let report = &world.facts.source_reports[0];
    assert_eq!(report.outcome, Outcome::StayedAtSource);
    assert_eq!(report.error.as_ref().unwrap().reason, migrate::Reason::Timeout);
    assert!(report.rounds.len() <= migrate::report::MAX_ROUNDS_LISTED);
    assert!(report.rounds_total > 64);
    let message = &report.error.as_ref().unwrap().message;
    assert!(message.contains("pages/s, too fast to be paused for less than"), "{message}");
}

/// A guest that writes faster than the link carries.
fn hot(on_stall: OnStall) -> Scenario {
    Scenario {
        writes_per_second: 20_000,
        working_set: 384,
        pages_per_second: 1_000,
        on_stall,
        ..Scenario::default()
    }
}

#[test]
fn a_hot_guest_arrives_throttled_and_within_its_downtime() {
    let world = run_well(hot(OnStall::Throttle));
    let report = &world.facts.source_reports[0];
    assert_eq!(report.outcome, Outcome::Migrated, "{report:?}");
    assert!(report.downtime_seconds.unwrap() <= DOWNTIME_LIMIT.as_secs_f64() + 0.005);
    let stall = report.stall.unwrap();
    assert!((20..=99).contains(&stall.throttle_percent_max) && !stall.forced, "{stall:?}");
}

#[test]
fn a_hot_guest_arrives_once_its_downtime_limit_is_raised_far_enough() {
    let downtime_max = Some(Duration::from_secs(2));
    let world = run_well(Scenario { downtime_max, ..hot(OnStall::Cancel) });
    let report = &world.facts.source_reports[0];
    assert_eq!(report.outcome, Outcome::Migrated, "{report:?}");
    let kinds: Vec<_> = report.decisions.iter().map(|decided| decided.what.kind()).collect();
    let raised = DecisionKind::LimitRaised;
    assert_eq!(kinds, [DecisionKind::Stalled, raised, raised, raised], "100, 200, 400, 800 ms");
    let expected = report.expected_downtime_seconds.unwrap();
    assert!((0.4..=0.8).contains(&expected), "{report:?}");
    assert!(report.downtime_seconds.unwrap() <= 0.805, "{report:?}");
}

#[test]
fn a_hot_guest_arrives_by_force() {
    let world = run_well(hot(OnStall::Force));
    let report = &world.facts.source_reports[0];
    assert_eq!(report.outcome, Outcome::Migrated, "{report:?}");
    assert!(report.expected_downtime_seconds.unwrap() > DOWNTIME_LIMIT.as_secs_f64());
    let stall = report.stall.unwrap();
    assert!(stall.forced && stall.throttle_percent_max == 0, "{stall:?}");
}

#[test]
fn a_hot_guest_stays_at_once_if_its_migration_is_to_be_cancelled() {
    let world = run_well(hot(OnStall::Cancel));
    let report = &world.facts.source_reports[0];
    let error = report.error.as_ref().unwrap();
    assert_eq!(error.reason, migrate::Reason::Stalled);
    assert!(error.message.contains("too fast to be paused for less than"), "{}", error.message);
    assert!(report.total_seconds < 20.0 && report.downtime_seconds.is_none(), "{report:?}");
}

/// Guests with any write rate, over links of any speed. The downtime may exceed the limit only by a
/// simulated step of a millisecond or two, which no dry run measures, and by what the guest writes
/// between the estimate and the pause.
#[test]
fn a_guest_is_moved_within_the_downtime_limit_or_not_at_all() {
    const BEYOND_SECONDS: f64 = 0.005;
    let (writes, sets) = ([0, 300, 2_000, 8_000, 20_000, 60_000], [1, 30, 100, 250, 384]);
    let (speeds, latencies) = ([1_000, 2_000, 5_000, 20_000, 100_000], [1, 10, 19]);
    let guests = writes.iter().flat_map(|writes| sets.map(|set| (*writes, set)));
    let links: Vec<_> = speeds.iter().flat_map(|speed| latencies.map(|ms| (*speed, ms))).collect();
    let (mut moved, mut stayed) = (0, 0);
    for ((writes_per_second, working_set), (pages_per_second, ms)) in
        guests.flat_map(|guest| links.iter().map(move |link| (guest, *link)))
    {
        let scenario = Scenario {
            latency: Duration::from_millis(ms),
            writes_per_second,
            working_set,
            pages_per_second,
            // The simulated second stream is slower than the round trip that the source measures.
            streams: 1,
            on_stall: OnStall::Wait,
            ..Scenario::default()
        };
        let text = format!("{scenario:?}");
        let world = run_well(scenario);
        let report = &world.facts.source_reports[0];
        if let Some(error) = &report.error {
            assert_eq!(error.reason, migrate::Reason::Timeout, "{text}");
            assert_eq!(report.downtime_seconds, None, "it was not paused: {text}");
            stayed += 1;
        } else {
            let limit = DOWNTIME_LIMIT.as_secs_f64();
            assert!(report.expected_downtime_seconds.unwrap() <= limit, "{report:?}\n{text}");
            let downtime = report.downtime_seconds.unwrap();
            assert!(downtime <= limit + BEYOND_SECONDS, "{report:?}\n{text}");
            moved += 1;
        }
    }
    assert!(moved > 300 && stayed > 30, "{moved} moved and {stayed} stayed");
}

#[test]
fn a_destination_that_lost_its_record_of_a_commit_can_be_resolved() {
    let mut found = false;
    for n in 0..40 {
        let world = run_well(with_fault(When::After(Side::Source, n), What::LoseDestinationHost));
        let last = world.facts.source_reports.last();
        found |= last.is_some_and(|report| {
            report.outcome == Outcome::InDoubt
                && report.way_out.as_ref().is_some_and(|way| way.contains("--resolve run web-1"))
        });
    }
    assert!(found);
}

/// Every kind of fault at every message, and before and after every action of either side.
#[test]
fn any_single_fault_at_any_boundary() {
    for scenario in Scenario::default().of_each_commit() {
        let (_, _, end) = course(&scenario);
        for when in boundaries_between(&Reached::default(), &end, 40) {
            for what in kinds() {
                run_well(Scenario { faults: vec![Fault { when, what }], ..scenario.clone() });
            }
        }
    }
}

/// A message that is lost during the hand-over, and then a crash of either side at any boundary.
#[test]
fn a_lost_message_and_then_a_crash() {
    let losses = [
        What::LoseMessage,
        What::Cut { source_ms: 1, destination_ms: 1 },
        What::Cut { source_ms: 4000, destination_ms: 10 },
        What::Outage { ms: 8000 },
    ];
    for (word, loss) in (4..10).flat_map(|word| losses.map(|loss| (word, loss))) {
        for (side, n) in (8..26).flat_map(|n| [(Side::Source, n), (Side::Destination, n)]) {
            for killed in [Side::Source, Side::Destination] {
                let loss = Fault { when: When::Message(word), what: loss };
                let crash = Fault { when: When::After(side, n), what: What::Kill(killed) };
                let faults = vec![loss, crash];
                Scenario { faults, ..Scenario::default() }
                    .of_each_commit()
                    .into_iter()
                    .for_each(|it| drop(run_well(it)));
            }
        }
    }
}

/// A migration that is cancelled at any boundary before the commit leaves the guest at the source,
/// in time.
#[test]
fn cancel_before_the_commit_always_succeeds() {
    let mut in_time = 0;
    for n in 0..40 {
        let world = run_well(with_fault(When::After(Side::Source, n), What::Cancel(Side::Source)));
        if world.facts.cancelled_in_time {
            in_time += 1;
            assert_eq!(outcome(&world), Outcome::StayedAtSource);
            let error = world.facts.source_reports[0].error.clone().unwrap();
            assert_eq!(error.reason, migrate::Reason::Cancelled);
        } else {
            assert_eq!(outcome(&world), Outcome::Migrated);
        }
    }
    assert!((10..40).contains(&in_time), "{in_time}");
}

/// If the destination fails before it is ready, the source's user reads the reason, not just that a
/// connection was lost.
#[test]
fn the_source_learns_why_the_destination_failed() {
    use migrate::Reason;
    let kinds = [
        (What::LoseFrame, vec![Reason::Data]),
        (What::FailGuest(Side::Destination), vec![Reason::Guest, Reason::Refused]),
        (What::Garble(Side::Destination), vec![Reason::Protocol]),
        (What::FailRecord(Side::Destination, RecordLoss::Gone), vec![Reason::Record]),
        (What::Cancel(Side::Destination), vec![Reason::Cancelled]),
    ];
    for (what, reasons) in kinds {
        let mut heard = 0;
        for when in (0..90).map(When::At) {
            let scenario = Scenario {
                latency: Duration::from_millis(9),
                saves_late: true,
                ..with_fault(when, what)
            };
            let world = run_well(scenario);
            if let Some(error) = &world.facts.source_reports[0].error {
                // An invalid message costs a destination that is ready its connection, and nothing
                // else.
                let nonsense = what == What::Garble(Side::Destination);
                if !nonsense || error.phase < migrate::Phase::Ready {
                    assert!(reasons.contains(&error.reason), "{when:?} {what:?} {error:?}");
                    heard += 1;
                }
            }
        }
        assert!(heard > 0, "{what:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 6000,
        max_shrink_time: 20_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Up to three faults of any kind at any time, on guests and links of any speed.
    #[test]
    fn exactly_one_copy_runs_whatever_happens(scenario in faults::scenario()) {
        run_well(scenario);
    }
}
