//! The laws of merging and of huge pages.

use std::time::Duration;

use super::*;
use crate::ksm::End;
use crate::situation::{Backing, Guest, Hindrance, Pool, User, Vmm};

const MAX: Goal = Goal::MaxDensity;

/// The steps of `plan` that do not move balloons, in their displayed form.
fn described(plan: &Plan) -> Vec<String> {
    let steps = plan.steps.iter().map(|step| step.action.to_string());
    steps.filter(|it| !it.contains(": balloon")).collect()
}

fn two_domains() -> Vec<Guest> {
    vec![
        clone_of("red-1", "red"),
        clone_of("red-2", "red"),
        clone_of("blue-1", "blue"),
        clone_of("blue-2", "blue"),
        clone_of("blue-3", "blue"),
    ]
}

/// The host after the steps of `plan`: what it marks is mergeable, what it unmerges is not.
fn done(host: &Situation, plan: &Plan, ledger: &mut Ledger) -> Situation {
    let mut next = later(host, 10);
    for step in &plan.steps {
        ledger.acted(step);
        let name = step.action.guest().unwrap_or_default();
        let guest = next.guests.iter_mut().find(|guest| guest.name == name);
        match (&step.action, guest) {
            (Action::Merge { .. }, Some(guest)) => mark(guest, true),
            (Action::Unmerge { chunks: None, .. }, Some(guest)) => mark(guest, false),
            (Action::DriveKsm { domain, .. }, _) => {
                next.host.merged_domain = Some(domain.clone());
                next.host.ksm.as_mut().unwrap().run = 1;
            }
            (Action::StopKsm { .. }, _) => next.host.ksm.as_mut().unwrap().run = 0,
            _ => {}
        }
    }
    next
}

fn mark(guest: &mut Guest, is_mergeable: bool) {
    guest.is_mergeable = is_mergeable;
    // The guest was surveyed since.
    guest.survey.as_mut().unwrap().age = Duration::from_secs(1);
    for chunk in &mut guest.survey.as_mut().unwrap().chunks {
        chunk.is_mergeable = is_mergeable;
    }
}

#[test]
fn a_plan_says_what_a_survey_would_read_where_it_could_find_more_to_merge() {
    let survey_bytes = |guests: Vec<Guest>, policy: &Policy| {
        settled(&situation(50, guests), policy, MAX).0.survey_bytes
    };
    let unsurveyed = |name: &str, domain: Option<&str>| Guest {
        merge_domain: domain.map(str::to_owned),
        ..idle_guest(name, GIB, 900 * MIB)
    };
    let balanced = Policy::default();
    assert_eq!(survey_bytes(two_domains(), &balanced), 0, "all were surveyed");
    assert_eq!(survey_bytes(vec![unsurveyed("a", None)], &balanced), 0, "it is never merged");
    let guests = vec![clone_of("a", "red"), unsurveyed("b", Some("red")), unsurveyed("c", None)];
    assert_eq!(survey_bytes(guests.clone(), &balanced), 3 * GIB, "all are surveyed again");
    let safe = Policy::parse("preset = \"safe\"", "f").unwrap();
    assert_eq!(survey_bytes(guests.clone(), &safe), 0, "it merges nothing");
    let mut without_ksm = situation(50, guests);
    without_ksm.host.ksm = None;
    assert_eq!(settled(&without_ksm, &balanced, MAX).0.survey_bytes, 0);
}

#[test]
fn the_domain_with_most_to_gain_is_merged_and_the_other_gets_a_skip_reason() {
    let host = situation(50, two_domains());
    let (plan, _) = settled(&host, &Policy::default(), MAX);
    assert_eq!(
        described(&plan),
        [
            "blue-1: merge 512 chunks",
            "blue-2: merge 512 chunks",
            "blue-3: merge 512 chunks",
            "ksmd: merge domain blue, 34200 pages/s, 20% of a core, for 30m",
        ]
    );
    let domain = plan.domain.as_ref().unwrap();
    assert_eq!((domain.domain.as_str(), domain.others.len()), ("blue", 1));
    assert!(domain.reason.contains("most to gain: 1.27 GiB"), "{}", domain.reason);
    let domain = "blue".to_owned();
    assert_eq!(why(&plan, "red-1", Actuator::Merge), SkipReason::OtherDomain { domain });
    // 224 of 512 pages each, less the kernel's records of all 512.
    let each = 512 * (224 * 4096 - 512 * 64);
    assert_eq!(plan.steps[0].expected_bytes, each);
}

