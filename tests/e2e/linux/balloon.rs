//! A Linux guest that gives memory back, migrates, and regains it.

use std::time::Duration;

use serde_json::Value;

use support::checks::nothing_left_behind;
use support::linux::image::{BOOT_PATIENCE, cmdline, script};
use support::linux::witness::CheckConsole;
use support::{Exit, Host, Migration, Pair, wait};

/// Memory that the check program checks.
const MIB: u64 = 1;
/// Memory size of the guest.
const ALL_BYTES: u64 = 128 << 20;
/// Memory that the balloon leaves free in the guest.
const LEFT_BYTES: u64 = 12 << 20;
/// Limit for Linux to inflate or deflate its balloon where KVM emulates the guest's kernel.
const BALLOON_PATIENCE: Duration = Duration::from_secs(300);

/// Memory that the guest fills with noise and frees before the test begins, and how much of it must
/// be found free: Linux hands out free memory in blocks of 4 MiB.
const LITTER_MIB: u64 = 32;
const FOUND_MIB: u64 = 16;
const PAGES_PER_MIB: u64 = 256;
/// Free memory that Linux does not count as such: with huge pages but without hugetlbfs, the last
/// block of 4 MiB that was freed waits on the free list of its CPU (`pcp_allowed_order` in
/// mm/page_alloc.c) for the next that needs one. The rest is for what the guest does meanwhile.
const UNCOUNTED_BYTES: u64 = 5 << 20;
/// Limit on the number of migrations; two with hints are enough.
const MIGRATIONS_MAX: usize = 8;

fn start(host: &Host, name: &str, more: &[&str]) {
    start_with(host, name, "", more);
}

fn start_with(host: &Host, name: &str, checks: &str, more: &[&str]) {
    let [kernel, initrd] = [script("kernel.sh", &["vmlinux"]), script("initramfs.sh", &[])];
    let check = format!("mem=80M check.mib={MIB} check.rate=100 check.halt=1 {checks}");
    let cmdline = cmdline(&check);
    let arguments = ["run", "--detach", "--name", name, "--memory", "128M", "--kernel", &kernel];
    let boot = ["--initrd", &initrd, "--cmdline", &cmdline];
    host.run(&[arguments.as_slice(), &boot, more].concat()).ok();
}

fn balloon(host: &Host) -> Value {
    host.run(&["balloon", "linux", "--json"]).ok().json()
}

/// Resident memory of the guest's process, in bytes.
fn resident(balloon: &Value) -> u64 {
    balloon["resident_bytes"].as_u64().expect("a size")
}

/// Waits until the balloon leaves the guest `bytes`.
fn await_actual(host: &Host, bytes: u64) -> Value {
    wait::within(BALLOON_PATIENCE, "the guest follows its balloon's target", || {
        let seen = balloon(host);
        if seen["actual_bytes"] == bytes { Ok(seen) } else { Err(seen) }
    })
}

/// Waits until the guest's driver has reported memory statistics.
fn await_statistics(host: &Host) -> Value {
    wait::within(BALLOON_PATIENCE, "the guest says how its memory is", || {
        let seen = balloon(host);
        let statistics = &seen["statistics"];
        let is_said =
            statistics["total_bytes"].as_u64() > Some(0) && statistics["free_bytes"].is_u64();
        if is_said { Ok(seen) } else { Err(seen) }
    })
}

#[test]
fn linux_gives_memory_back_and_its_balloon_moves_with_it() {
    let pair = Pair::new();
    let before = start_littered(&pair.a, &[]).line();
    let seen = await_statistics(&pair.a);
    assert_eq!((&seen["has_driver"], &seen["reporting"]), (&true.into(), &true.into()), "{seen:#}");
    let resident_before = resident(&seen);

    // Nearly all free memory, so that most of the litter is in the balloon.
    let given = (seen["statistics"]["free_bytes"].as_u64().expect("a size") - LEFT_BYTES) >> 20;
    let kept_bytes = ALL_BYTES - (given << 20);
    pair.a.run(&["balloon", "linux", &format!("{}M", kept_bytes >> 20)]).ok();
    let seen = await_actual(&pair.a, kept_bytes);
    assert!(seen["inflated_bytes_total"].as_u64() >= Some(given << 20), "{seen:#}");
    let has_given_litter = resident(&seen) + (FOUND_MIB << 20) <= resident_before;
    assert!(has_given_litter, "{resident_before} before, now {seen:#}");

    Migration::run(&pair.a, "linux", &pair.b).ok();
    let after = CheckConsole::of(&pair.b, "linux", MIB * PAGES_PER_MIB).line();
    after.follows(&before);
    let there = await_statistics(&pair.b);
    assert_eq!(there["target_bytes"], kept_bytes, "{there:#}");
    assert_eq!(there["actual_bytes"], kept_bytes, "{there:#}");
    assert!(resident(&there) + (FOUND_MIB << 20) <= resident_before, "{there:#}");

    pair.b.run(&["balloon", "linux", "128M"]).ok();
    await_actual(&pair.b, ALL_BYTES);
    let last = CheckConsole::of(&pair.b, "linux", MIB * PAGES_PER_MIB).line();
    last.follows(&after);
    nothing_left_behind(&pair.hosts());
}

