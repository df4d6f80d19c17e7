//! Guests that write faster than their memory is sent, and what `--on-stall` and `--set` do about
//! them.

use std::time::Duration;

use serde_json::Value;
use support::checks::{nothing_left_behind, one_intact_copy};
use support::{Exit, Guest, GuestPlan, Migration, Pair, Running, wait};

use crate::events::{await_events, listen};
use crate::metrics::{scrape, value};

/// The working set, 16 MiB, takes two seconds on this link: the guest writes all of it meanwhile.
pub(crate) const LINK: [&str; 4] = ["--bandwidth", "8MB/s", "--compress", "off"];

/// A guest that writes its whole working set several times a second.
pub(crate) fn hot() -> GuestPlan {
    GuestPlan { dirty_rate: 20_000, working_set: "16M".to_owned(), ..GuestPlan::default() }
}

fn start(pair: &Pair, more: &[&str]) -> Migration {
    Guest::start(&pair.a, &hot());
    Migration::start(&pair.a, "web-1", &pair.b, &[&LINK, more].concat())
}

/// As `start`, for a guest that is to stall whatever else its host does: in the four seconds that
/// its working set takes, it writes all of it as soon as it gets a processor for a few hundredths
/// of one.
fn start_stalling(pair: &Pair, more: &[&str]) -> Migration {
    Guest::start(&pair.a, &GuestPlan { dirty_rate: 100_000, ..hot() });
    migrate_stalling(pair, more)
}

/// Migrates the guest of [`start_stalling`].
fn migrate_stalling(pair: &Pair, more: &[&str]) -> Migration {
    let link = ["--bandwidth", "4MB/s", "--compress", "off"];
    Migration::start(&pair.a, "web-1", &pair.b, &[&link, more].concat())
}

/// Waits until the running migration's progress shows what is asked for.
#[track_caller]
fn shows(pair: &Pair, what: &str, holds: impl Fn(&Value) -> bool) {
    wait::until(what, || {
        let status = pair.a.guest("web-1").get("/v1/guest/migration")?;
        wait::holds(holds(&status["progress"]), status)
    });
}

/// Waits until the running migration slows the guest down.
#[track_caller]
pub(crate) fn is_throttled(pair: &Pair) {
    shows(pair, "the guest is throttled", |progress| {
        progress["throttle_percent"] != 0 && progress["throttled_vcpus"] == 1
    });
}

/// Waits until the guest of [`hot`] writes as fast as before: it is not left throttled.
#[track_caller]
pub(crate) fn writes_at_its_full_rate(guest: &Guest) {
    let written = || {
        let workload = guest.get("/v1/guest/workload")?;
        Ok::<_, String>(workload["pages_written"].as_u64().unwrap_or(0))
    };
    wait::until("the guest writes at its full rate", || {
        let before = written()?;
        std::thread::sleep(Duration::from_secs(1));
        let pages = written()?.saturating_sub(before);
        wait::holds(pages > 10_000, pages.to_string())
    });
}

/// The decisions about a guest that has left which `listener` has heard of, and which the report
/// of its migration lists as well.
#[track_caller]
fn decided(listener: Running, report: &Value) -> Vec<Value> {
    let heard = await_events(&listener, &["migration-decided", "stopped"]);
    let heard: Vec<_> =
        heard.into_iter().filter(|event| event["event"] == "migration-decided").collect();
    let names = |decisions: &[Value]| -> Vec<Value> {
        decisions.iter().map(|decided| decided["decision"].clone()).collect()
    };
    let listed = report["decisions"].as_array().expect("a list");
    assert_eq!(names(&heard), names(listed), "{report:#}");
    // It would count as left behind.
    drop(listener);
    heard
}