/// The device reaches all of its memory, of which nothing may be replaced.
#[test]
fn a_guest_with_a_device_of_its_host_is_neither_merged_nor_shrunk() {
    let hindrance = Some(Hindrance::Pinned);
    let pinned = Guest { hindrance, ..clone_of("red-3", "red") };
    let host = situation(50, vec![clone_of("red-1", "red"), clone_of("red-2", "red"), pinned]);
    let (plan, _) = settled(&host, &Policy::default(), MAX);
    assert_eq!(
        described(&plan)[..2],
        ["red-1: merge 512 chunks", "red-2: merge 512 chunks"],
        "{plan:#?}"
    );
    assert!(plan.steps.iter().all(|step| step.action.guest() != Some("red-3")), "{plan:#?}");
    let hindered = SkipReason::Hindered { by: Hindrance::Pinned };
    assert_eq!(why(&plan, "red-3", Actuator::Merge), hindered);
}

#[test]
fn a_goal_merges_no_more_guests_than_it_needs() {
    let host = situation(50, two_domains());
    let (plan, _) = settled(&host, &Policy::default(), Goal::Free(100 * MIB));
    assert_eq!(described(&plan).len(), 2, "{:?}", described(&plan));
    assert_eq!(why(&plan, "blue-3", Actuator::Merge), SkipReason::HostHasEnough);
}

#[test]
fn another_domain_is_merged_only_after_the_first_is_unmerged() {
    let policy = Policy::default();
    let mut host = situation(50, two_domains());
    let mut ledger = Ledger::default();
    let plan = round(&host, &policy, &mut ledger, &MAX);
    host = done(&host, &plan, &mut ledger);
    // Blue's guests lose their duplicates; from here on red is worth more, but does not replace
    // blue at once.
    for guest in host.guests.iter_mut().filter(|guest| guest.name.starts_with("blue")) {
        let mut survey = survey(512, 30, 0);
        let chunks = survey.chunks.iter_mut();
        chunks.for_each(|chunk| (chunk.is_mergeable, chunk.is_huge) = (true, false));
        guest.survey = Some(survey);
    }
    let plan = round(&host, &policy, &mut ledger, &MAX);
    assert_eq!(plan.domain.as_ref().unwrap().domain, "blue", "it stays for an hour");
    assert_eq!(described(&plan), Vec::<String>::new());

    let mut order = Vec::new();
    host = later(&host, 3600);
    for _ in 0..4 {
        let plan = round(&host, &policy, &mut ledger, &MAX);
        let mergeable = |name: &str| {
            host.guests.iter().any(|guest| guest.is_mergeable && guest.name.starts_with(name))
        };
        let marks_red = described(&plan).iter().any(|it| it.starts_with("red-1: merge"));
        assert!(!(marks_red && mergeable("blue")), "{plan:#?}");
        order.extend(described(&plan));
        host = done(&host, &plan, &mut ledger);
    }
    assert_eq!(
        order[..4],
        [
            "ksmd: stop merging domain blue",
            "blue-1: unmerge all",
            "blue-2: unmerge all",
            "blue-3: unmerge all",
        ]
    );
    assert!(
        order[4].starts_with("red-") && order.last().unwrap().contains("domain red"),
        "{order:?}"
    );
}

