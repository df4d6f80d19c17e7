//! The laws of balloons.

use std::time::Duration;

use super::*;
use crate::ledger::Level;
use crate::policy::GuestRule;
use crate::situation::{Backing, Guest, Hindrance, Pressure};

const MAX: Goal = Goal::MaxDensity;

fn balanced() -> Policy {
    Policy::default()
}

#[test]
fn an_idle_guest_shrinks_by_one_step() {
    let host = situation(50, vec![idle_guest("a", 8 * GIB, GIB)]);
    let (plan, _) = settled(&host, &balanced(), MAX);
    // 5 % would be 409 MiB; a step is 256 MiB at most.
    assert_eq!(set_to(&plan, "a"), Some(8 * GIB - 256 * MIB));
    assert_eq!(plan.expected_bytes, 256 << 20);
    // Its floor is a quarter of 8 GiB.
    assert_eq!(plan.later_bytes, 6 * GIB - 256 * MIB);
    let said = plan.steps[0].to_string();
    assert!(
        said.starts_with("a: balloon from 8 GiB to 7.75 GiB (256 MiB): the goal asks"),
        "{said}"
    );
}

#[test]
fn a_goal_out_of_reach_is_told_with_what_is_missing_and_why() {
    let mut driverless = idle_guest("b", 8 * GIB, GIB);
    balloon(&mut driverless).has_driver = false;
    let paused = Guest { hindrance: Some(Hindrance::Paused), ..idle_guest("c", 8 * GIB, GIB) };
    let host = situation(50, vec![idle_guest("a", 8 * GIB, GIB), driverless, paused]);
    let missed = |goal| settled(&host, &balanced(), goal).0.missed;
    let all = missed(Goal::Free(20 * GIB)).unwrap();
    let why = "1 guest: it is paused; 1 guest: no driver in the guest serves the balloon";
    assert_eq!((all.bytes, all.reason.as_str()), (14 * GIB, why));
    // Later rounds return the rest of what one step does not.
    assert_eq!(missed(Goal::Free(5 * GIB)), None);
    assert_eq!(missed(MAX), None);
}

#[test]
fn a_guest_gets_all_that_it_needs_at_once() {
    let mut guest = idle_guest("a", 8 * GIB, 3 * GIB);
    balloon(&mut guest).target_bytes = 3 * GIB;
    balloon(&mut guest).actual_bytes = 3 * GIB;
    *said(&mut guest) = statistics(3 * GIB, 3 * GIB - 100 * MIB);
    let (plan, _) = settled(&situation(50, vec![guest]), &balanced(), MAX);
    let demand = 3 * GIB - 100 * MIB;
    assert_eq!(set_to(&plan, "a"), Some(demand + demand / 5));
}

#[test]
fn a_guest_that_boots_gives_nothing_and_gets_what_it_needs() {
    let mut guest = idle_guest("a", 8 * GIB, GIB);
    guest.since_boot = Some(Duration::from_secs(20));
    let booting = situation(50, vec![guest]);
    let plan = round(&booting, &balanced(), &mut Ledger::default(), &MAX);
    let left = Duration::from_secs(70);
    assert_eq!(why(&plan, "a", Actuator::Balloon), SkipReason::Booting { left });
    // A limit by its operator waits as well.
    let limited = Policy::parse("[[guest]]\nmax = \"4GiB\"", "f").unwrap();
    let plan = round(&booting, &limited, &mut Ledger::default(), &MAX);
    assert_eq!(why(&plan, "a", Actuator::Balloon), SkipReason::Booting { left });

    let mut settled = later(&booting, 80);
    settled.guests[0].since_boot = Some(Duration::from_secs(100));
    let plan = round(&settled, &balanced(), &mut Ledger::default(), &MAX);
    assert_eq!(set_to(&plan, "a"), Some(8 * GIB - 256 * MIB));

    let mut short = booting;
    balloon(&mut short.guests[0]).target_bytes = 3 * GIB;
    balloon(&mut short.guests[0]).actual_bytes = 3 * GIB;
    let demand = 3 * GIB - 100 * MIB;
    *said(&mut short.guests[0]) = statistics(3 * GIB, demand);
    let plan = round(&short, &balanced(), &mut Ledger::default(), &MAX);
    assert_eq!(set_to(&plan, "a"), Some(demand + demand / 5));
    said(&mut short.guests[0]).available_bytes = Some(3 * GIB);
    let plan = round(&short, &balanced(), &mut Ledger::default(), &Goal::Keep(0.1));
    assert!(set_to(&plan, "a") > Some(3 * GIB), "the host has it to spare: {plan:#?}");
}