/// Starts a guest that has freed memory with nonzero content.
fn start_littered(host: &Host, more: &[&str]) -> CheckConsole {
    let litter = format!("check.litter={LITTER_MIB}");
    start_with(host, "linux", &litter, more);
    let witness = CheckConsole::of(host, "linux", MIB * PAGES_PER_MIB);
    wait::within(BOOT_PATIENCE, "linux boots and checks itself", || {
        witness.last_line().ok_or_else(|| witness.console())
    });
    witness
}

fn say_figures(balloon: &str, report: &Value) {
    let (sent, first) = (&report["transfer"], &report["rounds"][0]);
    let pages = |kind: &str| sent[kind].as_u64().expect("a count");
    let seconds = |value: &Value| value.as_f64().expect("a time");
    println!(
        "--balloon {balloon}: {} bytes, {} hinted, {} zero, {} other pages; {:.2} s, {:.2} s of it in round 1, {:.3} s downtime",
        sent["wire_bytes"],
        pages("hinted_pages"),
        pages("zero_pages"),
        pages("raw_pages") + pages("lz4_pages"),
        seconds(&report["total_seconds"]),
        seconds(&first["seconds"]),
        seconds(&report["downtime_seconds"]),
    );
}

#[test]
fn linux_says_which_pages_are_free_and_has_them_back_wherever_it_is() {
    let pair = Pair::new();
    let mut last = start_littered(&pair.a, &["--balloon", "hints"]).line();
    let seen = await_statistics(&pair.a);
    assert_eq!((&seen["reporting"], &seen["gives_hints"]), (&false.into(), &true.into()));
    let free_bytes =
        |host| await_statistics(host)["statistics"]["free_bytes"].as_u64().expect("a size");
    let free_before = free_bytes(&pair.a);

    let mut hosts = pair.hosts();
    // On a busy machine the driver may have reported few hints when its time is over.
    let mut hinted_enough = 0;
    for turn in 1..=MIGRATIONS_MAX {
        let report = Migration::run(hosts[0], "linux", hosts[1]).ok();
        hosts.reverse();
        say_figures("hints", &report);
        let hinted = report["transfer"]["hinted_pages"].as_u64().expect("a count");
        if hinted > 0 {
            let name = "lighter_migration_hinted_pages_total";
            crate::metrics::is_counted(hosts[1], name, "linux", "outgoing");
        }
        let now = CheckConsole::of(hosts[0], "linux", MIB * PAGES_PER_MIB).line();
        now.follows(&last);
        last = now;
        wait::within(BALLOON_PATIENCE, "linux has its free memory back", || {
            let free = free_bytes(hosts[0]);
            wait::holds(free + UNCOUNTED_BYTES > free_before, format!("{free} of {free_before}"))
        });
        hinted_enough += u32::from(hinted >= FOUND_MIB * PAGES_PER_MIB);
        if hinted_enough == 2 {
            println!("{turn} migrations");
            break;
        }
    }
    assert_eq!(hinted_enough, 2, "migrations for which it said which pages are free");
    nothing_left_behind(&pair.hosts());
}

#[test]
fn a_missing_balloon_and_an_invalid_size_are_reported() {
    let pair = Pair::without_nodes();
    start(&pair.a, "linux", &["--balloon", "off"]);
    pair.a
        .run(&["balloon", "linux"])
        .complains(Exit::Failed, &["linux has no balloon", "--balloon off"]);
    start(&pair.a, "other", &[]);
    let words = ["leaves the guest between 4 MiB and its 128 MiB"];
    pair.a.run(&["balloon", "other", "1G"]).complains(Exit::Failed, &words);
    pair.a.run(&["balloon", "other"]).ok();
}
