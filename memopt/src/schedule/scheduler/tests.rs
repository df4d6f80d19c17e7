//! Runs that are due, late, missed, queued and over, and clocks that are set; then all of it at
//! random.

use proptest::prelude::*;

use super::*;
use crate::labels::Selector;
use crate::schedule::{Budget, Cron, GoalText, Missed, Missing, Zone};

/// 2026-11-20 00:00 UTC, and the time of the host's boot.
const MIDNIGHT: u64 = 1_795_132_800;
const BOOT: u64 = MIDNIGHT - 1_000_000;
const MINUTE: u64 = 60;
const HOUR: u64 = 3600;

fn schedule(name: &str, cron: &str) -> Schedule {
    Schedule {
        name: name.to_owned(),
        cron: Cron::parse(cron, Zone::utc()).unwrap(),
        window: Duration::from_secs(HOUR),
        budget: Budget::default(),
        goal: GoalText("max density".to_owned()),
        guests: Selector::default(),
        enabled: true,
        overlap: Overlap::Queue,
        missed: Missing::Skip,
    }
}

fn catch_up(seconds: u64) -> Missing {
    Missing::CatchUp { within: Duration::from_secs(seconds) }
}

/// The time `seconds` after midnight, on a host whose clock was never set.
fn at(seconds: u64) -> Moment {
    let wall = MIDNIGHT + seconds;
    Moment { wall: Duration::from_secs(wall), uptime: Duration::from_secs(wall - BOOT) }
}

/// Like [`at`], with a clock that was set forward by `by` seconds, or back.
fn set(seconds: u64, by: i64) -> Moment {
    let right = at(seconds);
    let wall = right.wall.as_secs().saturating_add_signed(by);
    Moment { wall: Duration::from_secs(wall), ..right }
}

fn trigger(name: &str, seconds: u64) -> Trigger {
    Trigger::Schedule { name: name.to_owned(), tick: MIDNIGHT + seconds }
}

fn due(name: &str, tick: u64, lag: u64, punctuality: Punctuality) -> Notice {
    Notice::Due(Due {
        trigger: trigger(name, tick),
        lag: Duration::from_secs(lag),
        window: Some(Duration::from_secs(HOUR - lag)),
        punctuality,
    })
}

fn missed(name: &str, first: u64, last: u64, count: u64, why: Lost) -> Notice {
    let (first, last) = (MIDNIGHT + first, MIDNIGHT + last);
    Notice::Missed(Missed { schedule: name.to_owned(), first, last, count, why })
}

/// A scheduler that begins at midnight.
fn scheduler(schedules: Vec<Schedule>) -> Scheduler {
    Scheduler::new(schedules, &BTreeMap::new(), at(0))
}

/// Calls the scheduler every half minute until `to`, and returns its notices.
fn pass(scheduler: &mut Scheduler, from: u64, to: u64) -> Vec<Notice> {
    let ticks = (from..=to).step_by(30);
    ticks.flat_map(|seconds| scheduler.handle(at(seconds), Event::Elapsed)).collect()
}

#[test]
fn other_schedules_leave_the_run_under_way_the_only_one() {
    let mut scheduler = scheduler(vec![schedule("old", "0 2 * * *")]);
    pass(&mut scheduler, 0, 2 * HOUR);
    let skipping = Schedule { overlap: Overlap::Skip, ..schedule("new", "10 2 * * *") };
    scheduler.replace(vec![skipping], &BTreeMap::new(), at(2 * HOUR + 30));
    assert_eq!(scheduler.running(), Some(&trigger("old", 2 * HOUR)));
    let tick = 2 * HOUR + 10 * MINUTE;
    let overlapped = Lost::Overlapped(trigger("old", 2 * HOUR));
    let meanwhile = pass(&mut scheduler, 2 * HOUR + 30, 3 * HOUR - 30);
    assert_eq!(meanwhile, [missed("new", tick, tick, 1, overlapped)]);
    let over = scheduler.handle(at(3 * HOUR), Event::Elapsed);
    assert_eq!(over, [Notice::End(trigger("old", 2 * HOUR))], "it keeps its window");
    scheduler.handle(at(3 * HOUR), Event::Ended);
    assert_eq!(scheduler.running(), None);
}