/// Waiting for a balloon ends because one that does not move is given up. A movement too small to
/// be detected is not waited for.
#[test]
fn a_balloon_is_on_its_way_only_where_it_can_be_seen_to_move() {
    let text = "[balloon]\nreserve-min = \"1MiB\"\ndead-band-min = \"0\"\nstep = \"0.1%\"\ntimeout = \"5m\"";
    let small_step = Policy::parse(text, "f").unwrap();
    let limited = Policy::parse(&format!("{text}\n[[guest]]\nmax = \"16MiB\""), "f").unwrap();
    for policy in [&small_step, &limited] {
        for (open_bytes, waits) in [(MIB, false), (2 * MIB, true)] {
            let mut guest = idle_guest("a", 64 * MIB, 8 * MIB);
            balloon(&mut guest).target_bytes = 64 * MIB - open_bytes;
            let (plan, _) = settled(&situation(50, vec![guest]), policy, MAX);
            assert_eq!(plan.waits_for_balloons(), waits, "{open_bytes}: {plan:#?}");
        }
    }
}

#[test]
fn a_guest_above_its_limit_is_waited_for_as_far_as_it_can_be_seen_to_move() {
    let law = |text: &str| {
        let text = format!("[balloon]\n{text}\n[[guest]]\nname = \"a\"\nmax = \"1GiB\"");
        Policy::parse(&text, "f").unwrap()
    };
    let wide = law("dead-band-min = \"1GiB\"\nstep = \"0.1%\"\ntimeout = \"5m\"");
    let mut fine = law("timeout = \"5m\"");
    fine.balloon.step_max_bytes = 512 << 10;
    for (policy, open_bytes, skip_reason) in
        [(&wide, 100 * MIB, SkipReason::Settling), (&fine, MIB, SkipReason::WithinDeadBand)]
    {
        let mut guest = idle_guest("a", 8 * GIB, GIB / 2);
        balloon(&mut guest).target_bytes = 8 * GIB - open_bytes;
        let (plan, _) = settled(&situation(50, vec![guest]), policy, MAX);
        assert_eq!(why(&plan, "a", Actuator::Balloon), skip_reason, "{plan:#?}");
        assert!(plan.steps.is_empty(), "{plan:#?}");
    }
}

#[test]
fn a_guest_that_does_not_answer_may_do_so_the_next_time() {
    for (hindrance, waits) in [(Hindrance::Unreachable, true), (Hindrance::Paused, false)] {
        let mut guest = idle_guest("a", 8 * GIB, GIB);
        guest.hindrance = Some(hindrance);
        let (plan, _) = settled(&situation(50, vec![guest]), &balanced(), MAX);
        assert_eq!(plan.waits_for_answers(), waits, "{plan:#?}");
        assert!(!plan.waits_for_balloons() && plan.steps.is_empty(), "{plan:#?}");
    }
}

#[test]
fn unseen_memory_is_not_requested_and_is_not_a_hole() {
    // The guest sees half of its 8 GiB, all of which is present, and uses 1 GiB of it.
    let mut guest = idle_guest("a", 8 * GIB, GIB);
    guest.cost.resident_bytes = 4 * GIB;
    *said(&mut guest) = statistics(4 * GIB, GIB);
    said(&mut guest).free_bytes = Some(3 * GIB);
    let (plan, ledger) = settled(&situation(50, vec![guest]), &balanced(), MAX);
    let (kernel, unseen) = (GIB / 2, 7 * GIB / 2);
    assert_eq!(ledger.guests["a"].needs_bytes(), Some(GIB + kernel + unseen));
    let low = GIB + kernel + (GIB + kernel) / 5 + unseen;
    assert_eq!(set_to(&plan, "a"), Some(8 * GIB - 256 * MIB));
    // The half GiB that its kernel may have taken counts as free but not present.
    let there = 5 * GIB / 2;
    let all = u128::from(8 * GIB - low) * u128::from(there) / u128::from(3 * GIB);
    assert_eq!(u128::try_from(plan.expected_bytes).unwrap() + u128::from(plan.later_bytes), all);
}

