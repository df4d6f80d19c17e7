//! A guest that writes faster than it is sent: what its source does, in which order.

use super::*;
use crate::error::ChangeRefused;
use crate::guest::Throttled;
use crate::limits::LimitsChange;
use crate::protocol::FEATURE_POSTCOPY;

const LIFTED: Action = Action::Throttle { percent: 0 };

/// Runs rounds that leave as much dirty as they send; returns the actions after the last.
fn in_vain(bench: &mut Bench, rounds: u32) -> Vec<Action> {
    let round = RoundSent { pages: 4096, dirty_pages: 4096, ..RoundSent::default() };
    let mut actions = Vec::new();
    for _ in 0..rounds {
        bench.now += Duration::from_secs(1);
        actions = bench.feed(Event::RoundSent(round));
    }
    actions
}

fn throttled() -> Bench {
    let mut bench = Bench::copying();
    let actions = in_vain(&mut bench, 3);
    let [Action::Throttle { percent: 20..=99 }, Action::SendRound { round: 4 }] = actions[..]
    else {
        panic!("{actions:?}");
    };
    bench
}

#[test]
fn the_throttle_is_renewed_and_ends_once_the_guest_is_paused() {
    let mut bench = throttled();
    let progress = bench.source.progress(bench.now);
    let (percent, vcpus) = (progress.throttle_percent, progress.throttled_vcpus);
    assert_eq!(vcpus, bench.source.config.guest.vcpus);
    bench.now += Duration::from_secs(1);
    let transfer = Transfer { wire_bytes: 1, ..Transfer::default() };
    assert_eq!(bench.feed(Event::Transferred(transfer)), [Action::Throttle { percent }]);
    assert_eq!(bench.feed(Event::Transferred(transfer)), []);
    let pause = bench.feed(Event::RoundSent(RoundSent::default()));
    assert_eq!(pause, [Action::Send(SourceMessage::Switchover), Action::Pause]);
    let paused = bench.feed(Event::Paused { was: RunState::Running });
    assert_eq!(paused[0], LIFTED, "it may be resumed here");
    assert_eq!(bench.source.progress(bench.now).throttle_percent, 0);
}

#[test]
fn progress_and_report_say_how_many_vcpus_rest_and_how_much_one_of_them_does() {
    let mut bench = throttled();
    bench.feed(Event::Throttled(Throttled { vcpus: 3, percent: 98 }));
    assert_eq!(bench.feed(Event::Throttled(Throttled { vcpus: 1, percent: 90 })), []);
    let progress = bench.source.progress(bench.now);
    assert_eq!((progress.throttled_vcpus, progress.throttle_percent), (1, 90));
    let lost = bench.feed(Event::ConnectionLost { detail: "cable".into() });
    assert!(lost.contains(&LIFTED));
    assert_eq!(bench.feed(Event::Throttled(Throttled::default())), []);
    let progress = bench.source.progress(bench.now);
    assert_eq!((progress.throttled_vcpus, progress.throttle_percent), (0, 0));
    let stall = bench.source.notes.stall.unwrap();
    assert_eq!((stall.throttled_vcpus, stall.throttle_percent_max), (1, 98));
}

#[test]
fn a_destination_that_takes_nothing_does_not_keep_the_guest_slow() {
    let mut bench = throttled();
    bench.now += Duration::from_secs(5);
    assert_eq!(bench.feed(Event::Transferred(Transfer::default())), [LIFTED]);
}

#[test]
fn the_throttle_ends_with_the_migration_whatever_ends_it() {
    let lost = Event::ConnectionLost { detail: "cable".into() };
    for end in [Event::Cancel { by: "me".into() }, lost] {
        let mut bench = throttled();
        assert!(bench.feed(end).contains(&LIFTED));
    }
    let mut bench = throttled();
    bench.now += Duration::from_secs(4000);
    assert!(bench.source.handle(Event::Tick, bench.now).contains(&LIFTED), "its time is over");
}