#[test]
fn a_run_is_due_at_its_time_once_and_ends_with_its_window() {
    let mut scheduler = scheduler(vec![schedule("nightly", "0 2 * * *")]);
    assert_eq!(pass(&mut scheduler, 0, 2 * HOUR - 30), []);
    assert_eq!(scheduler.wait(at(2 * HOUR - 7)), Duration::from_secs(7));
    let begin = scheduler.handle(at(2 * HOUR), Event::Elapsed);
    assert_eq!(begin, [due("nightly", 2 * HOUR, 0, Punctuality::OnTime)]);
    assert_eq!(scheduler.running(), Some(&trigger("nightly", 2 * HOUR)));
    assert_eq!(pass(&mut scheduler, 2 * HOUR, 3 * HOUR - 30), []);
    let end = pass(&mut scheduler, 3 * HOUR, 4 * HOUR);
    assert_eq!(end, [Notice::End(trigger("nightly", 2 * HOUR))]);
    assert_eq!(scheduler.handle(at(4 * HOUR), Event::Ended), []);
    assert_eq!(scheduler.running(), None);
}

#[test]
fn a_run_that_begins_late_has_a_shorter_window_and_its_lag_is_measured() {
    let mut scheduler = scheduler(vec![schedule("nightly", "0 2 * * *")]);
    pass(&mut scheduler, 0, 2 * HOUR - 30);
    let begin = scheduler.handle(at(2 * HOUR + 45), Event::Elapsed);
    assert_eq!(begin, [due("nightly", 2 * HOUR, 45, Punctuality::OnTime)]);
    let (_, tally) = scheduler.schedules().next().unwrap();
    let lag = Duration::from_secs(45);
    assert_eq!(tally, Tally { begun: 1, missed: 0, lag_last: lag, lag_max: lag });
    assert_eq!(
        pass(&mut scheduler, 3 * HOUR - 30, 3 * HOUR).last(),
        Some(&Notice::End(trigger("nightly", 2 * HOUR)))
    );
}

#[test]
fn missed_times_are_caught_up_only_on_request_and_if_recent() {
    let last = BTreeMap::from([("nightly".to_owned(), MIDNIGHT - 22 * HOUR)]);
    for (policy, now, expected) in [
        (catch_up(900), 10 * MINUTE, due("nightly", 2 * HOUR, 600, Punctuality::CaughtUp)),
        (catch_up(900), 16 * MINUTE, missed("nightly", 2 * HOUR, 2 * HOUR, 1, Lost::Absent)),
        (Missing::Skip, 2 * MINUTE, missed("nightly", 2 * HOUR, 2 * HOUR, 1, Lost::Absent)),
        (Missing::Skip, MINUTE, due("nightly", 2 * HOUR, 60, Punctuality::OnTime)),
    ] {
        let nightly = Schedule { missed: policy, ..schedule("nightly", "0 2 * * *") };
        let now = at(2 * HOUR + now);
        let mut scheduler = Scheduler::new(vec![nightly], &last, now);
        assert_eq!(scheduler.handle(now, Event::Elapsed), [expected]);
        assert_eq!(scheduler.handle(now, Event::Elapsed), []);
    }
}

#[test]
fn a_schedule_that_never_ran_has_missed_nothing() {
    let nightly = Schedule { missed: catch_up(3600), ..schedule("nightly", "0 2 * * *") };
    let now = at(2 * HOUR + 60);
    let mut scheduler = Scheduler::new(vec![nightly], &BTreeMap::new(), now);
    assert_eq!(scheduler.handle(now, Event::Elapsed), []);
}

