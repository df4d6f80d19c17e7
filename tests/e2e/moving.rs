//! Migrations that succeed: there and back, many in a row, of a paused guest; and the content of
//! their reports.

use serde_json::Value;

use support::checks::{memory_is_intact, no_copy_runs, nothing_left_behind, one_intact_copy};
use support::kernel::sleeper;
use support::{Guest, GuestPlan, Host, Migration, NodePlan, Pair, wait};

#[test]
fn a_busy_guest_moves_there_and_back() {
    let pair = Pair::new();
    let plan = GuestPlan { dirty_rate: 2000, ..GuestPlan::default() };
    Guest::start(&pair.a, &plan);

    let there = Migration::run(&pair.a, &plan.name, &pair.b).ok();
    one_intact_copy(&pair.hosts(), &plan.name, &pair.b);
    let back = Migration::run(&pair.b, &plan.name, &pair.a).ok();
    one_intact_copy(&pair.hosts(), &plan.name, &pair.a);

    for report in [there, back] {
        accounts_for_the_guest(&report, 64 << 20);
    }
}

#[test]
fn the_process_of_a_guest_that_arrives_logs_as_its_node_does() {
    let arguments = ["--log-format", "json"].map(str::to_owned).to_vec();
    let as_json = NodePlan { arguments, ..NodePlan::default() };
    let pair = Pair::with_nodes(&NodePlan::default(), &as_json);
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    Migration::run(&pair.a, guest.name(), &pair.b).ok();
    // The guest's own process must log: the node takes no part in a migration.
    let logs = wait::until("the guest's process logs something", || {
        let logs = pair.b.logs();
        if logs.contains("closing a connection") { Ok(logs) } else { Err(logs) }
    });
    // The last line may be incomplete.
    for line in logs[..=logs.rfind('\n').expect("a line")].lines() {
        serde_json::from_str::<Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    }
}

#[test]
fn a_destination_without_the_guests_kernel_is_warned_of() {
    let pair = Pair::new();
    let kernel = sleeper(pair.folder());
    let path = kernel.display().to_string();
    let start = ["run", "--detach", "--name", "boots", "--memory", "64M", "--kernel", &path];
    pair.a.run(&start).ok();
    let go = |from, to| Migration::start(from, "boots", to, &[]).finish().done.ok().stderr;
    let elsewhere = kernel.with_extension("elsewhere");
    std::fs::rename(&kernel, &elsewhere).expect("the kernel");
    let warned = go(&pair.a, &pair.b);
    for words in ["warning: ", "does not have", "sleeper", "cannot reboot"] {
        assert!(warned.contains(words), "{warned}");
    }
    std::fs::rename(&elsewhere, &kernel).expect("the kernel");
    let silent = go(&pair.b, &pair.a);
    assert!(!silent.contains("does not have"), "{silent}");
}

/// Asserts that the report accounts for all memory, in rounds, with a downtime, and that its parts
/// add up.
fn accounts_for_the_guest(report: &Value, memory_bytes: u64) {
    assert_eq!(report["memory_bytes"], memory_bytes, "{report:#}");
    let pages = ["zero_pages", "raw_pages", "lz4_pages"]
        .map(|kind| report["transfer"][kind].as_u64().expect(kind));
    assert!(
        pages.iter().sum::<u64>() >= memory_bytes / 4096,
        "every page at least once: {report:#}"
    );
    assert!(report["transfer"]["wire_bytes"].as_u64() > Some(0), "{report:#}");
    let rounds = report["rounds"].as_array().expect("rounds");
    assert_eq!(Some(rounds.len() as u64), report["rounds_total"].as_u64(), "{report:#}");
    let total = report["total_seconds"].as_f64().expect("a total time");
    let downtime = report["downtime_seconds"].as_f64().expect("a downtime");
    assert!(0.0 < downtime && downtime < total, "{report:#}");
}

#[test]
fn twenty_migrations_in_a_row_with_one_vcpu() {
    twenty_in_a_row(1);
}

