//! A Linux guest that gives memory back, moves, and gets it again.

use std::fs;
use std::time::Duration;

use serde_json::Value;

use super::image::{BOOT_PATIENCE, guest_folder, script};
use super::witness::Witness;
use crate::host::checks::nothing_left_behind;
use crate::host::{Exit, Host, Migration, Pair, wait};

/// Memory that the check program looks after.
const MIB: u64 = 1;
/// The guest's memory, and what it shall keep.
const ALL_BYTES: u64 = 128 << 20;
const KEPT_BYTES: u64 = 120 << 20;
/// How long Linux may take to fill or empty its balloon where its kernel is emulated.
const BALLOON_PATIENCE: Duration = Duration::from_secs(300);

fn start(host: &Host, name: &str, more: &[&str]) {
    let [kernel, initrd] = [script("kernel.sh", &["vmlinux"]), script("initramfs.sh", &[])];
    let options = fs::read_to_string(guest_folder().join("cmdline")).expect("a command line");
    let check = format!("mem=80M check.mib={MIB} check.rate=100 check.halt=1");
    let cmdline = format!("console=ttyS0 quiet {} {check}", options.trim());
    let arguments = ["run", "--detach", "--name", name, "--memory", "128M", "--kernel", &kernel];
    let boot = ["--initrd", &initrd, "--cmdline", &cmdline];
    host.run(&[arguments.as_slice(), &boot, more].concat()).ok();
}

fn balloon(host: &Host) -> Value {
    host.run(&["balloon", "linux", "--json"]).ok().json()
}

/// Waits until the guest keeps `bytes`.
fn await_actual(host: &Host, bytes: u64) -> Value {
    wait::within(BALLOON_PATIENCE, "the guest follows its balloon's target", || {
        let seen = balloon(host);
        if seen["actual_bytes"] == bytes { Ok(seen) } else { Err(seen) }
    })
}

#[test]
fn linux_gives_memory_back_and_its_balloon_goes_along() {
    let pair = Pair::new();
    start(&pair.a, "linux", &[]);
    let witness = Witness::of(&pair.a, "linux", MIB * 256);
    wait::within(BOOT_PATIENCE, "linux boots and checks itself", || {
        witness.last_line().ok_or_else(|| witness.console())
    });
    let before = witness.line();
    let seen = balloon(&pair.a);
    assert_eq!((&seen["has_driver"], &seen["reporting"]), (&true.into(), &true.into()), "{seen:#}");
    assert!(seen["statistics"]["total_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{seen:#}");

    pair.a.run(&["balloon", "linux", "120M"]).ok();
    let seen = await_actual(&pair.a, KEPT_BYTES);
    let given = ALL_BYTES - KEPT_BYTES;
    assert!(seen["inflated_bytes_total"].as_u64() >= Some(given), "{seen:#}");
    assert!(seen["resident_bytes"].as_u64() < Some(KEPT_BYTES), "{seen:#}");

    Migration::run(&pair.a, "linux", &pair.b).ok();
    let after = Witness::of(&pair.b, "linux", MIB * 256).line();
    after.follows(&before);
    let there = balloon(&pair.b);
    assert_eq!(there["target_bytes"], KEPT_BYTES, "{there:#}");
    assert_eq!(there["actual_bytes"], KEPT_BYTES, "{there:#}");
    assert!(there["statistics"]["total_bytes"].is_u64(), "{there:#}");
    assert!(there["resident_bytes"].as_u64() < Some(KEPT_BYTES), "{there:#}");

    pair.b.run(&["balloon", "linux", "128M"]).ok();
    await_actual(&pair.b, ALL_BYTES);
    let last = Witness::of(&pair.b, "linux", MIB * 256).line();
    last.follows(&after);
    nothing_left_behind(&pair.hosts());
}

#[test]
fn a_guest_without_a_balloon_and_a_size_that_is_none_are_told_of() {
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
