//! A guest that writes faster than it is sent: what its source does, in which order.

use std::num::NonZeroU64;

use super::*;
use crate::decisions::{Cause, Decided, DecisionKind};
use crate::error::ChangeRefused;
use crate::guest::{Throttle, Throttled};
use crate::limits::LimitsChange;
use crate::protocol::FEATURE_POSTCOPY;

const LIFTED: Action = Action::Throttle(Throttle { percent: 0, disk_bytes_per_second: None });

/// Runs rounds that leave as much dirty as they send; returns the actions after the last.
fn in_vain(bench: &mut Bench, rounds: u32) -> Vec<Action> {
    in_vain_by_disks(bench, rounds, 0)
}

/// As [`in_vain`], with so many pages of disks among the dirty ones.
fn in_vain_by_disks(bench: &mut Bench, rounds: u32, dirty_disk_pages: u64) -> Vec<Action> {
    let round =
        RoundSent { pages: 4096, dirty_pages: 4096, dirty_disk_pages, ..RoundSent::default() };
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
    let [Action::Throttle(throttle), Action::SendRound { round: 4 }] = actions[..] else {
        panic!("{actions:?}");
    };
    assert!((20..=99).contains(&throttle.percent), "{throttle:?}");
    bench
}

#[test]
fn disks_are_written_more_slowly_than_pages_are_sent_and_do_not_count_for_vcpus() {
    let throttle = |dirty_disk_pages| {
        let actions = in_vain_by_disks(&mut Bench::copying(), 3, dirty_disk_pages);
        let [Action::Throttle(throttle), ..] = actions[..] else { panic!("{actions:?}") };
        throttle
    };
    let [none, half, all] = [0, 2048, 4096].map(throttle);
    for limited in [none, half, all] {
        // A quarter of some 16 MiB per second.
        let limit = limited.disk_bytes_per_second.map_or(0, NonZeroU64::get);
        assert_eq!(limit >> 20, 3, "{limited:?}");
    }
    // Half of what is sent is left for what the guest writes, or a quarter beside the disks.
    assert_eq!([none.percent, half.percent, all.percent], [50, 50, 20], "the least is 20");
}

#[test]
fn the_throttle_is_renewed_and_ends_once_the_guest_is_paused() {
    let mut bench = throttled();
    let progress = bench.source.progress(bench.now);
    let (percent, vcpus) = (progress.throttle_percent, progress.throttled_vcpus);
    assert_eq!(vcpus, bench.source.config.guest.vcpus);
    bench.now += Duration::from_secs(1);
    let transfer = Transfer { wire_bytes: 1, ..Transfer::default() };
    let renewed = bench.feed(Event::Transferred(transfer));
    let [Action::Throttle(renewed)] = renewed[..] else { panic!("{renewed:?}") };
    assert_eq!(renewed.percent, percent);
    assert!(renewed.disk_bytes_per_second.is_some(), "{renewed:?}");
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
    let last = bench.source.progress(bench.now).decisions.pop().unwrap().what;
    assert_eq!(last, Decided::Throttled { percent: 90, vcpus: 1, disk_bytes_per_second: None });
    let stall = bench.source.notes.stall().unwrap();
    assert_eq!((stall.throttled_vcpus, stall.throttle_percent_max), (1, 98));
}

#[test]
fn a_destination_that_takes_nothing_does_not_keep_the_guest_slow() {
    let mut bench = throttled();
    bench.now += Duration::from_secs(5);
    assert_eq!(bench.feed(Event::Transferred(Transfer::default())), [LIFTED]);
    let decided = bench.source.progress(bench.now).decisions.pop().unwrap().what;
    assert_eq!(decided, Decided::Unthrottled { cause: Cause::Idle });
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
    assert_eq!(kinds(&bench), [DecisionKind::Stalled, DecisionKind::Forced]);
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
    assert!(bench.source.notes.stall().is_some_and(|stall| stall.postcopy));
    assert_eq!(kinds(&bench), [DecisionKind::Stalled, DecisionKind::Postcopy]);
    let decided = bench.source.progress(bench.now).decisions.pop().unwrap().what;
    assert_eq!(decided, Decided::Postcopy { cause: Cause::Stall });
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
    assert!(bench.source.notes.stall().is_some_and(|stall| !stall.postcopy));
}

/// The kinds of decisions so far, in their order.
fn kinds(bench: &Bench) -> Vec<DecisionKind> {
    let progress = bench.source.progress(bench.now);
    progress.decisions.iter().map(|decided| decided.what.kind()).collect()
}