#[test]
fn what_is_too_little_to_move_is_not_the_hosts_fault() {
    let mut policy = balanced();
    policy.balloon.reserve_min_bytes = MIB;
    policy.balloon.dead_band_min_bytes = MIB;
    let lacking = |missing: u64| {
        let mut guest = idle_guest("a", 256 * MIB, 96 * MIB);
        // A demand of 80 MiB plus a reserve of a fifth.
        balloon(&mut guest).target_bytes = 96 * MIB - missing;
        balloon(&mut guest).actual_bytes = 96 * MIB - missing;
        *said(&mut guest) = statistics(96 * MIB - missing, 80 * MIB);
        settled(&situation(50, vec![guest]), &policy, MAX).0
    };
    assert_eq!(why(&lacking(3 * MIB), "a", Actuator::Balloon), SkipReason::WithinDeadBand);
    assert_eq!(set_to(&lacking(6 * MIB), "a"), Some(96 * MIB));
}

#[test]
fn pressure_gives_everything_back_in_the_same_round() {
    let mut guest = idle_guest("a", 8 * GIB, GIB);
    balloon(&mut guest).target_bytes = 4 * GIB;
    balloon(&mut guest).actual_bytes = 4 * GIB;
    // This holds even on a host that has nothing left.
    let before = situation(2, vec![guest]);
    let signs: [fn(&mut crate::situation::Statistics); 6] = [
        |it| it.oom_kills = Some(1),
        |it| it.allocation_stalls = Some(60),
        |it| it.direct_reclaim_bytes = Some(60 << 20),
        |it| it.major_faults = Some(60 * 1000),
        |it| it.swap_in_bytes = Some(600 << 20),
        |it| it.age = Duration::from_secs(60),
    ];
    for sign in signs {
        let mut ledger = Ledger::default();
        let first = round(&before, &balanced(), &mut ledger, &MAX);
        assert_ne!(set_to(&first, "a"), Some(8 * GIB), "no pressure yet");
        let mut hurt = later(&before, 60);
        sign(said(&mut hurt.guests[0]));
        let plan = round(&hurt, &balanced(), &mut ledger, &MAX);
        assert_eq!(set_to(&plan, "a"), Some(8 * GIB));
        assert!(plan.steps[0].reason.starts_with("under memory pressure: "), "{}", plan.steps[0]);
        // Nothing is taken before the cooldown is over, although the sign is gone.
        let mut calm = later(&hurt, 200);
        balloon(&mut calm.guests[0]).target_bytes = 8 * GIB;
        balloon(&mut calm.guests[0]).actual_bytes = 8 * GIB;
        said(&mut calm.guests[0]).age = Duration::from_secs(1);
        let plan = round(&calm, &balanced(), &mut ledger, &MAX);
        assert!(
            matches!(why(&plan, "a", Actuator::Balloon), SkipReason::Spared { .. }),
            "{plan:?}"
        );
        let plan = round(&later(&calm, 200), &balanced(), &mut ledger, &MAX);
        assert!(set_to(&plan, "a") < Some(8 * GIB), "{plan:?}");
    }
}

#[test]
fn a_balloon_that_does_not_move_is_given_up_and_benched() {
    let mut guest = idle_guest("a", 8 * GIB, GIB);
    balloon(&mut guest).target_bytes = 6 * GIB;
    balloon(&mut guest).actual_bytes = 7 * GIB;
    let now = situation(50, vec![guest]);
    let mut ledger = Ledger::default();
    let plan = round(&now, &balanced(), &mut ledger, &MAX);
    assert_eq!(why(&plan, "a", Actuator::Balloon), SkipReason::Settling);
    let mut now = later(&now, 30);
    let plan = round(&now, &balanced(), &mut ledger, &MAX);
    assert_eq!(set_to(&plan, "a"), Some(7 * GIB), "what it has");
    balloon(&mut now.guests[0]).target_bytes = 7 * GIB;
    let plan = round(&later(&now, 10), &balanced(), &mut ledger, &MAX);
    let skip_reason = why(&plan, "a", Actuator::Balloon).to_string();
    assert!(
        skip_reason.starts_with("benched for 59m 50s: the balloon did not move for 30s"),
        "{skip_reason}"
    );
    let plan = round(&later(&now, 3700), &balanced(), &mut ledger, &MAX);
    assert!(set_to(&plan, "a") < Some(7 * GIB), "it may try again");
}

