//! What the ledger remembers, and what it does not.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::plan::fixture::*;
use crate::policy::Policy;
use crate::situation::{Guest, Hindrance, Pressure, Vmm};
use crate::units::{GIB, MIB};
use crate::verify::Verdict;

/// A ledger that observed `samples`.
fn observed(samples: &[Situation]) -> Ledger {
    let mut ledger = Ledger::default();
    for sample in samples {
        ledger.observe(sample, &Policy::default());
    }
    ledger
}

/// A sample `seconds` after the first, of a guest of 8 GiB that uses `used`.
fn using(seconds: u64, used: u64) -> Situation {
    later(&situation(50, vec![idle_guest("a", 8 * GIB, used)]), seconds)
}

fn demand(ledger: &Ledger) -> u64 {
    ledger.guests["a"].demand.expect("it said").bytes()
}

#[test]
fn demand_rises_at_once_and_falls_slowly() {
    let mut samples = vec![using(0, GIB), using(10, 4 * GIB)];
    assert_eq!(demand(&observed(&samples)), 4 * GIB);
    samples.extend((2..62).map(|round| using(round * 10, GIB)));
    let later = demand(&observed(&samples));
    // After ten seconds, the slow average has seen 4 GiB for a sixtieth of its ten minutes, the
    // fast one for a sixth of its minute.
    assert!(later > GIB && later < GIB + 100 * MIB, "{later}");
    let mut samples = vec![using(0, 4 * GIB), using(10, GIB)];
    assert!(demand(&observed(&samples)) > 3 * GIB, "ten seconds later");
    samples.push(using(600, GIB));
    let later = demand(&observed(&samples));
    assert!((2 * GIB..3 * GIB).contains(&later), "ten minutes later: {later}");
    samples.push(using(86_400, GIB));
    assert!(demand(&observed(&samples)) < GIB + 50 * MIB, "a day later");
}

#[test]
fn a_driver_that_counts_the_balloon_as_used_makes_no_demand_of_it() {
    let mut sample = using(0, GIB);
    balloon(&mut sample.guests[0]).actual_bytes = 4 * GIB;
    // The guest sees all of its RAM, and the memory in the balloon is not available.
    *said(&mut sample.guests[0]) = statistics(8 * GIB, 5 * GIB);
    assert_eq!(demand(&observed(&[sample])), GIB);
}

#[test]
fn what_the_kernel_keeps_for_itself_is_demand() {
    let mut sample = using(0, GIB);
    said(&mut sample.guests[0]).total_bytes = Some(8 * GIB - 200 * MIB);
    said(&mut sample.guests[0]).available_bytes = Some(7 * GIB - 200 * MIB);
    assert_eq!(demand(&observed(&[sample])), GIB + 200 * MIB);
}

/// A guest of 8 GiB that uses 1 GiB of the 5 GiB that it sees (`mem=5G`); its kernel uses a
/// sixteenth. It has `has`, and if it `follows`, its driver subtracts the balloon from its total.
fn limited(seconds: u64, has: u64, said_with: u64, follows: bool) -> Situation {
    let mut sample = using(seconds, GIB);
    let guest = &mut sample.guests[0];
    (balloon(guest).target_bytes, balloon(guest).actual_bytes) = (has, has);
    let ballooned = 8 * GIB - said_with;
    *said(guest) = statistics(5 * GIB - ballooned, GIB);
    if !follows {
        said(guest).total_bytes = Some(5 * GIB);
    }
    sample
}

#[test]
fn unseen_memory_is_distinguished_from_a_moving_balloon() {
    for follows in [false, true] {
        let mut ledger = Ledger::default();
        let mut needs = |sample: Situation| {
            ledger.observe(&sample, &Policy::default());
            let guest = &ledger.guests["a"];
            assert_eq!(guest.unseen_bytes, 5 * GIB / 2, "{sample:?}");
            guest.needs_bytes().unwrap()
        };
        let all = GIB + GIB / 2 + 5 * GIB / 2;
        assert_eq!(needs(limited(0, 8 * GIB, 8 * GIB, follows)), all);
        assert_eq!(needs(limited(10, 6 * GIB, 6 * GIB, follows)), all, "{follows}");
        assert_eq!(needs(limited(20, 6 * GIB, 6 * GIB, follows)), all, "{follows}");
        // The guest has given more since its statistics were taken: for that sample it seems to
        // need less.
        let moving = needs(limited(30, 5 * GIB, 6 * GIB, follows));
        assert!(moving <= all && moving > all / 100 * 99, "{follows}: {moving}");
        // The guest got everything back since its statistics were taken: it seems to need more, and
        // that falls slowly.
        needs(limited(40, 8 * GIB, 5 * GIB, follows));
        assert!(needs(limited(50, 8 * GIB, 8 * GIB, follows)) >= all, "{follows}");
    }
}

