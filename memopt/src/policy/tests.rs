//! Valid and invalid policy files.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::labels::Selector;
use crate::plan::fixture::guest;
use crate::settings::FILE_BYTES_MAX;
use crate::situation::{Guest, User, Vmm};
use crate::units::{GIB, MIB, part};

const FULL: &str = r#"
preset = "dense"
goal = "keep 15% headroom"
actuators = ["balloon", "merge"]

[host]
amber-below = "12.5%"

[balloon]
reserve = "25%"
reserve-min = "192MiB"
floor = "30%"
step = "2%"
dead-band-min = "16MiB"
timeout = "45s"

[pressure]
major-faults = 300

[merge]
activity = "dirty-log"
cpu = "30%"
cpu-time = "10m"
pages-per-second = 100000
window = "2h"
pause = "30m"
gain-min = "8MiB"

[huge]
present = "80%"

[pools]
free-min = "64MiB"
free-max = "1GiB"

[[guest]]
name = "db-*"
min = "2GiB"
max = "8GiB"
priority = 1000

[[guest]]
label = ["tier=batch", "team!=shop", "tier", "!pinned"]
take = false
merge-domain = "batch"
actuators = "balloon"

[[guest]]
name = "db-1"
optimize = false
merge-domain = false
"#;

#[test]
fn every_field_is_read() {
    let policy = Policy::parse(FULL, "lighter.toml").expect("a policy");
    let minutes = |count: u64| Duration::from_secs(count * 60);
    let mut expected = Preset::Dense.policy();
    expected.goal = Goal::Keep(0.15);
    expected.actuators = [Actuator::Balloon, Actuator::Merge].into();
    expected.host.amber_below = 0.125;
    expected.balloon = BalloonPolicy {
        reserve: 0.25,
        reserve_min_bytes: 192 * MIB,
        floor: 0.3,
        step: 0.02,
        dead_band_min_bytes: 16 * MIB,
        timeout: Duration::from_secs(45),
        ..expected.balloon
    };
    expected.pressure.major_faults_per_s = 300.0;
    expected.merge = MergePolicy {
        activity: Activity::DirtyLog,
        cpu: 0.3,
        cpu_time: minutes(10),
        pages_per_s: 100_000,
        window: minutes(120),
        pause: minutes(30),
        gain_min_bytes: 8 * MIB,
        ..expected.merge
    };
    expected.huge.present = 0.8;
    expected.pools = PoolPolicy { free_min_bytes: 64 * MIB, free_max_bytes: GIB };
    expected.guests.clone_from(&policy.guests);
    assert_eq!(policy, expected);
    let written = serde_json::to_value(&policy).expect("JSON");
    let again: Policy = serde_json::from_value(written).expect("what was written");
    assert_eq!(again, policy);
}

/// Each key of [`FULL`] changes something: none is parsed and then ignored.
#[test]
fn no_key_is_without_effect() {
    let whole = Policy::parse(FULL, "f").expect("a policy");
    let lines: Vec<&str> = FULL.lines().collect();
    for (number, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" = ")) {
        let mut fewer = lines.clone();
        fewer.remove(number);
        let without = Policy::parse(&fewer.join("\n"), "f").expect(line);
        assert_ne!(without, whole, "{line}");
    }
}

#[test]
fn outdated_keys_are_refused_with_their_replacement() {
    for (table, keys) in retired::ALL {
        for (key, instead) in keys {
            let text = format!("[{table}]\n{key} = 0");
            refused(&text, &format!("2: {table}.{key}"), &instead.to_string());
        }
    }
    refused("[host]\nred-below = \"4%\"", "2: host.red-below", "decided by `preset` now");
    refused("[pain]\nstale-after = \"5m\"", "2: pain.stale-after", "called `balloon.timeout`");
    refused("[pain]", "1: pain", "called `pressure` now");
    refused("[pain]\nmajor-fault = 1", "1: pain", "called `pressure` now");
    let faults = "called `pressure.major-faults` now";
    refused("[pain]\nmajor-faults = 60", "2: pain.major-faults", faults);
    let several = "[merge]\ncpu = \"10%\"\nflat = \"1%\"\npasses = 4\nsplit-share = \"9%\"";
    refused(
        several,
        "3: merge.flat",
        "fixed now, the same for every policy: take the line out (also gone: ",
    );
    refused(several, "3: merge.flat", "`passes`, `split-share`)");
    refused("[verify]", "1: verify", "is gone");
    refused("[verify]\ntry = 3", "1: verify", "the same for everybody");
    refused("[verifying]", "1: verifying", "keys here: preset, goal");
}

