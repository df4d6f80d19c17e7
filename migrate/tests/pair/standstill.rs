//! Links and disks that become slower after the pause than they were when the downtime was
//! estimated.

use std::time::Duration;

use migrate::report::{Outcome, Report};
use migrate::{OnStall, Phase, Reason};
use proptest::prelude::*;

use crate::faults::Scenario;
use crate::run_well;
use crate::world::limits;

/// Simulated duration of a resume, in seconds.
const RESUME_SECONDS: f64 = 0.001;
/// Simulated duration of a record, in seconds.
const RECORD_SECONDS: f64 = 0.002;

/// Duration from the request to pause until the decision, in seconds; every other part of the
/// downtime comes after it.
fn undecided_seconds(report: &Report) -> f64 {
    let phases = report.phases.iter();
    let undecided = phases.filter(|it| [Phase::Switchover, Phase::Ready].contains(&it.phase));
    undecided.map(|it| it.seconds).sum()
}

/// Runs a migration whose only faults are changes of speed, and asserts that the guest was paused
/// for no longer than allowed. Returns why it stayed at the source, if it did.
fn run_in_time(scenario: Scenario) -> Option<Reason> {
    let (round_trip, load) = (2 * scenario.latency, scenario.load);
    let world = run_well(scenario);
    let report = &world.facts.source_reports[0];
    let allowed = limits().standstill().as_secs_f64();
    let trace_of = || format!("{report:?}\n{}", crate::trace_of(&world.scenario));
    let Some(error) = &report.error else {
        assert_eq!(report.outcome, Outcome::Migrated);
        let hand_overs = f64::from(report.returns + 1);
        assert!(
            undecided_seconds(report) < hand_overs * (allowed + RESUME_SECONDS),
            "{}",
            trace_of()
        );
        return None;
    };
    assert_eq!(report.outcome, Outcome::StayedAtSource, "{}", trace_of());
    match error.reason {
        // It may pass during a later hand-over, after one that was called off.
        Reason::Timeout => {
            let is_short = |stood| stood <= allowed + RESUME_SECONDS + 1e-6;
            assert!(report.downtime_seconds.is_none_or(is_short), "{}", trace_of());
        }
        Reason::Downtime => {
            // A commit that may be recorded is undone, and for one that is sent, the destination
            // is asked for the guest.
            let asked = if error.phase == Phase::Commit { round_trip } else { Duration::ZERO };
            let undone = asked.as_secs_f64() + 2.0 * RECORD_SECONDS;
            let beyond = report.downtime_seconds.unwrap() - allowed - RESUME_SECONDS;
            assert!((-1e-6..undone + 1e-6).contains(&beyond), "{}", trace_of());
            let parts = report.standstill.unwrap();
            let longest = parts.flush_seconds.max(parts.send_seconds).max(parts.ready_seconds);
            assert!(longest.max(load.as_secs_f64()) > allowed / 3.0, "{}", trace_of());
        }
        reason => panic!("{reason:?} {}", trace_of()),
    }
    Some(error.reason)
}

/// A guest whose dirty rate just about fits the downtime limit.
fn busy_guest() -> Scenario {
    Scenario { writes_per_second: 20_000, working_set: 250, ..Scenario::default() }
}

#[test]
fn a_guest_whose_link_slows_down_after_the_pause_moves_in_time_or_resumes() {
    let (mut moved, mut stayed) = (0, 0);
    let (speeds, latencies) = ([5_000, 10_000, 20_000], [1, 5, 10]);
    let links = speeds.iter().flat_map(|speed| latencies.map(|ms| (*speed, ms)));
    for (pages_per_second, ms) in links {
        for slower_after_pause in [1, 2, 5, 10, 20, 100, 1_000, 10_000] {
            let why = run_in_time(Scenario {
                latency: Duration::from_millis(ms),
                pages_per_second,
                slower_after_pause,
                on_stall: OnStall::Wait,
                ..busy_guest()
            });
            match why {
                None => moved += 1,
                Some(reason) => {
                    let known = [Reason::Downtime, Reason::Timeout];
                    assert!(known.contains(&reason), "{reason:?} {pages_per_second} {ms}");
                    stayed += 1;
                }
            }
        }
    }
    assert!(moved >= 10 && stayed >= 10, "{moved} moved and {stayed} stayed");
}

#[test]
fn a_guest_whose_disk_hangs_after_the_pause_moves_in_time_or_resumes() {
    let allowed = limits().standstill();
    let (near, far) = (allowed - Duration::from_millis(100), allowed + Duration::from_millis(1));
    for (flush, is_moved) in [
        (Duration::from_millis(1), true),
        (Duration::from_millis(300), true),
        (near, true),
        (far, false),
        (Duration::from_secs(8), false),
        (Duration::from_secs(3600), false),
    ] {
        for saves_late in [true, false] {
            let why = run_in_time(Scenario { flush, saves_late, ..Scenario::default() });
            let expected = (!is_moved).then_some(Reason::Downtime);
            assert_eq!(why, expected, "{flush:?} {saves_late}");
        }
    }
}

/// The guest is given back although its state is still being loaded.
#[test]
fn a_guest_whose_destination_hangs_after_the_pause_moves_in_time_or_resumes() {
    let allowed = limits().standstill();
    for (load, is_moved) in [
        (Duration::from_millis(2), true),
        (allowed - Duration::from_millis(100), true),
        (allowed + Duration::from_millis(1), false),
        (Duration::from_secs(3600), false),
    ] {
        for is_early in [true, false] {
            let why = run_in_time(Scenario { load, is_early, ..Scenario::default() });
            let expected = (!is_moved).then_some(Reason::Downtime);
            assert_eq!(why, expected, "{load:?} {is_early}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 2000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn no_guest_is_paused_for_longer_than_the_limit(
        guest in (0..20_000_u32, 1..384_u64, any::<bool>()),
        link in (1..20_u64, 2_000..100_000_u32, 1..4_u16),
        turns in (1..200_u32, prop_oneof![0..50_u64, 0..9_000_u64]),
    ) {
        run_in_time(Scenario {
            latency: Duration::from_millis(link.0),
            writes_per_second: guest.0,
            working_set: guest.1,
            saves_late: guest.2,
            pages_per_second: link.1,
            streams: link.2,
            slower_after_pause: turns.0,
            flush: Duration::from_millis(turns.1),
            ..Scenario::default()
        });
    }
}