#[test]
fn a_balloon_that_creeps_is_not_stuck() {
    let mut guest = idle_guest("a", 8 * GIB, GIB);
    balloon(&mut guest).target_bytes = 6 * GIB;
    let mut now = situation(50, vec![guest]);
    let mut ledger = Ledger::default();
    for _ in 0..100 {
        balloon(&mut now.guests[0]).actual_bytes -= MIB;
        now = later(&now, 10);
        let plan = round(&now, &balanced(), &mut ledger, &MAX);
        assert_eq!(why(&plan, "a", Actuator::Balloon), SkipReason::Settling);
    }
}

#[test]
fn steps_no_longer_wanted_are_skipped_with_a_reason() {
    let skip_reason = |change: fn(&mut crate::situation::Guest), goal, available| {
        let mut guest = idle_guest("a", 8 * GIB, GIB);
        change(&mut guest);
        let (plan, _) = settled(&situation(available, vec![guest]), &balanced(), goal);
        assert_eq!(set_to(&plan, "a"), None, "{plan:?}");
        why(&plan, "a", Actuator::Balloon)
    };
    assert_eq!(skip_reason(|_| {}, Goal::Keep(0.3), 31), SkipReason::HostHasEnough);
    assert_eq!(skip_reason(|_| {}, Goal::Free(0), 50), SkipReason::HostHasEnough);
    assert_eq!(skip_reason(|it| it.balloon = None, MAX, 50), SkipReason::NoBalloon);
    assert_eq!(skip_reason(|it| balloon(it).has_driver = false, MAX, 50), SkipReason::NoDriver);
    assert_eq!(skip_reason(|it| balloon(it).statistics = None, MAX, 50), SkipReason::NoStatistics);
    let backing = Backing::HugePool;
    assert_eq!(
        skip_reason(|it| it.backing = Backing::HugePool, MAX, 50),
        SkipReason::WrongBacking { backing }
    );
    assert_eq!(
        skip_reason(|it| it.hindrance = Some(Hindrance::Migrating), MAX, 1),
        SkipReason::Hindered { by: Hindrance::Migrating }
    );
    assert_eq!(
        skip_reason(|it| *it = idle_guest("a", 8 * GIB, 6 * GIB + 650 * MIB), MAX, 50),
        SkipReason::WithinDeadBand
    );
    // Everything unused is a hole already, because of free page reporting.
    assert_eq!(
        skip_reason(
            |it| {
                it.cost.resident_bytes = GIB;
                said(it).free_bytes = Some(7 * GIB);
            },
            MAX,
            50
        ),
        SkipReason::NothingToGain
    );
}

#[test]
fn opted_out_guests_are_unchanged_even_under_pressure() {
    let policy = Policy::parse("[[guest]]\nname = \"a\"\noptimize = false", "f").unwrap();
    let mut host = situation(1, vec![idle_guest("a", 8 * GIB, GIB)]);
    balloon(&mut host.guests[0]).target_bytes = GIB;
    let mut ledger = Ledger::default();
    let _ = round(&host, &policy, &mut ledger, &MAX);
    said(&mut host.guests[0]).oom_kills = Some(5);
    let plan = round(&later(&host, 10), &policy, &mut ledger, &MAX);
    assert!(plan.steps.is_empty());
    assert_eq!(why(&plan, "a", Actuator::Balloon), SkipReason::OptedOut);
}