#[test]
fn a_hot_guest_arrives_throttled() {
    let pair = Pair::new();
    let listener = listen(&pair.a);
    let metric = "lighter_migration_throttle_ratio";
    let migration = start(&pair, &["--on-stall", "throttle", "--downtime", "300ms"]);
    is_throttled(&pair);
    wait::until("the node shows the throttle", || {
        let labels = [("guest", "web-1"), ("direction", "outgoing")];
        let ratio = value(&scrape(&pair.a), metric, &labels);
        wait::holds(ratio > Some(0.0), ratio)
    });
    let report = migration.finish().ok();
    assert_eq!(report["stall"]["on_stall"], "throttle", "{report:#}");
    assert!(report["stall"]["throttle_percent_max"].as_u64() >= Some(20), "{report:#}");
    assert_eq!(report["stall"]["throttled_vcpus"], 1, "{report:#}");
    assert_eq!(report["stall"]["forced"], false, "{report:#}");
    assert!(report["expected_downtime_seconds"].as_f64() <= Some(0.3), "{report:#}");
    let decided = decided(listener, &report);
    assert_eq!(decided[0]["decision"], "stalled", "{decided:#?}");
    assert_eq!(decided[0]["on_stall"], "throttle", "{decided:#?}");
    assert!(decided[0]["expected_downtime_seconds"].as_f64() > Some(0.3), "{decided:#?}");
    assert_eq!(decided[1]["decision"], "throttled", "{decided:#?}");
    assert!(decided[1]["percent"].as_u64() >= Some(20), "{decided:#?}");
    let steps = decided.iter().filter(|event| event["decision"] == "throttled").count();
    wait::until("the node counts the steps of the throttle", || {
        let labels = [("guest", "web-1"), ("decision", "throttled")];
        let counted = value(&scrape(&pair.a), "lighter_migration_decisions_total", &labels);
        wait::holds(counted == Some(steps as f64), counted)
    });
    one_intact_copy(&pair.hosts(), "web-1", &pair.b);
}

#[test]
fn a_hot_guest_arrives_once_its_downtime_limit_is_raised_far_enough() {
    let pair = Pair::new();
    let listener = listen(&pair.a);
    let more = ["--on-stall", "cancel", "--downtime", "2s", "--downtime-max", "20s"];
    let report = start_stalling(&pair, &more).finish().ok();
    let decided = decided(listener, &report);
    assert_eq!(decided[0]["decision"], "stalled", "{decided:#?}");
    assert_eq!(decided[0]["downtime_limit_seconds"], 2.0, "{decided:#?}");
    let (steps, mut limit) = (&decided[1..], 2.0);
    for step in steps {
        limit *= 2.0;
        assert_eq!(step["decision"], "limit_raised", "{decided:#?}");
        assert_eq!(step["downtime_limit_seconds"], limit, "{decided:#?}");
        assert_eq!(step["downtime_max_seconds"], 20.0, "{decided:#?}");
    }
    let expected = report["expected_downtime_seconds"].as_f64();
    assert!(expected > Some(limit / 2.0) && expected <= Some(limit), "{report:#}");
    wait::until("the node counts the steps", || {
        let labels = [("guest", "web-1"), ("decision", "limit_raised")];
        let counted = value(&scrape(&pair.a), "lighter_migration_decisions_total", &labels);
        wait::holds(counted == Some(steps.len() as f64), counted)
    });
    one_intact_copy(&pair.hosts(), "web-1", &pair.b);
}

#[test]
fn a_hot_guest_arrives_by_force() {
    let pair = Pair::new();
    let more = ["--on-stall", "force", "--downtime", "100ms"];
    let report = start_stalling(&pair, &more).finish().ok();
    assert_eq!(report["stall"]["forced"], true, "{report:#}");
    assert!(report["expected_downtime_seconds"].as_f64() > Some(0.1), "{report:#}");
    one_intact_copy(&pair.hosts(), "web-1", &pair.b);
}

#[test]
fn a_hot_guest_arrives_before_its_memory() {
    let pair = Pair::new();
    let more = ["--on-stall", "postcopy", "--downtime", "100ms"];
    let report = start_stalling(&pair, &more).finish().ok();
    assert_eq!(report["stall"]["postcopy"], true, "{report:#}");
    assert_eq!(report["stall"]["forced"], false, "{report:#}");
    assert!(report["page_waits"]["longest_seconds"].as_f64() > Some(0.0), "{report:#}");
    let metric = "lighter_migration_page_wait_seconds";
    wait::until("the node shows for how long the guest waited", || {
        let labels = [("guest", "web-1"), ("direction", "incoming")];
        let waits = value(&scrape(&pair.b), &format!("{metric}_count"), &labels);
        wait::holds(waits > Some(0.0), waits)
    });
    one_intact_copy(&pair.hosts(), "web-1", &pair.b);
    nothing_left_behind(&[&pair.a]);
}