#[test]
fn a_mergeable_foreign_guest_stops_all_merging() {
    let mut guests = two_domains();
    let mut foreign = idle_guest("vm", GIB, GIB);
    (foreign.vmm, foreign.user) = (Vmm::Qemu, Some(qemus_user()));
    foreign.is_mergeable = true;
    guests.push(foreign);
    let host = situation(50, guests);
    let (plan, _) = settled(&host, &Policy::default(), MAX);
    assert_eq!(described(&plan), Vec::<String>::new());
    let exposed = SkipReason::Exposed { other: "guest vm of another domain".to_owned() };
    assert_eq!(why(&plan, "blue-1", Actuator::Merge), exposed);
    assert!(plan.advice[0].to_string().contains("mem-merge=off"), "{}", plan.advice[0]);
    // With a domain, the guest is a member of it, and ksmd is driven for it.
    let policy =
        Policy::parse("[[guest]]\nname = \"vm\"\nuser = \"qemu\"\nmerge-domain = \"blue\"", "f")
            .unwrap();
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(described(&plan).len(), 4);
    // Nothing is merged by the guest's name alone, which any user may choose; nor while its monitor
    // does not answer; nor while it is only watched.
    let by_name = Policy::parse("[[guest]]\nname = \"vm\"\nmerge-domain = \"blue\"", "f").unwrap();
    let (plan, _) = settled(&host, &by_name, MAX);
    assert_eq!(described(&plan), Vec::<String>::new());
    assert_eq!(why(&plan, "vm", Actuator::Merge), SkipReason::DomainByNameAlone);
    for (hindrance, words) in [
        (Hindrance::Unreachable, "guest vm with a silent monitor could share pages with it"),
        (Hindrance::Watched, "guest vm that is watched only could share pages with it"),
    ] {
        let mut host = host.clone();
        host.guests.iter_mut().filter(|guest| guest.name == "vm").for_each(|guest| {
            guest.hindrance = Some(hindrance);
        });
        let (plan, _) = settled(&host, &policy, MAX);
        assert_eq!(described(&plan), Vec::<String>::new());
        assert_eq!(why(&plan, "blue-1", Actuator::Merge).to_string(), words);
    }
}

/// These guests arrived while another domain was merged. That domain is not unmerged for one that
/// cannot take its place.
#[test]
fn a_domain_whose_guests_processes_do_not_let_be_merged_takes_no_place() {
    let mut guests = vec![clone_of("red-1", "red"), clone_of("red-2", "red")];
    guests.iter_mut().for_each(|guest| mark(guest, true));
    for name in ["blue-1", "blue-2", "blue-3", "blue-4"] {
        let merged_instead = Some("red".to_owned());
        guests.push(Guest { merged_instead, ..clone_of(name, "blue") });
    }
    let policy = Policy::default();
    let mut host = situation(50, guests);
    host.host.merged_domain = Some("red".to_owned());
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(plan.domain.as_ref().map(|choice| choice.domain.as_str()), Some("red"), "{plan:#?}");
    let other = SkipReason::OtherDomain { domain: "red".to_owned() };
    assert_eq!(why(&plan, "blue-1", Actuator::Merge), other);
    // In new processes they may be merged.
    host.guests.iter_mut().for_each(|guest| guest.merged_instead = None);
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(plan.domain.map(|choice| choice.domain).as_deref(), Some("blue"));
}

/// Guests that are no longer mergeable, or never were, need not be unmerged.
#[test]
fn a_domain_keeps_its_place_only_for_guests_that_are_mergeable() {
    let domain_of = |is_mergeable: bool| {
        let mut guests = vec![clone_of("red-1", "red"), clone_of("red-2", "red")];
        guests.iter_mut().for_each(|guest| mark(guest, is_mergeable));
        guests.extend(["blue-1", "blue-2", "blue-3", "blue-4"].map(|name| clone_of(name, "blue")));
        let host = situation(50, guests);
        let mut ledger = Ledger::default();
        ledger.ksm.domain = Some(("red".to_owned(), host.uptime));
        let plan = round(&host, &Policy::default(), &mut ledger, &MAX);
        plan.domain.expect("one of them").domain
    };
    assert_eq!(domain_of(true), "red", "for an hour");
    assert_eq!(domain_of(false), "blue");
}

fn qemus_user() -> User {
    User { uid: 107, name: Some("qemu".to_owned()) }
}

#[test]
fn a_mergeable_foreign_process_stops_all_merging_and_is_named() {
    let mut host = situation(50, two_domains());
    host.host.other_processes = vec!["process 7 (bank)".to_owned()];
    let (plan, _) = settled(&host, &Policy::default(), MAX);
    assert_eq!(described(&plan), Vec::<String>::new());
    let why = why(&plan, "blue-1", Actuator::Merge).to_string();
    assert_eq!(why, "process 7 (bank) could share pages with it");
}