#[test]
fn a_guest_that_nothing_is_taken_from_keeps_its_pages_and_gets_what_it_needs() {
    let policy = Policy::parse("[[guest]]\nname = \"a\"\ntake = false", "f").unwrap();
    let mut host = situation(3, vec![idle_guest("a", 8 * GIB, GIB)]);
    let (plan, _) = settled(&host, &policy, MAX);
    for actuator in [Actuator::Balloon, Actuator::Merge, Actuator::Huge, Actuator::Zeros] {
        assert_eq!(why(&plan, "a", actuator), SkipReason::NotTaken, "{actuator}");
    }
    balloon(&mut host.guests[0]).target_bytes = 4 * GIB;
    balloon(&mut host.guests[0]).actual_bytes = 4 * GIB;
    *said(&mut host.guests[0]) = statistics(4 * GIB, 3 * GIB);
    let mut ledger = Ledger::default();
    let _ = round(&host, &policy, &mut ledger, &MAX);
    said(&mut host.guests[0]).oom_kills = Some(1);
    let plan = round(&later(&host, 10), &policy, &mut ledger, &MAX);
    assert_eq!(set_to(&plan, "a"), Some(8 * GIB));
}

#[test]
fn a_limit_is_approached_by_steps_whatever_the_goal() {
    let mut policy = balanced();
    let max_bytes = Some(4 * GIB);
    policy.guests.push(GuestRule { max_bytes, ..GuestRule::default() });
    let host = situation(80, vec![idle_guest("a", 8 * GIB, 3 * GIB)]);
    let (plan, _) = settled(&host, &policy, Goal::Keep(0.2));
    assert_eq!(set_to(&plan, "a"), Some(8 * GIB - 256 * MIB));
    assert!(plan.steps[0].reason.contains("limit is 4 GiB"), "{}", plan.steps[0]);
}

#[test]
fn a_goal_takes_no_more_than_it_asks_for() {
    let guests = ["a", "b", "c"].map(|name| idle_guest(name, 8 * GIB, GIB));
    let (plan, _) = settled(&situation(50, guests.to_vec()), &balanced(), Goal::Free(300 * MIB));
    let taken = plan.expected_bytes as u64;
    assert!((297 * MIB..=300 * MIB).contains(&taken), "{taken}");
    assert_eq!(plan.steps.len(), 3, "equal guests share it");
}

#[test]
fn what_is_under_way_is_not_asked_for_again() {
    let mut moving = idle_guest("a", 8 * GIB, GIB);
    balloon(&mut moving).target_bytes = 8 * GIB - 200 * MIB;
    let host = situation(50, vec![moving.clone(), idle_guest("b", 8 * GIB, GIB)]);
    let mut ledger = Ledger::default();
    let plan = round(&host, &balanced(), &mut ledger, &Goal::Free(300 * MIB));
    assert_eq!(why(&plan, "a", Actuator::Balloon), SkipReason::Settling);
    let taken = |plan: &Plan| (8 * GIB - set_to(plan, "b").expect("a step")).div_ceil(MIB);
    assert!((99..=100).contains(&taken(&plan)), "to the next whole MiB: {}", taken(&plan));
    // A device that claims the size of the whole host spares the others one step, no more.
    balloon(&mut moving).actual_bytes = 64 * GIB;
    let host = situation(50, vec![moving, idle_guest("b", 8 * GIB, GIB)]);
    let plan = round(&host, &balanced(), &mut Ledger::default(), &Goal::Free(300 * MIB));
    assert!((43..=44).contains(&taken(&plan)), "{}", taken(&plan));
}

#[test]
fn when_the_host_is_short_the_idle_and_the_unimportant_give_first() {
    let policy = Policy::parse("[[guest]]\nname = \"vip\"\npriority = 1000", "f").unwrap();
    let guests = vec![
        idle_guest("busy", 8 * GIB, 5 * GIB),
        idle_guest("idle", 8 * GIB, GIB),
        idle_guest("vip", 8 * GIB, GIB),
    ];
    // Amber ends at 22 % available: 1.28 GiB are missing, and a step is 256 MiB.
    let (plan, ledger) = settled(&situation(19, guests.clone()), &balanced(), Goal::Keep(0.1));
    assert_eq!(ledger.level, Level::Amber);
    assert!(set_to(&plan, "idle").is_some() && set_to(&plan, "vip").is_some(), "{plan:#?}");
    assert_eq!(why(&plan, "busy", Actuator::Balloon), SkipReason::HostHasEnough);
    let (plan, _) = settled(&situation(19, guests), &policy, Goal::Keep(0.1));
    assert_eq!(set_to(&plan, "idle"), Some(8 * GIB - 256 * MIB));
    assert_eq!(set_to(&plan, "vip"), None, "{plan:#?}");
}