#[test]
fn unseen_memory_may_change_when_the_guest_restarts() {
    let unseen = |samples: &[Situation]| observed(samples).guests["a"].unseen_bytes;
    let mut samples = vec![limited(0, 6 * GIB, 6 * GIB, true)];
    assert_eq!(unseen(&samples), 0, "its balloon may be on its way");
    samples.push(limited(10, 6 * GIB, 6 * GIB, true));
    assert_eq!(unseen(&samples), 5 * GIB / 2);
    let mut silent = limited(20, 6 * GIB, 6 * GIB, true);
    said(&mut silent.guests[0]).total_bytes = None;
    samples.push(silent);
    assert_eq!(unseen(&samples), 5 * GIB / 2, "nothing was told");
    said(&mut samples[2].guests[0]).oom_kills = Some(1);
    let mut restarted = limited(30, 6 * GIB, 6 * GIB, true);
    *said(&mut restarted.guests[0]) = statistics(6 * GIB, GIB);
    samples.push(restarted);
    assert_eq!(unseen(&samples), 0, "its counters went back");
    samples.truncate(2);
    samples.push(using(20, GIB));
    assert_eq!(
        unseen(&samples),
        5 * GIB / 2,
        "what it says may be from before its balloon was empty"
    );
    samples.push(using(30, GIB));
    assert_eq!(unseen(&samples), 0, "its balloon is empty");
}

#[test]
fn a_guest_boots_until_its_services_have_started() {
    let boots_for = |samples: &[Situation]| {
        let ledger = observed(samples);
        ledger.guests["a"].boots_for(ledger.uptime).map(|left| left.as_secs())
    };
    let booted = |seconds: u64, since_boot: u64, has_driver: bool| {
        let mut sample = using(seconds, GIB);
        sample.guests[0].since_boot = Some(Duration::from_secs(since_boot));
        balloon(&mut sample.guests[0]).has_driver = has_driver;
        sample
    };
    assert_eq!(boots_for(&[using(0, GIB)]), None, "it was booted elsewhere");
    assert_eq!(boots_for(&[booted(0, 20, true)]), Some(70));
    assert_eq!(boots_for(&[booted(0, 90, true)]), None);
    let slow = [booted(0, 240, false), booted(10, 250, true)];
    assert_eq!(boots_for(&slow), Some(80), "its driver appears late");
    let slower = [booted(0, 590, false), booted(5, 595, true)];
    assert_eq!(boots_for(&slower), Some(5), "and is not waited for without end");
    let by_hand = [booted(0, 86_400, false), booted(10, 86_410, true)];
    assert_eq!(boots_for(&by_hand), None);

    let mut before = using(0, GIB);
    said(&mut before.guests[0]).oom_kills = Some(9);
    assert_eq!(boots_for(&[before, using(30, GIB)]), Some(89), "its counters went back");
}

#[test]
fn a_restarted_guest_is_not_under_pressure() {
    let mut before = using(0, GIB);
    said(&mut before.guests[0]).oom_kills = Some(9);
    let mut after = using(10, GIB);
    said(&mut after.guests[0]).oom_kills = Some(3);
    let ledger = observed(&[before.clone(), after.clone()]);
    assert_eq!(ledger.guests["a"].pressure, None, "its counter went back");
    after.guests[0].pid += 1;
    said(&mut after.guests[0]).oom_kills = Some(12);
    let ledger = observed(&[before.clone(), after.clone()]);
    assert_eq!(ledger.guests["a"].pressure, None, "another process");
    after.guests[0].pid -= 1;
    let ledger = observed(&[before, after]);
    assert_eq!(ledger.guests["a"].pressure.unwrap().cause, PressureSign::OomKill(3));
}