#[test]
fn each_decision_is_listed_once_and_counted_until_limits_change() {
    use DecisionKind::{LimitsChanged, Stalled, Throttled, Unthrottled};
    let mut bench = throttled();
    let first = bench.source.progress(bench.now).decisions.remove(0);
    assert!(first.after_seconds > 2.9, "{first:?}");
    let Decided::Stalled { expected_downtime_seconds, downtime_limit_seconds, on_stall, .. } =
        first.what
    else {
        panic!("{first:?}");
    };
    assert!(expected_downtime_seconds > 0.9, "{expected_downtime_seconds}");
    assert_eq!((downtime_limit_seconds, on_stall), (0.3, OnStall::Throttle));
    in_vain(&mut bench, 1);
    let steps = [Stalled, Throttled, Throttled];
    assert_eq!(kinds(&bench), steps);

    let wait = LimitsChange { on_stall: Some(OnStall::Wait), ..LimitsChange::default() };
    bench.feed(Event::Change(wait));
    in_vain(&mut bench, 5);

    let all = [&steps[..], &[LimitsChanged, Unthrottled, Stalled]].concat();
    assert_eq!(kinds(&bench), all);
    let progress = bench.source.progress(bench.now);
    assert_eq!(progress.decision_counts[&Stalled], 2);
    assert_eq!(progress.decisions[4].what, Decided::Unthrottled { cause: Cause::Order });
    bench.feed(Event::Cancel { by: "me".into() });
    bench.hear(DestinationMessage::Discarded);
    let ended = bench.feed(Event::Recorded);
    let report = report(&ended);
    assert_eq!(
        (&report.decisions, &report.decision_counts),
        (&progress.decisions, &progress.decision_counts)
    );
}

#[test]
fn an_ordinary_migration_decides_nothing() {
    let bench = Bench::awaiting_ready();
    assert_eq!(kinds(&bench), []);
    assert!(bench.source.progress(bench.now).decision_counts.is_empty());
}

/// A bench whose downtime limit of 300 ms is raised to 2 s.
fn with_steps(on_stall: OnStall) -> Bench {
    let mut bench = Bench::copying();
    bench.source.config.limits.downtime_max = Some(Duration::from_secs(2));
    bench.source.config.limits.on_stall = on_stall;
    bench
}

fn limit(bench: &Bench) -> f64 {
    bench.source.progress(bench.now).downtime_limit_seconds
}

#[test]
fn a_guest_is_handed_over_in_the_round_that_raises_the_limit_far_enough() {
    use DecisionKind::{LimitRaised, Stalled};
    let mut bench = with_steps(OnStall::Cancel);
    assert_eq!(in_vain(&mut bench, 3), [Action::SendRound { round: 4 }]);
    assert_eq!((kinds(&bench), limit(&bench)), (vec![Stalled, LimitRaised], 0.6));

    let pause = in_vain(&mut bench, 1);

    assert_eq!(pause, [Action::Send(SourceMessage::Switchover), Action::Pause]);
    assert_eq!((kinds(&bench), limit(&bench)), (vec![Stalled, LimitRaised, LimitRaised], 1.2));
    let decisions = bench.source.progress(bench.now).decisions;
    let Decided::Stalled { downtime_limit_seconds, .. } = decisions[0].what else {
        panic!("{decisions:?}");
    };
    assert!((downtime_limit_seconds - 0.3).abs() < 1e-9, "as it was: {decisions:?}");
    let Decided::LimitRaised { expected_downtime_seconds, downtime_max_seconds, .. } =
        decisions[2].what
    else {
        panic!("{decisions:?}");
    };
    assert!((0.9..1.2).contains(&expected_downtime_seconds), "{decisions:?}");
    assert!((downtime_max_seconds - 2.0).abs() < 1e-9, "{decisions:?}");
    assert_eq!(bench.source.deadline().unwrap() - bench.now, 3400 * MS, "twice, and a second");
}

#[test]
fn a_limit_that_cannot_be_raised_far_enough_is_raised_at_once_and_then_the_guest_is_throttled() {
    use DecisionKind::{LimitRaised, Stalled, Throttled};
    let mut bench = with_steps(OnStall::Throttle);
    bench.source.config.limits.downtime_max = Some(500 * MS);
    in_vain(&mut bench, 4);
    assert_eq!(kinds(&bench), [Stalled, LimitRaised, Throttled]);
    assert!((limit(&bench) - 0.5).abs() < 1e-9);
    let pause = bench.feed(Event::RoundSent(RoundSent { pages: 4096, ..RoundSent::default() }));
    assert_eq!(pause, [Action::Send(SourceMessage::Switchover), Action::Pause]);
}