#[test]
fn a_red_host_takes_reserves_and_longer_steps() {
    let mut host = situation(30, vec![idle_guest("a", 8 * GIB, 7 * GIB)]);
    let (plan, _) = settled(&host, &balanced(), Goal::Keep(0.1));
    assert_eq!(set_to(&plan, "a"), None, "reserve");
    let stalled = Pressure { some_10s: 0.5, full_10s: 0.2, some_60s: 0.1, full_60s: 0.1 };
    host.host.pressure = Some(stalled);
    host.host.available_bytes = 10 * GIB;
    let (plan, ledger) = settled(&host, &balanced(), Goal::Keep(0.1));
    assert_eq!(ledger.level, Level::Red);
    assert_eq!(set_to(&plan, "a"), Some(7 * GIB), "all but what it uses, in one step");
}

#[test]
fn guests_that_grow_share_what_the_host_has() {
    let mut guests = vec![idle_guest("a", 16 * GIB, 0), idle_guest("b", 16 * GIB, 0)];
    for guest in &mut guests {
        balloon(guest).target_bytes = 4 * GIB;
        balloon(guest).actual_bytes = 4 * GIB;
        // By their averages the guests need more than they have.
        *said(guest) = statistics(4 * GIB, 4 * GIB);
    }
    let host = situation(6, guests);
    let (plan, _) = settled(&host, &balanced(), MAX);
    // Red begins below 5 %: 1 % of 64 GiB is left, half of it for each.
    let (a, b) = (set_to(&plan, "a").unwrap(), set_to(&plan, "b").unwrap());
    assert!(a == b && a > 4 * GIB && a < 4 * GIB + 400 * MIB, "{a}");
}

#[test]
fn spare_memory_returns_to_the_guests() {
    let mut guest = idle_guest("a", 8 * GIB, GIB);
    balloon(&mut guest).target_bytes = 4 * GIB;
    balloon(&mut guest).actual_bytes = 4 * GIB;
    *said(&mut guest) = statistics(4 * GIB, GIB);
    let (plan, _) = settled(&situation(60, vec![guest.clone()]), &balanced(), Goal::Keep(0.2));
    assert_eq!(set_to(&plan, "a"), Some(4 * GIB + 204 * MIB));
    let (plan, _) = settled(&situation(60, vec![guest.clone()]), &balanced(), MAX);
    assert!(set_to(&plan, "a") < Some(4 * GIB));
    let (plan, _) = settled(&situation(22, vec![guest]), &balanced(), Goal::Keep(0.2));
    assert_eq!(set_to(&plan, "a"), None, "neither short nor rich");
}

#[test]
fn a_driver_without_reporting_is_reported_to_the_operator() {
    let mut guest = idle_guest("a", 8 * GIB, GIB);
    balloon(&mut guest).reports_free_pages = false;
    said(&mut guest).free_bytes = Some(2 * GIB);
    let (plan, _) = settled(&situation(50, vec![guest]), &balanced(), MAX);
    assert_eq!(plan.advice.len(), 1);
    assert!(
        plan.advice[0]
            .to_string()
            .contains("free page reporting of its balloon (2 GiB are free now)")
    );
}

#[test]
fn two_guests_of_one_name_are_not_confused() {
    let mut twin = idle_guest("a", 4 * GIB, GIB);
    twin.pid += 1;
    let host = situation(50, vec![twin, idle_guest("a", 8 * GIB, GIB)]);
    let (plan, _) = settled(&host, &balanced(), MAX);
    assert_eq!(why(&plan, "a", Actuator::Balloon), SkipReason::NameTaken);
    assert!(plan.steps.len() <= 1);
}