#[test]
fn rates_do_not_depend_on_the_sampling_interval() {
    let pressure_after = |pause_ms: u64, faults: u64, samples: u64| {
        let mut ledger = Ledger::default();
        for round in 0..=samples {
            let mut sample = using(0, GIB);
            sample.uptime += Duration::from_millis(round * pause_ms);
            said(&mut sample.guests[0]).major_faults = Some(round * faults);
            ledger.observe(&sample, &Policy::default());
        }
        ledger.guests["a"].pressure.map(|pressure| pressure.cause)
    };
    // The limit is 100 per second.
    assert_eq!(pressure_after(400, 60, 1), None, "a few, until now");
    assert_eq!(
        pressure_after(400, 60, 2),
        Some(PressureSign::MajorFaults(120.0)),
        "150 each second"
    );
    assert_eq!(pressure_after(400, 38, 20), None, "95 each second");
    assert_eq!(pressure_after(10_000, 950, 2), None);
    assert_eq!(pressure_after(10_000, 1500, 1), Some(PressureSign::MajorFaults(150.0)));
}

/// Time until pressure is detected that begins at `begins_ms` with 150 faults per second, when the
/// guest is inspected every `pause_ms`; 5 s if it is not detected.
fn seen_after(begins_ms: u64, pause_ms: u64) -> u64 {
    let mut ledger = Ledger::default();
    let is_seen = |&ms: &u64| {
        let mut inspected = using(0, GIB);
        inspected.uptime += Duration::from_millis(ms);
        let faults = ms.saturating_sub(begins_ms) * 150 / 1000;
        said(&mut inspected.guests[0]).major_faults = Some(faults);
        ledger.observe(&inspected, &Policy::default());
        ledger.guests["a"].pressure.is_some()
    };
    let end_ms = begins_ms + 5000;
    let seen = (0..end_ms).step_by(pause_ms as usize).find(is_seen);
    seen.unwrap_or(end_ms) - begins_ms
}

#[test]
fn pressure_is_seen_within_a_second_of_its_beginning_whenever_that_is() {
    let late = (10_000..12_000).step_by(50).map(|begins_ms| seen_after(begins_ms, 400));
    let late: Vec<u64> = late.collect();
    // 100 faults take 667 ms, and the next inspection may be 400 ms later.
    assert!(late.iter().all(|&ms| ms <= 667 + 400), "{late:?}");
}

#[test]
fn pressure_detection_does_not_depend_on_the_inspection_interval() {
    for pause_ms in [1, 7, 25, 60, 100, 120, 200, 400] {
        let late = seen_after(10_000, pause_ms);
        assert!((667..=667 + 400 + 125).contains(&late), "{late} ms, inspected each {pause_ms}");
    }
}

#[test]
fn pressure_that_comes_back_is_spared_for_longer() {
    let mut ledger = Ledger::default();
    let mut spared = Vec::new();
    for episode in 0..6_u64 {
        // Half an hour apart.
        for round in 0..2 {
            let mut sample = using(episode * 1800 + round * 10, GIB);
            said(&mut sample.guests[0]).oom_kills = Some(episode + round);
            ledger.observe(&sample, &Policy::default());
        }
        let pressure = ledger.guests["a"].pressure.unwrap();
        spared.push((pressure.until - pressure.at).as_secs() / 60);
    }
    assert_eq!(spared, [5, 10, 20, 40, 40, 40], "from the fifth on it never ended");
}

#[test]
fn silence_is_pressure_but_not_of_a_guest_that_is_hindered() {
    let speaking = using(0, GIB);
    let mut silent = using(40, GIB);
    balloon(&mut silent.guests[0]).statistics = None;
    let ledger = observed(&[speaking.clone(), silent.clone()]);
    let cause = ledger.guests["a"].pressure.unwrap().cause;
    assert_eq!(cause, PressureSign::Silent(Duration::from_secs(40)));

    let mut paused = silent.clone();
    paused.guests[0].hindrance = Some(Hindrance::Paused);
    let resumed = later(&silent, 10);
    let ledger = observed(&[speaking, paused, resumed.clone()]);
    assert_eq!(ledger.guests["a"].pressure, None);
    assert_eq!(observed(&[silent, resumed]).guests["a"].pressure, None, "it never said anything");
}