#[test]
fn of_many_times_that_went_by_the_last_one_runs() {
    let often = Schedule { missed: catch_up(900), ..schedule("often", "*/10 * * * *") };
    let last = BTreeMap::from([("often".to_owned(), MIDNIGHT - 600)]);
    let now = at(35 * MINUTE);
    let mut scheduler = Scheduler::new(vec![often], &last, now);
    let expected = [
        missed("often", 0, 20 * MINUTE, 3, Lost::Superseded),
        due("often", 30 * MINUTE, 300, Punctuality::CaughtUp),
    ];
    assert_eq!(scheduler.handle(now, Event::Elapsed), expected);
}

#[test]
fn two_that_are_due_together_run_one_after_the_other() {
    let both = vec![schedule("a", "0 1 * * *"), schedule("b", "0 1 * * *")];
    let mut scheduler = scheduler(both);
    let running = trigger("a", HOUR);
    let queued = Notice::Queued { schedule: "b".to_owned(), tick: MIDNIGHT + HOUR, running };
    assert_eq!(pass(&mut scheduler, 0, HOUR), [due("a", HOUR, 0, Punctuality::OnTime), queued]);
    assert_eq!(pass(&mut scheduler, HOUR + 30, HOUR + 600), []);
    let next = scheduler.handle(at(HOUR + 610), Event::Ended);
    assert_eq!(next, [due("b", HOUR, 610, Punctuality::Queued)]);
}

#[test]
fn waiting_schedules_keep_waiting_when_schedules_are_replaced() {
    let schedules = || vec![schedule("a", "0 1 * * *"), schedule("b", "0 1 * * *")];
    let mut scheduler = scheduler(schedules());
    pass(&mut scheduler, 0, HOUR);
    scheduler.replace(schedules(), &BTreeMap::new(), at(HOUR + 300));
    assert_eq!(scheduler.entries[0].tally.begun, 1);
    assert_eq!(pass(&mut scheduler, HOUR + 330, HOUR + 600), []);
    let next = scheduler.handle(at(HOUR + 610), Event::Ended);
    assert_eq!(next, [due("b", HOUR, 610, Punctuality::Queued)]);
}

#[test]
fn a_schedule_that_waits_until_its_window_is_over_has_missed_it() {
    let short = Schedule { window: Duration::from_secs(300), ..schedule("b", "0 1 * * *") };
    let mut scheduler = scheduler(vec![schedule("a", "0 1 * * *"), short]);
    pass(&mut scheduler, 0, HOUR);
    let said = pass(&mut scheduler, HOUR + 30, HOUR + 330);
    assert_eq!(said, [missed("b", HOUR, HOUR, 1, Lost::WindowOver)]);
    assert_eq!(scheduler.handle(at(HOUR + 360), Event::Ended), []);
}

#[test]
fn schedules_that_do_not_wait_are_skipped() {
    let skips = Schedule { overlap: Overlap::Skip, ..schedule("b", "30 1 * * *") };
    let mut scheduler = scheduler(vec![schedule("a", "0 1 * * *"), skips]);
    let running = trigger("a", HOUR);
    let expected = missed("b", HOUR + 1800, HOUR + 1800, 1, Lost::Overlapped(running));
    assert_eq!(pass(&mut scheduler, 0, HOUR + 1800)[1..], [expected]);
}

#[test]
fn a_schedule_due_during_its_last_run_waits_once() {
    let often = Schedule { window: Duration::from_secs(7200), ..schedule("often", "0 * * * *") };
    let mut scheduler = scheduler(vec![often]);
    let said = pass(&mut scheduler, 0, 3 * HOUR);
    let queued = |tick| Notice::Queued {
        schedule: "often".to_owned(),
        tick: MIDNIGHT + tick,
        running: trigger("often", HOUR),
    };
    let expected = [
        queued(2 * HOUR),
        Notice::End(trigger("often", HOUR)),
        missed("often", 2 * HOUR, 2 * HOUR, 1, Lost::Superseded),
        queued(3 * HOUR),
    ];
    assert_eq!(said[1..], expected);
}