/// 171,000 pages per second of CPU time, each scanned 2.5 times: 68,400 pages, which are 66 chunks
/// in both guests.
#[test]
fn no_more_may_be_merged_than_ksmds_time_pays_for() {
    let policy = Policy::parse("[merge]\ncpu-time = \"1s\"", "f").unwrap();
    let mut host = situation(50, vec![clone_of("red-1", "red"), clone_of("red-2", "red")]);
    // The poor chunks at the beginning are left out.
    for guest in &mut host.guests {
        for chunk in &mut guest.survey.as_mut().unwrap().chunks[..100] {
            chunk.duplicate_pages = 200;
        }
    }
    let window = "ksmd: merge domain red, 34200 pages/s, 20% of a core, for 30m or 1s of CPU time";
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(described(&plan), ["red-1: merge 66 chunks", "red-2: merge 66 chunks", window]);
    let Action::Merge { chunks, .. } = &plan.steps[0].action else { panic!("{plan:#?}") };
    assert_eq!(chunks[..], [ChunkRange { first: 100, count: 66 }]);
    assert!(plan.steps[2].cpu <= Duration::from_secs(1), "{:?}", plan.steps[2].cpu);

    // The guests were marked as a whole at their start, and nothing is merged yet.
    for guest in &mut host.guests {
        mark(guest, true);
        guest.cost.merged_bytes = Some(0);
    }
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(
        described(&plan),
        ["red-1: unmerge 446 chunks", "red-2: unmerge 446 chunks", window]
    );

    // Guests that are merged already are scanned in any case.
    host.guests.iter_mut().for_each(|guest| guest.cost.merged_bytes = Some(100 * MIB));
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(described(&plan), [window]);
    host.guests.push(clone_of("red-3", "red"));
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(why(&plan, "red-3", Actuator::Merge), SkipReason::NoCpuTime);

    // A guest that cannot be acted on now is also scanned.
    let mut leaving = clone_of("red-1", "red");
    (leaving.is_mergeable, leaving.hindrance) = (true, Some(Hindrance::Migrating));
    let host = situation(50, vec![leaving, clone_of("red-2", "red")]);
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(why(&plan, "red-2", Actuator::Merge), SkipReason::NoCpuTime);
}

/// A sample shows what other programs have marked; a plan does not change it.
#[test]
fn guests_of_other_programs_alone_are_worth_a_window() {
    let foreign = |name: &str| {
        let mut guest = clone_of(name, "blue");
        (guest.vmm, guest.balloon, guest.merge_domain) = (Vmm::Qemu, None, None);
        guest.user = Some(qemus_user());
        mark(&mut guest, true);
        guest
    };
    let host = situation(50, vec![foreign("vm-1"), foreign("vm-2")]);
    let policy = "[[guest]]\nname = \"vm-*\"\nuser = \"107\"\nmerge-domain = \"blue\"";
    let policy = Policy::parse(policy, "f").unwrap();
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(
        described(&plan),
        ["ksmd: merge domain blue, 34200 pages/s, 20% of a core, for 30m"],
        "{plan:#?}"
    );
    assert_eq!(why(&plan, "vm-1", Actuator::Huge), SkipReason::NothingHot);
    // 224 of 512 pages of each chunk, less the kernel's records of all 512.
    assert_eq!(plan.steps[0].expected_bytes, 2 * 512 * (224 * 4096 - 512 * 64));
}

#[test]
fn hot_memory_of_foreign_guests_becomes_huge_where_it_may_be_surveyed() {
    let mut guest = clone_of("vm", "blue");
    (guest.vmm, guest.balloon, guest.merge_domain) = (Vmm::Qemu, None, None);
    guest.user = Some(qemus_user());
    mark(&mut guest, true);
    for chunk in &mut guest.survey.as_mut().unwrap().chunks[..3] {
        (chunk.is_huge, chunk.written_pages) = (false, 300);
    }
    let host = situation(50, vec![guest]);
    let (plan, _) = settled(&host, &Policy::default(), MAX);
    assert_eq!(
        why(&plan, "vm", Actuator::Huge),
        SkipReason::ForeignVmm,
        "nobody has named its domain"
    );
    let policy =
        Policy::parse("[[guest]]\nname = \"vm\"\nuser = \"qemu\"\nmerge-domain = \"blue\"", "f")
            .unwrap();
    let (plan, _) = settled(&host, &policy, MAX);
    assert!(described(&plan).contains(&"vm: huge pages for 3 chunks".to_owned()), "{plan:#?}");
}