#[test]
fn oscillation_is_damped() {
    let policy = Policy::default();
    let mut ledger = Ledger::default();
    let mut damping = Vec::new();
    for round in 0..8 {
        let mut sample = using(round * 60, GIB);
        balloon(&mut sample.guests[0]).target_bytes = (6 + round % 2) * GIB;
        ledger.observe(&sample, &policy);
        damping.push(ledger.guests["a"].turns.damping());
    }
    assert_eq!(damping, [1, 1, 1, 1, 2, 4, 8, 8]);
    ledger.observe(&using(3600, GIB), &policy);
    assert_eq!(ledger.guests["a"].turns.damping(), 1, "long ago");
}

#[test]
fn levels_hold_until_the_host_is_clearly_better() {
    let level = |level: Level, available: f64, full_10s: f64| {
        let mut host = situation(0, Vec::new()).host;
        host.available_bytes = (host.total_bytes as f64 * available) as u64;
        host.pressure = Some(Pressure { some_10s: 1.0, full_10s, some_60s: 0.0, full_60s: 0.0 });
        level.next(&host, &Policy::default().host)
    };
    assert_eq!(level(Level::Green, 0.201, 0.0), Level::Green);
    assert_eq!(level(Level::Green, 0.199, 0.0), Level::Amber);
    assert_eq!(level(Level::Amber, 0.219, 0.0), Level::Amber);
    assert_eq!(level(Level::Amber, 0.221, 0.0), Level::Green);
    assert_eq!(level(Level::Green, 0.049, 0.0), Level::Red);
    assert_eq!(level(Level::Red, 0.069, 0.0), Level::Red);
    assert_eq!(level(Level::Red, 0.071, 0.0), Level::Amber);
    assert_eq!(level(Level::Green, 0.9, 0.10), Level::Red);
    assert_eq!(level(Level::Red, 0.9, 0.06), Level::Red);
    assert_eq!(level(Level::Red, 0.9, 0.04), Level::Green);
}

fn outcome(verdict: Verdict, share: f64) -> Outcome {
    Outcome {
        guest: Some("a".to_owned()),
        actuator: Actuator::Balloon,
        action: Action::StopKsm { domain: "any".to_owned() },
        expected_bytes: 100,
        returned_bytes: 0,
        share: Some(share),
        verdict,
        reason: "nothing came of it".to_owned(),
    }
}

#[test]
fn repeated_failures_are_benched_for_longer_each_time() {
    let policy = Policy::default();
    let mut ledger = observed(&[using(0, GIB)]);
    let (nothing, partly) = (outcome(Verdict::Nothing, 0.0), outcome(Verdict::Partly, 0.6));
    for next in [&nothing, &partly, &nothing] {
        ledger.verified(next);
        assert_eq!(ledger.bench(Some("a"), Actuator::Balloon), None, "not twice in a row");
    }
    ledger.verified(&nothing);
    let bench = ledger.bench(Some("a"), Actuator::Balloon).expect("benched").clone();
    assert_eq!(bench.reason, "2 times in a row: nothing came of it");
    assert_eq!(bench.until, ledger.uptime + Duration::from_secs(3600));
    assert_eq!(ledger.bench(Some("a"), Actuator::Merge), None, "only the balloon");
    ledger.observe(&using(3600, GIB), &policy);
    assert_eq!(ledger.bench(Some("a"), Actuator::Balloon), None, "over");
    ledger.verified(&nothing);
    ledger.verified(&nothing);
    let again = ledger.bench(Some("a"), Actuator::Balloon).expect("benched").until;
    assert_eq!(again, ledger.uptime + Duration::from_secs(7200));
    ledger.observe(&using(3600 + 7200, GIB), &policy);
    assert_eq!(ledger.bench(Some("a"), Actuator::Balloon), None);
    ledger.verified(&outcome(Verdict::Unclear, 0.0));
    ledger.verified(&outcome(Verdict::Unclear, 0.0));
    assert_eq!(ledger.bench(Some("a"), Actuator::Balloon), None, "unclear is no failure");
}

#[test]
fn guests_come_and_go() {
    let policy = Policy::default();
    let mut ledger = observed(&[using(0, GIB)]);
    ledger.observe(&later(&situation(50, Vec::new()), 600), &policy);
    assert!(ledger.guests.contains_key("a"), "it may come back");
    ledger.observe(&later(&situation(50, Vec::new()), 3700), &policy);
    assert!(ledger.guests.is_empty());
    let others = |index: usize| Guest { vmm: Vmm::Qemu, ..idle_guest(&format!("{index}"), GIB, 0) };
    let mut crowd: Vec<_> = (0..GUESTS_MAX + 10).map(others).collect();
    crowd.push(idle_guest("own", GIB, 0));
    ledger.observe(&later(&situation(50, crowd), 3800), &policy);
    assert_eq!(ledger.guests.len(), GUESTS_MAX + 1);
    assert!(ledger.guests.contains_key("own"), "no crowd of others keeps it out");
}