#[test]
fn an_operators_run_has_no_window_and_keeps_schedules_waiting() {
    let mut scheduler = scheduler(vec![schedule("a", "0 1 * * *")]);
    let manual = Due {
        trigger: Trigger::Manual,
        lag: Duration::ZERO,
        window: None,
        punctuality: Punctuality::OnTime,
    };
    assert_eq!(scheduler.handle(at(10), Event::ManualWanted), [Notice::Due(manual)]);
    let busy = Notice::Busy { running: Trigger::Manual };
    assert_eq!(scheduler.handle(at(20), Event::ManualWanted), [busy]);
    assert!(matches!(pass(&mut scheduler, 30, HOUR)[..], [Notice::Queued { .. }]));
    let next = scheduler.handle(at(HOUR + 30), Event::Ended);
    assert_eq!(next, [due("a", HOUR, 30, Punctuality::Queued)]);
}

#[test]
fn a_schedule_that_is_switched_off_is_never_due() {
    let mut scheduler = scheduler(vec![Schedule { enabled: false, ..schedule("a", "* * * * *") }]);
    assert_eq!(pass(&mut scheduler, 0, HOUR), []);
    assert_eq!(scheduler.next(10), []);
    assert_eq!(scheduler.wait(at(HOUR)), WAIT_MAX);
}

#[test]
fn what_runs_when_is_listed_in_order() {
    let scheduler = scheduler(vec![schedule("a", "0 * * * *"), schedule("b", "30 1 * * *")]);
    let upcoming = |schedule: &str, after: u64| Upcoming {
        tick: MIDNIGHT + after,
        schedule: schedule.to_owned(),
    };
    let expected = [
        upcoming("a", HOUR),
        upcoming("b", HOUR + 1800),
        upcoming("a", 2 * HOUR),
        upcoming("a", 3 * HOUR),
    ];
    assert_eq!(scheduler.next(4), expected);
    assert_eq!(scheduler.next(usize::MAX).len(), NEXT_MAX);
}

#[test]
fn a_host_that_slept_has_missed_what_was_due_and_says_so() {
    let mut scheduler = scheduler(vec![schedule("nightly", "0 2 * * *")]);
    pass(&mut scheduler, 0, HOUR);
    let woken = scheduler.handle(at(5 * HOUR), Event::Elapsed);
    let slept = Notice::Asleep(Duration::from_secs(4 * HOUR));
    assert_eq!(woken, [slept, missed("nightly", 2 * HOUR, 2 * HOUR, 1, Lost::Absent)]);
}

#[test]
fn a_window_continues_while_the_host_sleeps() {
    let mut scheduler = scheduler(vec![schedule("nightly", "0 2 * * *")]);
    pass(&mut scheduler, 0, 2 * HOUR);
    let woken = scheduler.handle(at(5 * HOUR), Event::Elapsed);
    assert_eq!(woken[1..], [Notice::End(trigger("nightly", 2 * HOUR))]);
}

#[test]
fn a_clock_that_is_put_forward_misses_what_was_between() {
    let mut scheduler = scheduler(vec![schedule("nightly", "0 2 * * *")]);
    pass(&mut scheduler, 0, HOUR);
    let clock = Notice::ClockSet { by_seconds: 7200, again: Vec::new() };
    let missed = missed("nightly", 2 * HOUR, 2 * HOUR, 1, Lost::Absent);
    assert_eq!(scheduler.handle(set(HOUR, 7200), Event::Elapsed), [clock, missed]);
}

#[test]
fn a_clock_that_is_set_back_a_little_makes_nothing_come_again() {
    let mut scheduler = scheduler(vec![schedule("nightly", "0 2 * * *")]);
    pass(&mut scheduler, 0, 2 * HOUR);
    scheduler.handle(at(2 * HOUR), Event::Ended);
    let back = scheduler.handle(set(2 * HOUR, -7200), Event::Elapsed);
    assert_eq!(back, [Notice::ClockSet { by_seconds: -7200, again: Vec::new() }]);
    let rest = (2 * HOUR..6 * HOUR).step_by(30);
    let said: Vec<Notice> =
        rest.flat_map(|seconds| scheduler.handle(set(seconds, -7200), Event::Elapsed)).collect();
    assert_eq!(said, []);
}