#[test]
fn every_key_of_the_file_is_known() {
    let policy = serde_json::to_value(Policy::default()).expect("JSON");
    for key in policy.as_object().expect("an object").keys() {
        // Each rule is its own `[[guest]]` table.
        let key = if key == "guests" { "guest" } else { key };
        let said = Policy::parse(&format!("{key} = 0"), "f").expect_err(key).to_string();
        assert!(!said.contains("unknown key"), "{said}");
    }
}

#[test]
fn guests_outside_the_scope_are_not_reduced_whatever_their_name() {
    let labelled = |name: &str, tier: &str| crate::situation::Guest {
        labels: [("tier".to_owned(), tier.to_owned())].into(),
        ..guest(name, GIB)
    };
    let scope = Selector::new(vec!["tier=batch".parse().expect("a test")]);
    let policy = Policy { scope, ..Policy::default() };
    assert!(policy.limits(&labelled("a*b*c", "batch")).take);
    assert!(!policy.limits(&labelled("a*b*c", "prod")).take);
    let spared = Policy::parse("[[guest]]\nname = \"db-*\"\ntake = false", "f").expect("a policy");
    let policy = Policy { scope: policy.scope, ..spared };
    assert!(!policy.limits(&labelled("db-1", "batch")).take);
}

#[test]
fn an_empty_file_is_the_balanced_preset() {
    assert_eq!(Policy::parse("", "f").expect("nothing"), Preset::Balanced.policy());
    let schedules = "[[schedule]]\nname = \"night\"\n";
    assert_eq!(Policy::parse(schedules, "f").expect("not ours"), Policy::default());
}

/// Asserts that `text` is refused with an error that contains `place` and `word`.
#[track_caller]
fn refused(text: &str, place: &str, word: &str) {
    let said = Policy::parse(text, "lighter.toml").expect_err(text).to_string();
    assert!(said.starts_with(&format!("lighter.toml:{place}: ")), "{said}");
    assert!(said.contains(word), "{said}");
    assert!(!said.contains('\n') && said.len() < 400, "{said}");
}

#[test]
fn faults_name_line_and_field() {
    refused("preset = \"danse\"", "1: preset", "none of safe");
    refused("\n[balloon]\nstp = \"2%\"", "3: balloon.stp", "did you mean `step`?");
    refused("goals = \"max density\"", "1: goals", "did you mean `goal`?");
    refused("[[schedules]]", "1: schedules", "did you mean `schedule`?");
    refused("[zebra]", "1: zebra", "unknown key");
    refused("goal = \"free\"", "1: goal", "is not a goal");
    refused("goal = \"free lots\"", "1: goal: `lots` is not a size", "write it as");
    refused("[balloon]\nreserve = 20", "2: balloon.reserve", "must be quoted");
    refused("[balloon]\nreserve = \"20\"", "2: balloon.reserve", "write it as 20%");
    refused("[balloon]\nfloor = \"1%\"", "2: balloon.floor", "`1%` is not from 5% to 100%");
    refused("[balloon]\nfloor = \"4.99%\"", "2: balloon.floor", "`4.99%` is not from 5% to");
    refused("[balloon]\ntimeout = \"2h\"", "2: balloon.timeout", "`2h` is not from 5s to 1h");
    refused(
        "[merge]\npages-per-second = 100.5",
        "2: merge.pages-per-second",
        "whole number from 100 to",
    );
    refused("balloon = 1", "1: balloon", "is a table, not a number");
    refused("[host]\namber-below = \"4%\"", "2: host.amber-below", "`4%` is not from 5% to 90%");
    refused("[[guest]]\nmax = \"512\"", "2: guest[0].max", "less than 4 MiB");
    refused(
        "[pressure]\nmajor-faults = \"3\"",
        "2: pressure.major-faults",
        "is a number from 0 to",
    );
    refused(
        "[[guest]]\n\n[[guest]]\nmin = \"2G\"\nmax = \"1G\"",
        "5: guest[1].max",
        "more than `max`, 1 GiB",
    );
    refused("[[guest]]\nname = \"a**\"", "2: guest[0].name", "single `*`");
    refused("[[guest]]\nuser = \"\"", "2: guest[0].user", "libvirt-qemu");
    refused("[[guest]]\nlabel = \"=tier\"", "2: guest[0].label", "tier=batch");
    refused("[[guest]]\nactuators = [1]", "2: guest[0].actuators", "list of texts");
    refused("[[guest]]\nactuators = \"magic\"", "2: guest[0].actuators", "balloon, merge");
    refused("[[guest]]\nmerge-domain = true", "2: guest[0].merge-domain", "false for none");
    refused("[[guest]]\npriority = 0", "2: guest[0].priority", "from 1 to 10000");
    refused("[guest]\nname = \"a\"", "1: guest", "[[guest]]");
}