/// A QEMU guest whose current name is `name`.
fn foreign(name: &str, pid: u32) -> Guest {
    Guest { vmm: Vmm::Qemu, pid, ..idle_guest(name, 8 * GIB, GIB) }
}

#[test]
fn the_state_stays_with_the_process_when_another_claims_its_name() {
    let samples = [
        vec![foreign("db", 8)],
        // A process with a lower PID claims the name, then exits; and lighter's own guest takes it.
        vec![foreign("db@7", 7), foreign("db@8", 8)],
        vec![foreign("db", 8)],
        vec![Guest { pid: 9, ..idle_guest("db", 8 * GIB, GIB) }, foreign("db@8", 8)],
    ];
    let mut samples = (0..).zip(samples).map(|(at, guests)| later(&situation(50, guests), 10 * at));
    let mut ledger = observed(&[samples.next().expect("the first")]);
    ledger.guests.get_mut("db").expect("a record").asked_bytes = Some(4 * GIB);
    for sample in samples {
        ledger.observe(&sample, &Policy::default());
        for guest in &sample.guests {
            let asked = ledger.guests[&guest.name].asked_bytes;
            assert_eq!(asked, (guest.pid == 8).then_some(4 * GIB), "{}", guest.name);
        }
    }
}

#[test]
fn the_state_of_a_guest_is_not_used_for_another_with_the_same_pid() {
    let mut ledger = observed(&[situation(50, vec![foreign("db", 8)])]);
    for guest in [foreign("web", 8), Guest { pid: 8, ..idle_guest("own", GIB, 0) }] {
        ledger.guests.get_mut("db").expect("a record").asked_bytes = Some(4 * GIB);
        let name = guest.name.clone();
        ledger.observe(&later(&situation(50, vec![guest]), 10), &Policy::default());
        assert_eq!(ledger.guests[&name].asked_bytes, None);
    }
}

#[test]
fn a_host_that_booted_again_is_another_one() {
    let mut hurt = using(10, GIB);
    said(&mut hurt.guests[0]).oom_kills = Some(1);
    let mut ledger = observed(&[using(0, GIB), hurt]);
    assert!(ledger.guests["a"].pressure.is_some());
    let mut booted = using(0, GIB);
    booted.uptime = Duration::from_secs(60);
    ledger.observe(&booted, &Policy::default());
    assert_eq!(ledger, observed(&[booted]));
}

#[test]
fn the_speed_of_ksmd_is_measured() {
    let mut sample = situation(50, Vec::new());
    let mut ledger = observed(&[sample.clone()]);
    assert_eq!(ledger.ksm.pages_per_cpu_second(), 171_000);
    for _ in 0..40 {
        sample = later(&sample, 10);
        let ksm = sample.host.ksm.as_mut().unwrap();
        ksm.pages_scanned += 600_000;
        ksm.cpu = Some(ksm.cpu.unwrap() + Duration::from_secs(2));
        ledger.observe(&sample, &Policy::default());
    }
    assert!(ledger.ksm.pages_per_cpu_second().abs_diff(300_000) < 1000);
}

proptest! {
    #[test]
    fn an_average_lies_between_what_it_averages(
        first in 0..1_u64 << 50, values in prop::collection::vec((0..1_u64 << 50, 0..100_000_u64), 1..50),
    ) {
        let slow = Policy::default().balloon.slow;
        let (mut low, mut high) = (first, first);
        let mut at = Duration::ZERO;
        let mut demand = Demand::new(first, at);
        for (value, millis) in values {
            (low, high) = (low.min(value), high.max(value));
            at += Duration::from_millis(millis);
            demand = demand.next(value, at, slow);
            prop_assert!(demand.bytes() >= value, "it rises at once");
            prop_assert!((low..=high).contains(&demand.bytes()));
            prop_assert!(demand.slow_bytes + 1 >= low && demand.slow_bytes <= high);
        }
    }

    #[test]
    fn the_same_time_passed_gives_the_same_average_by_any_steps(
        from in 0..1_u64 << 40, to in 0..1_u64 << 40, steps in 1..20_u32,
    ) {
        let slow = Policy::default().balloon.slow;
        let mut demand = Demand::new(from, Duration::ZERO);
        for step in 1..=steps {
            demand = demand.next(to, Duration::from_secs(10) * step, slow);
        }
        let once = Demand::new(from, Duration::ZERO).next(to, Duration::from_secs(10) * steps, slow);
        // The implicit Euler step is not exact, but it is never far off, and never overshoots.
        let distance = (from.abs_diff(to) as f64 * 0.35) as u64 + 2;
        prop_assert!(demand.fast_bytes.abs_diff(once.fast_bytes) <= distance);
    }
}