#[test]
fn a_guest_of_another_domain_that_arrives_mergeable_stops_the_window() {
    let policy = Policy::default();
    let mut host = situation(50, two_domains());
    let mut ledger = Ledger::default();
    let plan = round(&host, &policy, &mut ledger, &MAX);
    host = done(&host, &plan, &mut ledger);
    let mut arrived = clone_of("red-9", "red");
    arrived.is_mergeable = true;
    arrived.hindrance = Some(Hindrance::Migrating);
    host.guests.push(arrived);
    let plan = round(&host, &policy, &mut ledger, &MAX);
    assert_eq!(described(&plan), ["ksmd: stop merging domain blue"]);
    assert!(plan.steps[0].reason.contains("guest red-9"), "{}", plan.steps[0]);
}

#[test]
fn a_window_ends_when_the_profit_is_flat_and_comes_again_after_the_pause() {
    let policy = Policy::default();
    let mut host = situation(50, two_domains());
    let mut ledger = Ledger::default();
    let plan = round(&host, &policy, &mut ledger, &MAX);
    host = done(&host, &plan, &mut ledger);
    let mut stopped = None;
    for scans in 0..20 {
        let ksm = host.host.ksm.as_mut().unwrap();
        ksm.full_scans = scans;
        // The profit grows until the sixth scan.
        ksm.profit_bytes = i64::try_from(scans.min(6)).unwrap() << 28;
        let plan = round(&host, &policy, &mut ledger, &MAX);
        host = done(&host, &plan, &mut ledger);
        if described(&plan) == ["ksmd: stop merging domain blue"] {
            stopped = Some(scans);
            break;
        }
    }
    assert_eq!(stopped, Some(9), "three scans after it stopped growing");
    let plan = round(&host, &policy, &mut ledger, &MAX);
    assert_eq!(described(&plan), Vec::<String>::new(), "a pause");
    let plan = round(&later(&host, 3700), &policy, &mut ledger, &MAX);
    assert!(described(&plan)[0].starts_with("ksmd: merge domain blue"), "{:?}", described(&plan));
}

#[test]
fn a_window_that_ended_on_its_own_was_not_stopped_by_another_program() {
    let policy = Policy::default();
    let mut host = situation(50, two_domains());
    let mut ledger = Ledger::default();
    let plan = round(&host, &policy, &mut ledger, &MAX);
    host = done(&host, &plan, &mut ledger);
    round(&later(&host, 1), &policy, &mut ledger, &MAX);
    // The driver of ksmd has restored its previous state.
    host.host.ksm.as_mut().unwrap().run = 0;
    host = later(&host, 2);
    let guessed = round(&host, &policy, &mut ledger, &MAX);
    assert_eq!(guessed.steps[0].reason, "another program stopped ksmd");
    ledger.ksm.ended(End::Flat.into(), host.uptime, &policy.merge);
    let plan = round(&host, &policy, &mut ledger, &MAX);
    assert_eq!(described(&plan), ["ksmd: stop merging domain blue"]);
    assert!(plan.steps[0].reason.starts_with("all memory was scanned"), "{}", plan.steps[0]);
}

#[test]
fn hot_memory_is_unmerged_first_and_becomes_huge() {
    let mut guest = clone_of("a", "red");
    let chunks = &mut guest.survey.as_mut().unwrap().chunks;
    for chunk in &mut chunks[..100] {
        (chunk.is_huge, chunk.is_mergeable, chunk.written_pages) = (false, true, 300);
    }
    for chunk in &mut chunks[100..200] {
        (chunk.is_huge, chunk.written_pages, chunk.present_pages) = (false, 300, 500);
    }
    guest.is_mergeable = true;
    let host = situation(50, vec![guest]);
    let (plan, _) = settled(&host, &Policy::default(), MAX);
    assert_eq!(described(&plan)[0], "a: unmerge 100 chunks");
    assert_eq!(described(&plan)[1], "a: merge 312 chunks");
    assert_eq!(described(&plan).last().unwrap(), "a: huge pages for 100 chunks");
    // A host short of memory keeps what is merged.
    let mut short = host;
    short.host.available_bytes = 8 * GIB;
    let (plan, _) = settled(&short, &Policy::default(), MAX);
    assert!(described(&plan).iter().all(|it| !it.contains("unmerge") && !it.contains("huge")));
    assert_eq!(why(&plan, "a", Actuator::Huge), SkipReason::HostShort);
}

