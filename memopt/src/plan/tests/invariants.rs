//! Invariants of plans for every host: any guests, any statistics, any goal.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::ledger::Level;
use crate::situation::{Backing, Balloon, Guest, Hindrance, Pressure, Statistics, Vmm};

/// Rules that opt guests out, limit them and give them priorities.
const POLICY: &str = r#"
[[guest]]
name = "g1"
optimize = false
[[guest]]
name = "g2"
min = "3GiB"
priority = 1000
[[guest]]
name = "g3"
max = "2GiB"
[[guest]]
name = "g4"
actuators = ["merge"]
[[guest]]
name = "g5"
take = false
"#;

fn policy(preset: usize) -> Policy {
    let preset = ["safe", "balanced", "dense"][preset];
    Policy::parse(&format!("preset = \"{preset}\"{POLICY}"), "f").expect("a policy")
}

fn some_goal() -> impl Strategy<Value = Goal> {
    prop_oneof![
        Just(Goal::MaxDensity),
        (0.0..0.9).prop_map(Goal::Keep),
        (0..32 * GIB).prop_map(Goal::Free),
    ]
}

fn some_statistics() -> impl Strategy<Value = Statistics> {
    let sizes = any::<[Option<u64>; 4]>();
    let honest = prop::array::uniform4((0..16 * GIB).prop_map(Some));
    let counts = any::<[Option<u8>; 6]>();
    (prop_oneof![sizes, honest], counts, 0..100_u64).prop_map(|(sizes, counts, age)| {
        let [total_bytes, free_bytes, available_bytes, caches_bytes] = sizes;
        let [swap_in, swap_out, faults, kills, stalls, reclaim] = counts;
        Statistics {
            age: Duration::from_secs(age),
            total_bytes,
            free_bytes,
            available_bytes,
            caches_bytes,
            swap_in_bytes: swap_in.map(|it| u64::from(it) << 20),
            swap_out_bytes: swap_out.map(|it| u64::from(it) << 20),
            major_faults: faults.map(|it| u64::from(it) << 8),
            oom_kills: kills.map(u64::from),
            allocation_stalls: stalls.map(u64::from),
            direct_reclaim_bytes: reclaim.map(|it| u64::from(it) << 20),
        }
    })
}

fn some_balloon(memory: u64) -> impl Strategy<Value = Option<Balloon>> {
    let statistics = prop::option::weighted(0.9, some_statistics());
    // A device may report any size for what its driver has taken.
    let actual = prop_oneof![0..=memory, Just(memory), 0..=memory * 2];
    let sizes = (0..=memory, actual, any::<bool>());
    let balloon = (sizes, prop::bool::weighted(0.9), any::<bool>(), statistics).prop_map(
        move |((target, actual, is_settled), has_driver, reports, statistics)| Balloon {
            has_driver,
            target_bytes: if is_settled { actual.min(memory) } else { target },
            actual_bytes: actual,
            is_set_by_steps: None,
            reports_free_pages: reports,
            reported_bytes_total: 0,
            statistics,
        },
    );
    prop::option::weighted(0.9, balloon)
}

fn some_guest(name: String) -> impl Strategy<Value = Guest> {
    let memory = (1..64_u64).prop_map(|count| count * 256 * MIB);
    let hindrances = prop::sample::select(vec![
        Hindrance::Migrating,
        Hindrance::Paused,
        Hindrance::Saving,
        Hindrance::Unreachable,
    ]);
    let backings = prop::sample::select(vec![
        Backing::Anonymous,
        Backing::Anonymous,
        Backing::Template,
        Backing::HugePool,
        Backing::Shared,
    ]);
    let domains = prop::option::of(prop::sample::select(vec!["red", "blue"]));
    let vmms = prop::sample::select(vec![Vmm::Lighter, Vmm::Lighter, Vmm::Qemu]);
    let surveys =
        prop::option::of((0..64_u32, 0..600_u16, 0..100_u16, any::<u16>(), any::<bool>()));
    memory.prop_flat_map(move |memory| {
        let name = name.clone();
        let kind = (backings.clone(), domains.clone(), vmms.clone(), any::<bool>());
        let hindrance = prop::option::weighted(0.2, hindrances.clone());
        let sizes = (some_balloon(memory), 0..=memory);
        (sizes, kind, hindrance, surveys.clone()).prop_map(move |(sizes, kind, hindrance, seen)| {
            let mut guest = guest(&name, memory);
            (guest.balloon, guest.cost.resident_bytes) = sizes;
            guest.cost.proportional_bytes = guest.cost.resident_bytes;
            guest.backing = kind.0;
            guest.merge_domain = kind.1.map(str::to_owned);
            guest.vmm = kind.2;
            guest.is_mergeable = kind.3;
            guest.hindrance = hindrance;
            guest.survey = seen.map(|(count, duplicates, written, template, is_huge)| {
                let mut survey = survey(count, duplicates, written);
                for chunk in &mut survey.chunks {
                    (chunk.is_huge, chunk.template_pages) = (is_huge, template);
                    chunk.is_mergeable = kind.3 && !is_huge;
                }
                survey
            });
            guest
        })
    })
}