#[test]
fn limits_change_until_the_guest_is_handed_over() {
    let mut bench = throttled();
    let wait = LimitsChange { on_stall: Some(OnStall::Wait), ..LimitsChange::default() };
    assert_eq!(bench.source.can_change(&wait), Ok(()));
    assert_eq!(bench.feed(Event::Change(wait)), [LIFTED]);
    assert_eq!(in_vain(&mut bench, 3), [Action::SendRound { round: 7 }]);
    let longer = LimitsChange { downtime: Some(Duration::from_secs(5)), ..LimitsChange::default() };
    bench.feed(Event::Change(longer));
    let pause = in_vain(&mut bench, 1);
    assert_eq!(pause, [Action::Send(SourceMessage::Switchover), Action::Pause]);
    assert_eq!(bench.source.can_change(&wait), Err(ChangeRefused::Late));
    assert_eq!(bench.feed(Event::Change(wait)), []);
}

#[test]
fn a_forced_hand_over_may_take_as_long_as_it_is_expected_to() {
    let mut bench = Bench::copying();
    bench.source.config.limits.on_stall = OnStall::Force;
    let pause = in_vain(&mut bench, 3);
    assert_eq!(pause, [Action::Send(SourceMessage::Switchover), Action::Pause]);
    let expected = bench.source.progress(bench.now).expected_downtime_seconds.unwrap();
    assert!(expected > 0.9, "{expected}");
    let allowed = (bench.source.deadline().unwrap() - bench.now).as_secs_f64();
    assert!((allowed - (2.0 * expected + 1.0)).abs() < 0.01, "{allowed}");
}

/// A host that can use post-copy.
fn with_postcopy() -> Offer {
    Offer { features: Features::SUPPORTED.with(FEATURE_POSTCOPY), ..Offer::ours() }
}

#[test]
fn a_guest_that_stalls_is_handed_over_before_its_memory_if_both_sides_can() {
    let mut bench = Bench::new();
    bench.source.config.limits.on_stall = OnStall::Postcopy;
    bench.source.config.offer = with_postcopy();
    bench.feed(Event::Connected);
    bench.feed(Event::Recorded);
    let features = Features(1).with(FEATURE_POSTCOPY);
    bench.hear(DestinationMessage::Welcome { version: Version(1), features });
    bench.hear(DestinationMessage::Prepared);
    bench.feed(Event::PrecopyStarted);
    bench.feed(Event::Probed(Probe { pause_and_save: 2 * MS, round_trip: MS, ..Probe::default() }));
    assert_eq!(in_vain(&mut bench, 3), [Action::EndStreams]);
    assert!(bench.source.notes.stall.is_some_and(|stall| stall.postcopy));
}

#[test]
fn a_stall_waits_and_says_why_if_the_destination_cannot_use_postcopy() {
    let mut bench = Bench::new();
    bench.source.config.offer = with_postcopy();
    bench.source.config.limits.on_stall = OnStall::Postcopy;
    bench.begin(Probe { pause_and_save: 2 * MS, round_trip: MS, ..Probe::default() });
    let refused = |bench: &Bench| bench.source.progress(bench.now).postcopy_refused;
    in_vain(&mut bench, 2);
    assert_eq!(refused(&bench), None, "it has not stalled");
    assert_eq!(in_vain(&mut bench, 1), [Action::SendRound { round: 4 }]);
    let why = refused(&bench).expect("a reason");
    assert!(why.contains("post-copy"), "{why}");
    assert!(bench.source.notes.stall.is_some_and(|stall| !stall.postcopy));
}

#[test]
fn a_limit_below_the_fixed_part_is_said_to_be_impossible_with_the_number() {
    let mut bench = Bench::new();
    bench.source.config.limits.downtime = 10 * MS;
    let slow = Probe { pause_and_save: 40 * MS, round_trip: MS, ..Probe::default() };
    bench.begin(slow);
    let mut dry_runs = 1;
    let actions = loop {
        let actions = bench.feed(Event::RoundSent(RoundSent::default()));
        if !actions.is_empty() {
            break actions;
        }
        bench.now = bench.source.deadline().unwrap() + Duration::from_secs(2);
        bench.source.handle(Event::Tick, bench.now);
        bench.feed(Event::Recorded);
        bench.feed(Event::Probed(slow));
        dry_runs += 1;
    };
    let Action::Send(SourceMessage::Abort(complaint)) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!((complaint.reason(), dry_runs), (Reason::Stalled, 5));
    assert!(
        complaint.text.as_str().contains("takes 0.085 s even without dirty memory"),
        "{complaint:?}"
    );
}