#[test]
fn skipped_merging_has_a_reason() {
    let skip_reason = |change: fn(&mut Guest), policy: &str| {
        let mut guests = two_domains();
        change(&mut guests[2]);
        let policy = Policy::parse(policy, "f").unwrap();
        let (plan, _) = settled(&situation(50, guests), &policy, MAX);
        why(&plan, "blue-1", Actuator::Merge)
    };
    assert_eq!(skip_reason(|it| it.merge_domain = None, ""), SkipReason::NoDomain);
    assert_eq!(skip_reason(|it| it.survey = None, ""), SkipReason::NotSurveyed);
    let old = |it: &mut Guest| it.survey.as_mut().unwrap().age = Duration::from_secs(7200);
    assert_eq!(skip_reason(old, ""), SkipReason::NotSurveyed);
    assert_eq!(skip_reason(|it| it.survey = Some(survey(512, 3, 0)), ""), SkipReason::NoProfit);
    let backing = Backing::Shared;
    assert_eq!(
        skip_reason(|it| it.backing = Backing::Shared, ""),
        SkipReason::WrongBacking { backing }
    );
    assert_eq!(skip_reason(|_| {}, "preset = \"safe\""), SkipReason::NotAllowed);
    let mut host = situation(50, two_domains());
    host.host.ksm = None;
    let (plan, _) = settled(&host, &Policy::default(), MAX);
    assert_eq!(why(&plan, "blue-1", Actuator::Merge), SkipReason::NoKsm);
}

#[test]
fn clones_share_with_their_template_in_any_domain() {
    let mut guests = two_domains();
    for guest in &mut guests {
        guest.backing = Backing::Template;
        guest.survey.as_mut().unwrap().chunks.iter_mut().for_each(|it| it.template_pages = 256);
    }
    let (plan, _) = settled(&situation(50, guests), &Policy::default(), MAX);
    assert_eq!(described(&plan).len(), 5);
    assert!(
        described(&plan).contains(&"red-1: share 512 chunks with the template again".to_owned())
    );
    assert_eq!(why(&plan, "blue-1", Actuator::Merge), SkipReason::TemplateFirst);
    assert_eq!(plan.steps[0].expected_bytes, 512 * 256 * 4096);
}

#[test]
fn zeros_are_given_back_before_the_rest_is_merged() {
    let mut guests = two_domains();
    for guest in &mut guests {
        let chunks = &mut guest.survey.as_mut().unwrap().chunks;
        chunks.iter_mut().for_each(|it| (it.zero_pages, it.duplicate_pages) = (256, 128));
    }
    let host = situation(50, guests);
    let (plan, _) = settled(&host, &Policy::default(), MAX);
    let described = described(&plan);
    let zeros =
        described.iter().filter(|it| it.contains("give back the zeros of 512 chunks")).count();
    assert_eq!(zeros, host.guests.len(), "of each, whatever its domain: {described:?}");
    assert!(
        described[0].contains("zeros")
            && described.iter().any(|it| it == "blue-1: merge 512 chunks")
    );
    let of = |wanted: &str| {
        plan.steps.iter().find(|step| step.action.to_string() == wanted).unwrap().expected_bytes
    };
    assert_eq!(of("blue-1: give back the zeros of 512 chunks"), 512 * 256 * 4096);
    // 128 of the 256 pages left, each with 7 copies elsewhere, less the kernel's records of 256.
    assert_eq!(of("blue-1: merge 512 chunks"), 512 * (112 * 4096 - 256 * 64));
}