fn some_guests() -> impl Strategy<Value = Vec<Guest>> {
    let each: Vec<_> = (0..8).map(|index| some_guest(format!("g{index}"))).collect();
    (each, 0..=8_usize).prop_map(|(mut guests, count)| {
        guests.truncate(count);
        guests
    })
}

fn some_situation() -> impl Strategy<Value = Situation> {
    let merged = prop::option::of(prop::sample::select(vec!["red", "blue", "gone"]));
    (some_guests(), 0..100_u64, prop::option::of(0.0..1.0), merged, any::<bool>()).prop_map(
        |(guests, available, stall, merged, has_ksm)| {
            let mut situation = situation(available, guests);
            situation.host.pressure = stall.map(|full| Pressure {
                some_10s: full,
                full_10s: full,
                some_60s: full,
                full_60s: full,
            });
            situation.host.merged_domain = merged.map(str::to_owned);
            if !has_ksm {
                situation.host.ksm = None;
            }
            situation
        },
    )
}

/// Two samples, a minute apart; the second differs in what guests report and have.
fn some_samples() -> impl Strategy<Value = (Situation, Situation)> {
    (some_situation(), some_guests()).prop_map(|(first, others)| {
        let mut second = later(&first, 60);
        for (guest, other) in second.guests.iter_mut().zip(others) {
            if let (Some(balloon), Some(other)) = (&mut guest.balloon, other.balloon) {
                balloon.statistics = other.statistics;
                balloon.target_bytes = other.target_bytes.min(guest.memory_bytes);
                balloon.actual_bytes = other.actual_bytes;
            }
            guest.hindrance = other.hindrance;
        }
        (first, second)
    })
}

fn planned(samples: &(Situation, Situation), policy: &Policy, goal: Goal) -> (Plan, Ledger) {
    let mut ledger = Ledger::default();
    let _ = round(&samples.0, policy, &mut ledger, &goal);
    let plan = round(&samples.1, policy, &mut ledger, &goal);
    (plan, ledger)
}

fn guest_of<'a>(situation: &'a Situation, name: &str) -> &'a Guest {
    situation.guests.iter().find(|guest| guest.name == name).expect("a guest of the host")
}