#[test]
fn invalid_toml_is_refused_with_its_line() {
    let said = Policy::parse("goal = \"max density\"\n[host", "p.toml").unwrap_err().to_string();
    assert!(said.starts_with("p.toml:2: ") && !said.contains('\n'), "{said}");
}

#[test]
fn huge_files_are_refused_unread() {
    refused(&" ".repeat(FILE_BYTES_MAX + 1), "1", "the file is longer than");
    let rules = "[[guest]]\n".repeat(RULES_MAX + 1);
    refused(&rules, "1: guest", "at most 1024");
    let name = format!("1: {}...", "a".repeat(40));
    refused(&format!("{} = 1", "a".repeat(50_000)), &name, "unknown key");
    let nested = format!("a = {}", "[".repeat(100_000));
    assert!(Policy::parse(&nested, "f").is_err());
}

#[test]
fn later_rules_override_only_the_keys_they_set() {
    let policy = Policy::parse(FULL, "lighter.toml").expect("a policy");
    let mut db = guest("db-1", 16 * GIB);
    db.merge_domain = Some("prod".to_owned());
    let limits = policy.limits(&db);
    assert_eq!((limits.floor_bytes, limits.max_bytes), (part(8 * GIB, 0.3), 8 * GIB));
    assert_eq!((limits.priority, limits.optimize, limits.merge_domain), (1000, false, None));

    let mut batch = guest("job", GIB);
    batch.labels.insert("tier".to_owned(), "batch".to_owned());
    batch.labels.insert("team".to_owned(), "bank".to_owned());
    let limits = policy.limits(&batch);
    assert_eq!(limits.merge_domain.as_deref(), Some("batch"));
    assert_eq!(limits.actuators, [Actuator::Balloon].into());
    assert_eq!((limits.max_bytes, limits.priority, limits.optimize), (GIB, 100, true));
    assert!(!limits.take && policy.limits(&guest("any", GIB)).take);
    let mut pinned = batch.clone();
    pinned.labels.insert("pinned".to_owned(), String::new());
    assert_eq!(policy.limits(&pinned).merge_domain, None);
    batch.labels.insert("team".to_owned(), "shop".to_owned());
    assert_eq!(policy.limits(&batch).merge_domain, None);
}

/// A guest that a process of user 1000 claims is called `name`, with the suffix that distinguishes
/// it from others that claim the same name.
fn claims(name: &str, pid: u32) -> Guest {
    let user = Some(User { uid: 1000, name: Some("bob".to_owned()) });
    Guest { vmm: Vmm::Qemu, pid, user, ..guest(name, 16 * GIB) }
}

#[test]
fn prohibitions_apply_to_every_guest_that_claims_the_name() {
    let text = r#"
        [[guest]]
        name = "untouchable"
        optimize = false
        [[guest]]
        name = "db-*"
        take = false
        max = "8GiB"
        priority = 10
        actuators = ["balloon", "huge"]
    "#;
    let policy = Policy::parse(text, "f").expect("a policy");
    for name in ["untouchable", "untouchable@1234"] {
        assert!(!policy.limits(&claims(name, 1234)).optimize, "{name}");
    }
    for name in ["db-1", "db-1@1234"] {
        let limits = policy.limits(&claims(name, 1234));
        assert_eq!((limits.take, limits.max_bytes, limits.priority), (false, 8 * GIB, 10));
        assert_eq!(limits.actuators, [Actuator::Balloon, Actuator::Huge].into());
        assert!(!limits.is_denied, "nothing would have been given");
    }
    // A suffix other than the one that distinguishes guests is part of the name.
    assert!(policy.limits(&claims("untouchable@1234", 5)).optimize);
}