#[test]
fn a_clock_corrected_by_hours_resets_the_schedules() {
    let mut scheduler = scheduler(vec![schedule("nightly", "0 2 * * *")]);
    let year = 365 * 24 * HOUR;
    scheduler.handle(set(30, year.cast_signed()), Event::Elapsed);
    let right = scheduler.handle(at(60), Event::Elapsed);
    let again = vec!["nightly".to_owned()];
    assert_eq!(right, [Notice::ClockSet { by_seconds: -year.cast_signed(), again }]);
    let said = pass(&mut scheduler, 90, 2 * HOUR);
    assert_eq!(said, [due("nightly", 2 * HOUR, 0, Punctuality::OnTime)]);
}

#[test]
fn a_window_is_not_longer_or_shorter_for_a_clock_that_is_set() {
    for by in [-1800, 1800] {
        let mut scheduler = scheduler(vec![schedule("nightly", "0 2 * * *")]);
        pass(&mut scheduler, 0, 2 * HOUR);
        let ticks = (2 * HOUR..3 * HOUR).step_by(30);
        let mut said = ticks.flat_map(|seconds| scheduler.handle(set(seconds, by), Event::Elapsed));
        assert_eq!(said.next(), Some(Notice::ClockSet { by_seconds: by, again: Vec::new() }));
        assert_eq!(said.next(), None);
        drop(said);
        let end = scheduler.handle(set(3 * HOUR, by), Event::Elapsed);
        assert_eq!(end, [Notice::End(trigger("nightly", 2 * HOUR))]);
    }
}

#[test]
fn a_clock_that_is_slewed_was_not_set() {
    let mut scheduler = scheduler(vec![schedule("nightly", "0 2 * * *")]);
    // Half a thousandth: the kernel's largest slew.
    for step in 1..2000_u64 {
        let mut moment = at(step * 30);
        moment.wall += Duration::from_millis(step * 15);
        let said = scheduler.handle(moment, Event::Elapsed);
        assert!(!said.iter().any(|notice| matches!(notice, Notice::ClockSet { .. })), "{said:?}");
    }
}

#[test]
fn a_last_run_in_a_wrong_future_does_not_stop_a_schedule() {
    let last = BTreeMap::from([("nightly".to_owned(), MIDNIGHT + 365 * 24 * HOUR)]);
    let mut scheduler = Scheduler::new(vec![schedule("nightly", "0 2 * * *")], &last, at(0));
    assert_eq!(
        pass(&mut scheduler, 0, 2 * HOUR),
        [due("nightly", 2 * HOUR, 0, Punctuality::OnTime)]
    );
}

/// An event on a host.
#[derive(Debug, Clone, Copy)]
enum Fate {
    /// This many seconds pass.
    Passes(u64),
    /// The clock is set by this many seconds.
    Set(i64),
    /// The current run ends.
    Ends,
    /// An operator requests a run.
    Wanted,
}

fn fates(clock_is_set: std::ops::Range<i64>) -> impl Strategy<Value = Vec<Fate>> {
    let fate = prop_oneof![
        8 => (1_u64..3000).prop_map(Fate::Passes),
        1 => (3000_u64..20_000).prop_map(Fate::Passes),
        2 => clock_is_set.prop_map(Fate::Set),
        4 => Just(Fate::Ends),
        1 => Just(Fate::Wanted),
    ];
    prop::collection::vec(fate, 1..120)
}

fn some_schedules() -> impl Strategy<Value = Vec<Schedule>> {
    let crons =
        prop::sample::select(vec!["*/10 * * * *", "0 * * * *", "30 */3 * * *", "7,9 2-5 * * *"]);
    let missed = prop::option::of(60_u64..3600);
    let one = (crons, missed, 60_u64..9000, prop::bool::ANY, prop::bool::weighted(0.9));
    prop::collection::vec(one, 1..5).prop_map(|all| {
        let named = all.into_iter().enumerate();
        let one = |(index, (cron, missed, window, skip, enabled)): (
            usize,
            (&str, Option<u64>, u64, bool, bool),
        )| Schedule {
            window: Duration::from_secs(window),
            overlap: if skip { Overlap::Skip } else { Overlap::Queue },
            missed: missed.map_or(Missing::Skip, catch_up),
            enabled,
            ..schedule(&format!("s{index}"), cron)
        };
        named.map(one).collect()
    })
}