/// The balloon steps of `plan`: name, old target, new target.
fn balloon_steps(plan: &Plan) -> Vec<(&str, u64, u64)> {
    let steps = plan.steps.iter().filter_map(|step| match &step.action {
        Action::SetBalloon { guest, from_bytes, to_bytes } => {
            Some((guest.as_str(), *from_bytes, *to_bytes))
        }
        _ => None,
    });
    steps.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn balloons_stay_between_floor_and_limit(
        samples in some_samples(), preset in 0..3_usize, goal in some_goal(),
    ) {
        let policy = policy(preset);
        let (plan, ledger) = planned(&samples, &policy, goal);
        for (name, from, to) in balloon_steps(&plan) {
            let limits = policy.limits(guest_of(&samples.1, name));
            prop_assert!(to >= limits.floor_bytes, "{name}: below its floor");
            prop_assert!(to <= limits.max_bytes || to < from, "{name}: above its limit");
            prop_assert!(to <= guest_of(&samples.1, name).memory_bytes);
            prop_assert_ne!(from, to);
            prop_assert!(to > from || limits.take, "{name}: taken from");
            // No guest loses what it reports to need, except to its operator's limit.
            let demand = ledger.guests[name].needs_bytes().unwrap_or(0);
            prop_assert!(to >= from.min(demand).min(limits.max_bytes), "{name}: below its demand");
            let record = &ledger.guests[name];
            let bench = record.standings.get(&Actuator::Balloon).and_then(|it| it.bench.as_ref());
            prop_assert!(to > from || bench.is_none_or(|it| it.until <= samples.1.uptime), "benched");
        }
    }

    #[test]
    fn pressure_is_answered_in_full_in_the_same_round(
        samples in some_samples(), preset in 0..3_usize, goal in some_goal(),
    ) {
        let policy = policy(preset);
        let (plan, ledger) = planned(&samples, &policy, goal);
        for guest in &samples.1.guests {
            let limits = policy.limits(guest);
            let Some(balloon) = &guest.balloon else { continue };
            let is_movable = limits.optimize && guest.hindrance.is_none() && balloon.has_driver
                && guest.backing != Backing::HugePool && limits.actuators.contains(&Actuator::Balloon);
            let pressure = ledger.guests[&guest.name].pressure;
            let hurts = pressure.is_some_and(|pressure| pressure.at == samples.1.uptime);
            if is_movable && hurts && balloon.target_bytes < limits.max_bytes {
                prop_assert_eq!(set_to(&plan, &guest.name), Some(limits.max_bytes));
            }
            if is_movable && hurts && balloon.target_bytes >= limits.max_bytes {
                prop_assert_eq!(set_to(&plan, &guest.name), None);
            }
        }
    }

    #[test]
    fn guests_that_must_not_be_changed_are_not_changed(
        samples in some_samples(), preset in 0..3_usize, goal in some_goal(),
    ) {
        let policy = policy(preset);
        let (plan, _) = planned(&samples, &policy, goal);
        for step in &plan.steps {
            let Some(name) = step.action.guest() else { continue };
            let guest = guest_of(&samples.1, name);
            let limits = policy.limits(guest);
            prop_assert!(guest.hindrance.is_none() && limits.optimize, "{step}");
            // No policy can forbid unmerging a guest to isolate its tenant.
            let protects = matches!(step.action, Action::Unmerge { chunks: None, .. });
            prop_assert!(protects || limits.actuators.contains(&step.action.actuator()), "{step}");
        }
        // Every guest without a step is skipped with a reason.
        for guest in &samples.1.guests {
            let gets = plan.steps.iter().any(|step| step.action.guest() == Some(&guest.name));
            let skipped = plan.skipped.iter().any(|it| it.guest == guest.name);
            prop_assert!(gets || skipped, "{}", guest.name);
        }
        prop_assert!(plan.skipped.iter().all(|it| !it.to_string().is_empty()));
    }

    #[test]
    fn one_domain_at_most_is_merged(
        samples in some_samples(), preset in 0..3_usize, goal in some_goal(),
    ) {
        let policy = policy(preset);
        let (plan, _) = planned(&samples, &policy, goal);
        let domain_of = |name: &str| policy.limits(guest_of(&samples.1, name)).merge_domain;
        let mut merged: Vec<String> = Vec::new();
        for step in &plan.steps {
            match &step.action {
                Action::Merge { guest, .. } => merged.push(domain_of(guest).expect("a domain")),
                Action::DriveKsm { domain, .. } => merged.push(domain.clone()),
                _ => {}
            }
        }
        merged.dedup();
        prop_assert!(merged.len() <= 1, "{merged:?}");
        if let Some(domain) = merged.pop() {
            prop_assert_eq!(&plan.domain.as_ref().expect("said").domain, &domain);
            for guest in samples.1.guests.iter().filter(|guest| guest.is_mergeable) {
                prop_assert_eq!(domain_of(&guest.name), Some(domain.clone()), "{}", guest.name);
            }
        }
    }

    #[test]
    fn expected_bytes_add_up_and_keep_to_the_goal(
        samples in some_samples(), preset in 0..3_usize, goal in some_goal(),
    ) {
        let policy = policy(preset);
        let (plan, ledger) = planned(&samples, &policy, goal);
        let sum: i64 = plan.steps.iter().map(|step| step.expected_bytes).sum();
        prop_assert_eq!(plan.expected_bytes, sum);
        for step in &plan.steps {
            let memory = step.action.guest().map(|name| guest_of(&samples.1, name).memory_bytes);
            if let Some(memory) = memory {
                prop_assert!(step.expected_bytes.unsigned_abs() <= memory, "{step}");
            }
        }
        // Balloons alone never take more than is wanted, except for what an operator's limit takes.
        let asked = plan.wanted_bytes.unwrap_or(u64::MAX);
        let asked_for = |step: &&Step| {
            step.action.actuator() == Actuator::Balloon && !step.reason.contains("limit")
        };
        let taken = plan.steps.iter().filter(asked_for).map(|step| step.expected_bytes.max(0) as u64);
        let taken: u64 = taken.sum();
        prop_assert!(taken <= asked, "{taken} of {asked}");
        if goal == Goal::Free(0) && ledger.level == Level::Green {
            prop_assert_eq!(taken, 0);
        }
    }

    #[test]
    fn the_order_of_the_guests_changes_nothing(
        samples in some_samples(), goal in some_goal(), seed in any::<u64>(),
    ) {
        let policy = policy(1);
        let (plan, ledger) = planned(&samples, &policy, goal);
        let mut shuffled = samples.clone();
        for situation in [&mut shuffled.0, &mut shuffled.1] {
            situation.guests.sort_by_key(|guest| {
                (guest.name.len() as u64 + u64::from(guest.pid)).wrapping_mul(seed | 1).rotate_left(17)
            });
        }
        let (other, other_ledger) = planned(&shuffled, &policy, goal);
        prop_assert_eq!(&plan, &other);
        prop_assert_eq!(ledger, other_ledger);
        let json = serde_json::to_string(&plan).expect("JSON");
        let read: Plan = serde_json::from_str(&json).expect("a plan");
        prop_assert_eq!(read.steps, plan.steps);
    }

    /// Whatever a guest reports, other actuators treat the other guests the same, and no other
    /// guest is reduced further than when the liar gives nothing at all.
    #[test]
    fn false_statistics_affect_only_their_own_guest(
        samples in some_samples(), lie in some_statistics(), liar in 0..8_usize, goal in some_goal(),
    ) {
        let (mut first, mut second) = samples;
        // The others truthfully report no free pages. This keeps small differences from being
        // multiplied.
        for guest in first.guests.iter_mut().chain(&mut second.guests) {
            if let Some(statistics) = guest.balloon.as_mut().and_then(|it| it.statistics.as_mut()) {
                statistics.free_bytes = None;
            }
            guest.cost.resident_bytes = guest.memory_bytes;
        }
        if second.guests.is_empty() {
            return Ok(());
        }
        let liar = liar % second.guests.len();
        let name = second.guests[liar].name.clone();
        if second.guests[liar].balloon.is_none() {
            return Ok(());
        }
        let samples = (first, second);
        let mut lied = samples.clone();
        lied.1.guests[liar].balloon.as_mut().expect("a balloon").statistics = Some(lie);
        let mut without = policy(1);
        without.guests.push(crate::policy::GuestRule {
            name: Some(name.parse().expect("a name")),
            actuators: Some([Actuator::Merge, Actuator::Huge, Actuator::Template].into()),
            ..Default::default()
        });
        let (honest, _) = planned(&samples, &policy(1), goal);
        let (lying, _) = planned(&lied, &policy(1), goal);
        let (giving_nothing, _) = planned(&lied, &without, goal);

        let others = |plan: &Plan| -> Vec<Step> {
            let is_other = |step: &&Step| {
                step.action.actuator() != Actuator::Balloon && step.action.guest() != Some(&name)
            };
            plan.steps.iter().filter(is_other).cloned().collect()
        };
        prop_assert_eq!(others(&honest), others(&lying));
        let slack = 8 * MIB;
        for (other, from, to) in balloon_steps(&lying) {
            if other != name && to < from {
                let bound = set_to(&giving_nothing, other).unwrap_or(from).min(from);
                prop_assert!(to + slack >= bound, "{other}: {to} below {bound}");
            }
        }
        // No guest under pressure is refused what it would get without the lie.
        for (other, from, to) in balloon_steps(&honest) {
            let is_relief = honest.steps.iter().any(|step| {
                step.action.guest() == Some(other) && step.reason.starts_with("under memory pressure")
            });
            if other != name && is_relief && to > from {
                prop_assert_eq!(set_to(&lying, other), Some(to));
            }
        }
    }
}