#[test]
fn a_name_alone_gives_a_guest_of_another_program_nothing() {
    let rule = r#"
        [[guest]]
        optimize = false
        take = false
        max = "1GiB"
        priority = 50
        actuators = "balloon"
        merge-domain = false
        [[guest]]
        name = "db-*"
        optimize = true
        take = true
        min = "1GiB"
        max = "4GiB"
        priority = 10000
        actuators = ["balloon", "merge"]
        merge-domain = "bank"
    "#;
    let policy = |user: &str| Policy::parse(&format!("{rule}{user}"), "f").expect("a policy");
    let given = policy("user = \"bob\"").limits(&claims("db-1@7", 7));
    assert!(given.optimize && given.take && !given.is_denied && !given.lacks_user);
    assert_eq!((given.floor_bytes, given.max_bytes), (GIB, 4 * GIB));
    assert_eq!((given.priority, given.merge_domain.as_deref()), (10_000, Some("bank")));
    assert_eq!(given.actuators, [Actuator::Balloon, Actuator::Merge].into());

    let denied = policy("").limits(&claims("db-1", 7));
    assert!(!denied.optimize && !denied.take && denied.is_denied && denied.lacks_user);
    assert_eq!((denied.floor_bytes, denied.max_bytes), (part(GIB, 0.25), GIB));
    assert_eq!((denied.priority, denied.merge_domain), (50, None));
    assert_eq!(denied.actuators, [Actuator::Balloon].into());
    // A guest of another user does not match, and a guest of lighter is identified by its name
    // alone.
    let other = policy("user = \"libvirt-qemu\"").limits(&claims("db-1", 7));
    assert_eq!((other.priority, other.is_denied, other.lacks_user), (50, false, false));
    let ours = policy("").limits(&guest("db-1", 16 * GIB));
    assert_eq!((ours.priority, ours.merge_domain.as_deref()), (10_000, Some("bank")));
}

#[test]
fn a_domain_that_is_not_given_by_a_name_leaves_no_other_one() {
    let text = r#"
        [[guest]]
        user = "bob"
        merge-domain = "shop"
        [[guest]]
        name = "db-*"
        merge-domain = "bank"
    "#;
    let policy = Policy::parse(text, "f").expect("a policy");
    let limits = policy.limits(&claims("db-1", 7));
    assert_eq!((limits.merge_domain, limits.lacks_user), (None, true));
    let limits = policy.limits(&claims("web", 8));
    assert_eq!((limits.merge_domain.as_deref(), limits.lacks_user), (Some("shop"), false));
}

#[test]
fn presets_obey_the_rules_for_files() {
    for preset in Preset::ALL {
        let policy = preset.policy();
        assert!(policy.merge.leave_share <= policy.merge.join_share, "{preset}");
        assert!(policy.merge.join_share <= policy.merge.split_share, "{preset}");
        assert!(policy.host.red_below <= policy.host.amber_below, "{preset}");
        let read = Policy::parse(&format!("preset = \"{preset}\""), "f").expect("a preset");
        assert_eq!(read, policy);
    }
}

proptest! {
    #[test]
    fn damaged_files_never_panic(at in 0..FULL.len(), with in any::<char>(), end in 0..FULL.len()) {
        let mut text: Vec<char> = FULL.chars().collect();
        text[at] = with;
        let damaged: String = text.into_iter().take(end).collect();
        let _ = Policy::parse(&damaged, "f");
    }

    #[test]
    fn limits_never_cross(memory in 0..64 * GIB, min in 0..64 * GIB, max in 0..64 * GIB) {
        let mut policy = Policy::default();
        policy.guests.push(GuestRule {
            min_bytes: Some(min), max_bytes: Some(max), ..GuestRule::default()
        });
        let limits = policy.limits(&guest("a", memory));
        prop_assert!(limits.floor_bytes <= limits.max_bytes);
        prop_assert!(limits.max_bytes <= memory && limits.max_bytes <= max);
    }
}