/// Runs through `fates` and checks the invariants after each. Returns the final time.
fn live(
    scheduler: &mut Scheduler,
    schedules: &[Schedule],
    fates: &[Fate],
    mut inspect: impl FnMut(&Notice),
) -> Moment {
    let mut now = at(0);
    for fate in fates {
        let mut event = Event::Elapsed;
        match *fate {
            Fate::Passes(seconds) => {
                now.wall += Duration::from_secs(seconds);
                now.uptime += Duration::from_secs(seconds);
            }
            Fate::Set(by) => {
                now.wall = Duration::from_secs(now.wall.as_secs().saturating_add_signed(by));
            }
            Fate::Ends => event = Event::Ended,
            Fate::Wanted => event = Event::ManualWanted,
        }
        let was_running = event != Event::Ended && scheduler.running().is_some();
        let mut begun = 0;
        for notice in scheduler.handle(now, event) {
            inspect(&notice);
            let Notice::Due(due) = notice else { continue };
            begun += 1;
            if let Trigger::Schedule { name, tick } = due.trigger {
                let schedule = schedules.iter().find(|one| one.name == name).unwrap();
                assert!(schedule.enabled);
                assert_eq!(schedule.cron.until(tick), Some(tick), "no time of {name}");
                assert_eq!(due.lag, lag(now, tick));
                assert_eq!(due.window, Some(schedule.window - due.lag));
                assert!(due.lag < schedule.window);
            }
        }
        assert!(begun <= usize::from(!was_running), "two runs at a time");
        assert!(scheduler.wait(now) <= WAIT_MAX);
    }
    now
}

proptest! {
    /// However clocks are set, no run begins twice for one time, unless a notice announced it.
    #[test]
    fn never_runs_twice_for_one_time(schedules in some_schedules(), fates in fates(-40_000..40_000)) {
        let mut scheduler = scheduler(schedules.clone());
        let mut ran = std::collections::BTreeSet::new();
        live(&mut scheduler, &schedules, &fates, |notice| match notice {
            Notice::ClockSet { again, .. } => ran.retain(|(name, _)| !again.contains(name)),
            Notice::Due(Due { trigger: Trigger::Schedule { name, tick }, .. }) => {
                assert!(ran.insert((name.clone(), *tick)), "{name} ran twice for {tick}");
            }
            _ => {}
        });
    }

    /// Each time is accounted for once: it ran, was missed, or is queued. This also holds when
    /// clocks are set forward.
    #[test]
    fn every_time_is_accounted_for(schedules in some_schedules(), fates in fates(0..3600)) {
        let mut scheduler = scheduler(schedules.clone());
        let mut reported = BTreeMap::<String, u64>::new();
        let now = live(&mut scheduler, &schedules, &fates, |notice| match notice {
            Notice::Due(Due { trigger: Trigger::Schedule { name, .. }, .. }) => {
                *reported.entry(name.clone()).or_default() += 1;
            }
            Notice::Missed(missed) => *reported.entry(missed.schedule.clone()).or_default() += missed.count,
            _ => {}
        });
        for entry in &scheduler.entries {
            let Schedule { name, cron, enabled, .. } = &entry.schedule;
            let next = |tick: &u64| cron.after(*tick).filter(|tick| *tick <= now.wall.as_secs());
            let all = std::iter::successors(next(&MIDNIGHT), next).count() as u64;
            let expected = if *enabled { all } else { 0 };
            let waits = u64::from(entry.queued.is_some());
            prop_assert_eq!(reported.get(name).copied().unwrap_or_default() + waits, expected, "{}", name);
            prop_assert_eq!(entry.tally.begun + entry.tally.missed + waits, expected);
        }
    }
}