/// Whether `ledger` considers a guest's balloon target set by a step when the monitor does not
/// report it.
fn asked(ledger: &Ledger, name: &str, target_bytes: u64) -> bool {
    let mut guest = guest(name, 8 * GIB);
    balloon(&mut guest).target_bytes = target_bytes;
    ledger.has_asked(&guest)
}

#[test]
fn a_balloon_set_by_another_program_is_not_ours() {
    let mut ledger = observed(&[using(0, GIB)]);
    assert!(!asked(&ledger, "a", 8 * GIB), "nobody has asked");
    let action =
        Action::SetBalloon { guest: "a".to_owned(), from_bytes: 8 * GIB, to_bytes: 4 * GIB };
    let (cpu, reason) = (Duration::ZERO, String::new());
    let step = Step { action, expected_bytes: 0, cpu, reason, pid: None };
    ledger.acted(&step);
    assert!(asked(&ledger, "a", 4 * GIB) && asked(&ledger, "a", 4 * GIB + MIB));
    assert!(!asked(&ledger, "a", 2 * GIB) && !asked(&ledger, "b", 4 * GIB));
    let text = serde_json::to_string(&ledger).expect("a text");
    let read: Ledger = serde_json::from_str(&text).expect("a ledger");
    assert!(asked(&read, "a", 4 * GIB), "the next node knows");
}

#[test]
fn a_balloon_is_ours_even_if_the_node_ended_before_recording_it() {
    let mut ledger = observed(&[using(0, GIB)]);
    let step = |from_bytes, to_bytes| Step {
        action: Action::SetBalloon { guest: "a".to_owned(), from_bytes, to_bytes },
        expected_bytes: 0,
        cpu: Duration::ZERO,
        reason: String::new(),
        pid: None,
    };
    let next_node = |ledger: &Ledger| -> Ledger {
        let text = serde_json::to_string(ledger).expect("a text");
        serde_json::from_str(&text).expect("a ledger")
    };
    ledger.intends(&step(8 * GIB, 4 * GIB));
    let mut ledger = next_node(&ledger);
    assert!(asked(&ledger, "a", 4 * GIB), "it was set");
    assert!(!asked(&ledger, "a", 8 * GIB), "it was not, and is as an operator wants it");
    ledger.intends(&step(4 * GIB, 2 * GIB));
    let mut ledger = next_node(&ledger);
    assert!(asked(&ledger, "a", 2 * GIB) && asked(&ledger, "a", 4 * GIB), "one of them holds");
    ledger.acted(&step(4 * GIB, 2 * GIB));
    assert!(asked(&ledger, "a", 2 * GIB) && !asked(&ledger, "a", 4 * GIB));
    ledger.intends(&step(2 * GIB, GIB));
    ledger.desists(&step(2 * GIB, GIB));
    assert!(asked(&ledger, "a", 2 * GIB) && !asked(&ledger, "a", GIB), "it is as it was");
    ledger.intends(&step(6 * GIB, 5 * GIB));
    assert!(!asked(&ledger, "a", 2 * GIB), "an operator has set it meanwhile");
}

#[test]
fn the_monitors_report_of_a_balloon_holds_on_every_host() {
    let ledger = observed(&[using(0, GIB)]);
    let mut guest = guest("a", 8 * GIB);
    balloon(&mut guest).target_bytes = 4 * GIB;
    for is_set_by_steps in [true, false] {
        balloon(&mut guest).is_set_by_steps = Some(is_set_by_steps);
        assert_eq!(ledger.has_asked(&guest), is_set_by_steps, "it came so from another host");
    }
}