#[test]
fn skipped_zeros_have_a_reason() {
    let skip_reason = |change: fn(&mut Guest), policy: &str| {
        let mut guest = clone_of("a", "red");
        guest.survey.as_mut().unwrap().chunks.iter_mut().for_each(|it| it.zero_pages = 256);
        change(&mut guest);
        let policy = Policy::parse(policy, "f").unwrap();
        why(&settled(&situation(50, vec![guest]), &policy, MAX).0, "a", Actuator::Zeros)
    };
    assert_eq!(skip_reason(|it| it.survey = None, ""), SkipReason::NotSurveyed);
    assert_eq!(skip_reason(|it| it.survey = Some(survey(512, 3, 0)), ""), SkipReason::FewZeros);
    assert_eq!(skip_reason(|it| it.is_preallocated = true, ""), SkipReason::Preallocated);
    assert_eq!(skip_reason(|it| it.vmm = Vmm::Qemu, ""), SkipReason::ForeignVmm);
    let backing = Backing::Template;
    assert_eq!(
        skip_reason(|it| it.backing = Backing::Template, ""),
        SkipReason::WrongBacking { backing }
    );
    assert_eq!(skip_reason(|_| {}, "preset = \"safe\""), SkipReason::NotAllowed);
}

#[test]
fn pools_release_unused_pages() {
    let mut host = situation(50, Vec::new());
    let page_bytes = 2 * MIB;
    host.host.pools = vec![Pool { page_bytes, pages: 1000, free_pages: 600, reserved_pages: 100 }];
    let (plan, _) = settled(&host, &Policy::default(), MAX);
    assert_eq!(described(&plan), Vec::<String>::new(), "only where it is allowed");
    let policy = Policy::parse("preset = \"dense\"\n[pools]\nfree-max = \"200MiB\"", "f").unwrap();
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(described(&plan), ["pool of 2 MiB pages: from 1000 to 600"]);
    assert_eq!(plan.expected_bytes, 800 << 20);
    let gigantic = Pool { page_bytes: GIB, pages: 4, free_pages: 4, reserved_pages: 0 };
    host.host.pools.push(gigantic);
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(described(&plan), ["pool of 2 MiB pages: from 1000 to 600"], "those of 1 GiB stay");
    host.host.pools.pop();
    let policy = Policy::parse("preset = \"dense\"\n[pools]\nfree-min = \"2GiB\"", "f").unwrap();
    let (plan, _) = settled(&host, &policy, MAX);
    assert_eq!(described(&plan), ["pool of 2 MiB pages: from 1000 to 1524"]);
}

#[test]
fn a_reserve_of_huge_pages_is_not_made_of_unwanted_gigantic_ones() {
    let grown = |gigantic_pages: u64, free_min: &str| {
        let mut host = situation(50, Vec::new());
        let pool = |page_bytes: u64, pages: u64| Pool {
            page_bytes,
            pages,
            free_pages: 0,
            reserved_pages: 0,
        };
        host.host.pools = vec![pool(GIB, gigantic_pages), pool(2 * MIB, 0)];
        let text = format!("preset = \"dense\"\n[pools]\nfree-min = \"{free_min}\"");
        described(&settled(&host, &Policy::parse(&text, "f").unwrap(), MAX).0)
    };
    assert_eq!(grown(0, "2GiB"), ["pool of 2 MiB pages: from 0 to 1024"]);
    assert_eq!(grown(4, "24MiB"), ["pool of 2 MiB pages: from 0 to 12"]);
    let both = ["pool of 2 MiB pages: from 0 to 512", "pool of 1 GiB pages: from 4 to 5"];
    assert_eq!(grown(4, "1GiB"), both);
}

#[test]
fn plans_are_kept_as_json() {
    let host = situation(50, two_domains());
    let (plan, ledger) = settled(&host, &Policy::default(), MAX);
    let json = serde_json::to_string(&plan).unwrap();
    assert!(json.contains("\"kind\":\"drive-ksm\"") && json.contains("\"why\":\"other-domain\""));
    assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    let json = serde_json::to_string(&ledger).unwrap();
    let again = serde_json::from_str::<Ledger>(&json).unwrap();
    assert_eq!(serde_json::to_string(&again).unwrap(), json);
}