#[test]
fn twenty_migrations_in_a_row_with_two_vcpus() {
    twenty_in_a_row(2);
}

fn twenty_in_a_row(cpus: u8) {
    let pair = Pair::new();
    let plan =
        GuestPlan { cpus, memory: "32M".to_owned(), dirty_rate: 2000, ..GuestPlan::default() };
    Guest::start(&pair.a, &plan);
    let ways = [(&pair.a, &pair.b), (&pair.b, &pair.a)];
    for (from, to) in ways.iter().cycle().take(20) {
        Migration::run(from, &plan.name, to).ok();
        memory_is_intact(&to.guest(&plan.name));
    }
    one_intact_copy(&pair.hosts(), &plan.name, &pair.a);
}

#[test]
fn a_paused_guest_arrives_paused_and_can_be_resumed() {
    let pair = Pair::new();
    let plan = GuestPlan::default();
    Guest::start(&pair.a, &plan);
    let witness =
        Guest::start(&pair.a, &GuestPlan { name: "witness".to_owned(), ..GuestPlan::default() });
    pair.a.run(&["pause", &plan.name]).ok();
    let ticks = pair.a.guest(&plan.name).ticks();

    Migration::run(&pair.a, &plan.name, &pair.b).ok();
    let arrived = pair.b.guest(&plan.name);
    arrived.await_state("paused");
    no_copy_runs(&pair.hosts(), &plan.name, &witness);
    assert_eq!(arrived.ticks(), ticks, "it has run on the way");

    pair.b.run(&["resume", &plan.name]).ok();
    one_intact_copy(&pair.hosts(), &plan.name, &pair.b);
}

#[test]
fn several_guests_move_at_the_same_time() {
    let pair = Pair::new();
    let names = ["one", "two", "three"];
    for name in names {
        Guest::start(
            &pair.a,
            &GuestPlan { name: name.to_owned(), memory: "32M".to_owned(), ..GuestPlan::default() },
        );
    }
    let under_way: Vec<Migration> =
        names.map(|name| Migration::start(&pair.a, name, &pair.b, &[])).into();
    for migration in under_way {
        migration.finish().ok();
    }
    for name in names {
        one_intact_copy(&pair.hosts(), name, &pair.b);
    }
}

#[test]
fn a_guest_moves_with_each_way_to_send_its_pages() {
    let pair = Pair::new();
    let plan = GuestPlan::default();
    Guest::start(&pair.a, &plan);
    let ways = [
        ["--compress", "off"],
        ["--compress", "lz4"],
        ["--connections", "1"],
        ["--connections", "4"],
    ];
    let mut hosts: [&Host; 2] = pair.hosts();
    for way in ways {
        let report = Migration::start(hosts[0], &plan.name, hosts[1], &way).finish().ok();
        if way == ["--compress", "off"] {
            assert_eq!(report["transfer"]["lz4_pages"], 0, "{report:#}");
        }
        if way == ["--compress", "lz4"] {
            assert!(report["transfer"]["lz4_pages"].as_u64() > Some(0), "{report:#}");
        }
        memory_is_intact(&hosts[1].guest(&plan.name));
        hosts.reverse();
    }
    nothing_left_behind(&pair.hosts());
}

#[test]
fn a_bandwidth_limit_is_kept() {
    let pair = Pair::new();
    let plan = GuestPlan { dirty_rate: 100, ..GuestPlan::default() };
    Guest::start(&pair.a, &plan);
    let report = Migration::start(
        &pair.a,
        &plan.name,
        &pair.b,
        &["--bandwidth", "20MB/s", "--downtime", "10s"],
    )
    .finish()
    .ok();
    let sent = report["transfer"]["wire_bytes"].as_f64().expect("bytes");
    let rate = sent / report["total_seconds"].as_f64().expect("seconds");
    assert!(rate < 22e6, "sent {rate} bytes/s: {report:#}");
    one_intact_copy(&pair.hosts(), &plan.name, &pair.b);
}