#[test]
fn a_hot_guest_stays_if_its_migration_is_to_be_cancelled() {
    let pair = Pair::new();
    let migration = start_stalling(&pair, &["--on-stall", "cancel", "--downtime", "100ms"]);
    migration.finish().stayed(&["stalled", "too fast to be paused for less than"]);
    one_intact_copy(&pair.hosts(), "web-1", &pair.a);
}

#[test]
fn a_migration_that_waits_is_told_to_throttle_and_the_throttle_ends_when_it_is_cancelled() {
    let pair = Pair::new();
    let migration = start_stalling(&pair, &["--on-stall", "wait", "--downtime", "100ms"]);
    shows(&pair, "it does not converge", |progress| progress["converging"] == false);
    let set = |setting: &str| pair.a.run(&["migrate", "web-1", "--set", setting]);
    set("on-stall=throttle").ok();
    is_throttled(&pair);
    pair.a.run(&["cancel", "web-1"]).ok();
    migration.finish().cancelled();
    writes_at_its_full_rate(&pair.a.guest("web-1"));
    set("on-stall=force").complains(Exit::Failed, &["not being migrated"]);
    one_intact_copy(&pair.hosts(), "web-1", &pair.a);
}

#[test]
fn a_preset_alone_says_how_long_the_pause_may_be_and_what_to_do_about_a_stall() {
    let pair = Pair::new();
    let gentle = start_stalling(&pair, &["--preset", "gentle"]);
    shows(&pair, "a gentle migration stalls, and waits", |progress| {
        let stalled = &progress["decisions"][0];
        stalled["decision"] == "stalled" && stalled["on_stall"] == "wait"
    });
    shows(&pair, "its pause may take 300 ms, and its guest is not slowed down", |progress| {
        progress["downtime_limit_seconds"] == 0.3
            && progress["on_stall"] == "wait"
            && progress["throttle_percent"] == 0
    });
    pair.a.run(&["cancel", "web-1"]).ok();
    gentle.finish().cancelled();

    let report = migrate_stalling(&pair, &["--preset", "now"]).finish().ok();

    let stalled = &report["decisions"][0];
    assert_eq!(stalled["decision"], "stalled", "{report:#}");
    assert_eq!(stalled["downtime_limit_seconds"], 1.0, "{report:#}");
    assert_eq!(report["stall"]["on_stall"], "force", "{report:#}");
    assert_eq!(report["stall"]["forced"], true, "{report:#}");
    one_intact_copy(&pair.hosts(), "web-1", &pair.b);
}

#[test]
fn a_migration_takes_new_limits_on_the_way() {
    let pair = Pair::new();
    let listener = listen(&pair.a);
    let migration = start(&pair, &["--on-stall", "wait", "--downtime", "100ms"]);
    migration.await_phase("precopy");
    pair.b
        .run(&["migrate", "web-1", "--set", "downtime=1s"])
        .complains(Exit::Failed, &["change them there"]);
    pair.a
        .run(&["migrate", "web-1", "--set", "downtime-max=50ms"])
        .complains(Exit::Failed, &["at least the downtime limit, 0.1 s"]);
    let longer = "downtime=20s,downtime-max=30s,bandwidth=none";
    pair.a.run(&["migrate", "web-1", "--set", longer, "--set", "timeout=5m"]).ok();
    let report = migration.finish().ok();
    assert!(report["expected_downtime_seconds"].as_f64() <= Some(20.0), "{report:#}");
    let decided = decided(listener, &report);
    let changed = decided.iter().find(|event| event["decision"] == "limits_changed");
    let changed = changed.expect("a change");
    assert_eq!(changed["downtime_limit_seconds"], 20.0, "{changed:#}");
    assert_eq!(changed["downtime_max_seconds"], 30.0, "{changed:#}");
    assert_eq!(changed["time_limit_seconds"], 300.0, "{changed:#}");
    assert_eq!(changed["bandwidth_limit_bytes_per_second"], 0, "{changed:#}");
    assert_eq!(changed.get("on_stall"), None, "{changed:#}");
    one_intact_copy(&pair.hosts(), "web-1", &pair.b);
    nothing_left_behind(&[&pair.a]);
}
