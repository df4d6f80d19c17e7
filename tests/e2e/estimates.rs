//! `lighter migrate --estimate`: what it says before a migration, and how that compares with it.

use serde_json::Value;
use support::checks::one_intact_copy;
use support::{CRAWL, Exit, Guest, GuestPlan, Host, Migration, Pair, wait};

use crate::metrics::{scrape, value};

/// The working set, 16 MiB, takes two seconds on this link.
const LINK: [&str; 4] = ["--bandwidth", "8MB/s", "--compress", "off"];

/// A guest with a working set of 16 MiB, of which it writes `dirty_rate` pages per second.
fn guest(pair: &Pair, dirty_rate: u32) -> Guest {
    let working_set = "16M".to_owned();
    Guest::start(&pair.a, &GuestPlan { dirty_rate, working_set, ..GuestPlan::default() })
}

/// Asks `from` for an estimate of the migration of web-1 to `to`.
fn estimate(from: &Host, to: &Host, more: &[&str]) -> Value {
    let arguments = ["migrate", "web-1", to.node().address(), "--estimate", "--json"];
    from.run(&[&arguments[..], more].concat()).ok().json()
}

/// Asserts that an estimate was off by a factor of two at most.
#[track_caller]
fn agrees(estimated: &Value, measured: &Value) {
    let (estimated, measured) = (estimated.as_f64(), measured.as_f64());
    let (estimated, measured) = estimated.zip(measured).expect("two figures");
    let factor = estimated / measured;
    assert!((0.5..=2.0).contains(&factor), "{estimated} was estimated, and it was {measured}");
}

#[test]
fn an_estimate_agrees_with_the_migration_after_it() {
    let metric = "lighter_migrations_estimate_error_ratio";
    let pair = Pair::new();
    let guest = guest(&pair, 500);
    let limits = [&LINK[..], &["--downtime", "3s", "--on-stall", "wait"]].concat();

    let estimate = estimate(&pair.a, &pair.b, &limits);
    assert_eq!(estimate["converges"], true, "{estimate:#}");
    assert_eq!(estimate["measured"]["path"]["is_measured"], true, "{estimate:#}");
    assert!(pair.b.list().is_empty(), "nothing was created there");
    one_intact_copy(&pair.hosts(), guest.name(), &pair.a);

    let report = Migration::start(&pair.a, guest.name(), &pair.b, &limits).finish().ok();
    let (forecast, kept) = (&estimate["forecast"], &report["estimate"]);
    for figure in ["total_seconds", "downtime_seconds", "wire_bytes"] {
        let [kept, said] = [kept, forecast].map(|it| it[figure].as_f64().expect(figure));
        // Each time that a figure is read from JSON, its last bit may change.
        assert!((kept - said).abs() <= said * 1e-9, "{figure}: {report:#}");
    }
    agrees(&forecast["total_seconds"], &report["total_seconds"]);
    agrees(&forecast["wire_bytes"], &report["transfer"]["wire_bytes"]);
    wait::until("the node compares them", || {
        let count = format!("{metric}_count");
        let seen = value(&scrape(&pair.a), &count, &[("figure", "duration")]);
        wait::holds(seen == Some(1.0), seen)
    });
    one_intact_copy(&pair.hosts(), guest.name(), &pair.b);
}

#[test]
fn an_estimate_says_what_would_move_a_guest_that_writes_too_fast() {
    let pair = Pair::new();
    guest(&pair, 20_000);
    let limits = [&LINK[..], &["--downtime", "100ms", "--on-stall", "wait"]].concat();
    let estimate = estimate(&pair.a, &pair.b, &limits);
    assert_eq!(estimate["converges"], false, "{estimate:#}");
    assert_eq!(estimate["forecast"]["arrives"], false, "{estimate:#}");
    let forced = &estimate["alternatives"][1];
    assert_eq!(forced["on_stall"], "force", "{estimate:#}");
    assert_eq!(forced["arrives"], true, "{estimate:#}");
    assert!(forced["downtime_seconds"].as_f64() > Some(0.1), "{estimate:#}");

    let arguments = ["migrate", "web-1", pair.b.node().address(), "--estimate"];
    let done = pair.a.run(&[&arguments[..], &limits[..]].concat()).ok();
    for words in ["web-1 would not move to", "--on-stall force, or --downtime"] {
        assert!(done.stdout.contains(words), "{words} in {}", done.stdout);
    }
    one_intact_copy(&pair.hosts(), "web-1", &pair.a);
}

#[test]
fn a_guest_that_is_migrated_and_a_host_that_is_not_there_give_no_estimate() {
    let pair = Pair::new();
    guest(&pair, 500);
    let ask = |address: &str| pair.a.run(&["migrate", "web-1", address, "--estimate"]);
    ask("127.0.0.1:1").complains(Exit::Failed, &["cannot estimate", "does not answer"]);

    let migration = Migration::start(&pair.a, "web-1", &pair.b, &CRAWL);
    migration.await_phase("precopy");
    ask(pair.b.node().address()).complains(Exit::Failed, &["is being migrated"]);
    pair.a.run(&["cancel", "web-1"]).ok();
    migration.finish().cancelled();
    one_intact_copy(&pair.hosts(), "web-1", &pair.a);
}