#[test]
fn steps_begin_again_at_the_limit_that_the_operator_sets() {
    let set =
        |downtime, downtime_max| LimitsChange { downtime, downtime_max, ..Default::default() };
    let mut bench = with_steps(OnStall::Wait);
    in_vain(&mut bench, 3);
    assert!((limit(&bench) - 0.6).abs() < 1e-9, "{}", limit(&bench));
    let too_low = Err(ChangeRefused::BelowLimit { limit: 300 * MS });
    assert_eq!(bench.source.can_change(&set(None, Some(299 * MS))), too_low);
    let both = bench.source.can_change(&set(Some(400 * MS), Some(300 * MS)));
    assert_eq!(both, Err(ChangeRefused::BelowLimit { limit: 400 * MS }));

    bench.feed(Event::Change(set(None, Some(500 * MS))));
    assert!((limit(&bench) - 0.5).abs() < 1e-9, "{}", limit(&bench));
    bench.feed(Event::Change(set(Some(200 * MS), None)));
    assert!((limit(&bench) - 0.2).abs() < 1e-9, "{}", limit(&bench));
    let Decided::LimitsChanged { downtime_max_seconds, .. } =
        bench.source.progress(bench.now).decisions[2].what
    else {
        panic!("{:?}", kinds(&bench));
    };
    assert_eq!(downtime_max_seconds, Some(0.5));
    in_vain(&mut bench, 2);
    assert!((limit(&bench) - 0.5).abs() < 1e-9, "{}", limit(&bench));
}

/// Runs rounds that leave nothing dirty, each after a dry run by which the fixed part is 85 ms,
/// until something is done about it, or `dry_runs` times; returns the actions and the dry runs.
fn measured_in_vain(bench: &mut Bench, dry_runs: u32) -> (Vec<Action>, u32) {
    let slow = Probe { pause_and_save: 40 * MS, round_trip: MS, ..Probe::default() };
    bench.begin(slow);
    for dry_run in 1..=dry_runs {
        let actions = bench.feed(Event::RoundSent(RoundSent::default()));
        if !actions.is_empty() {
            return (actions, dry_run);
        }
        bench.now = bench.source.deadline().unwrap() + Duration::from_secs(2);
        bench.source.handle(Event::Tick, bench.now);
        bench.feed(Event::Recorded);
        bench.feed(Event::Probed(slow));
    }
    (Vec::new(), dry_runs)
}

/// A source whose downtime limit is `downtime`.
fn limited_to(downtime: Duration) -> Bench {
    let mut bench = Bench::new();
    bench.source.config.limits.downtime = downtime;
    bench
}

#[test]
fn a_limit_below_the_fixed_part_is_said_once_to_be_impossible_if_the_source_is_to_wait() {
    let mut bench = limited_to(30 * MS);
    bench.source.config.limits.on_stall = OnStall::Wait;
    assert_eq!(measured_in_vain(&mut bench, 9), (Vec::new(), 9));
    let progress = bench.source.progress(bench.now);
    let [decided] = &progress.decisions[..] else { panic!("{:?}", progress.decisions) };
    let Decided::Impossible { fixed_seconds, downtime_limit_seconds, .. } = decided.what else {
        panic!("{decided:?}");
    };
    assert!((fixed_seconds - 0.085).abs() < 0.001, "{fixed_seconds}");
    assert!((downtime_limit_seconds - 0.03).abs() < 1e-9, "{downtime_limit_seconds}");
    assert!(decided.after_seconds > 10.0 && !progress.converging, "{decided:?}");
}

/// Why the migration is given up, and after how many dry runs.
fn given_up(mut bench: Bench) -> (String, u32) {
    let (actions, dry_runs) = measured_in_vain(&mut bench, 9);
    assert_eq!(kinds(&bench), [DecisionKind::Impossible]);
    let Action::Send(SourceMessage::Abort(complaint)) = &actions[0] else { panic!("{actions:?}") };
    assert_eq!(complaint.reason(), Reason::Stalled);
    (complaint.text.as_str().to_owned(), dry_runs)
}

#[test]
fn a_limit_below_the_fixed_part_is_said_to_be_impossible_with_the_number() {
    let (why, dry_runs) = given_up(limited_to(30 * MS));
    assert!(why.contains("takes 0.085 s even without dirty memory"), "{why}");
    assert_eq!(dry_runs, 5);
    let (why, dry_runs) = given_up(limited_to(10 * MS));
    assert!(why.contains("the downtime limit is 0.010 s"), "{why}");
    assert_eq!(dry_runs, 2, "noise is not the reason");
}

#[test]
fn a_limit_below_the_fixed_part_is_raised_above_it_if_it_may() {
    let mut bench = limited_to(10 * MS);
    bench.source.config.limits.downtime_max = Some(200 * MS);
    let pause = vec![Action::Send(SourceMessage::Switchover), Action::Pause];
    assert_eq!(measured_in_vain(&mut bench, 9), (pause, 2));
    assert_eq!(kinds(&bench), [DecisionKind::LimitRaised]);
    assert!((limit(&bench) - 0.16).abs() < 1e-9, "{}", limit(&bench));

    let mut bench = limited_to(10 * MS);
    bench.source.config.limits.downtime_max = Some(20 * MS);
    let (why, dry_runs) = given_up(bench);
    assert!(why.contains("the downtime limit is 0.020 s"), "{why}");
    assert_eq!(dry_runs, 2);
}
