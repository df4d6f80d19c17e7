//! A Linux guest whose freed memory returns to the host by free page reporting: no balloon is
//! inflated, and the host does not ask for it.

use std::fs;

use serde_json::{Value, json};

use support::linux::image::{BOOT_PATIENCE, cmdline, script};
use support::{Host, Pair, wait};

/// Memory that the guest frees (`tests/guest/lend`), and how much of it the host must regain: the
/// kernel reports only whole blocks of 2 MiB, so free memory between pages in use stays with the
/// guest, and its amount varies from boot to boot.
const FREED_BYTES: u64 = 48 << 20;
const BACK_BYTES: u64 = FREED_BYTES / 2;

/// Starts the guest with plenty of memory: Linux reports free memory only beyond 64 MiB of it
/// (`PAGE_REPORTING_CAPACITY` blocks).
fn boot(host: &Host) {
    let [kernel, initrd] = [script("kernel.sh", &["vmlinux"]), script("initramfs.sh", &[])];
    let cmdline = cmdline("rdinit=/lend");
    let arguments = ["run", "--detach", "--name", "lender", "--memory", "320M"];
    let boot = ["--kernel", &kernel, "--initrd", &initrd, "--cmdline", &cmdline];
    host.run(&[arguments.as_slice(), &boot].concat()).ok();
}

fn await_text(host: &Host, text: &str) {
    wait::within(BOOT_PATIENCE, text, || {
        let log = host.state_dir().join("guests/lender/console.log");
        let said = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
        if said.contains(text) { Ok(()) } else { Err(said) }
    });
}

/// The guest's cost for the host in bytes (its proportional set size), and the whole answer.
fn cost(host: &Host) -> (u64, Value) {
    let shown = host.run(&["show", "lender", "--json"]).ok().json();
    (shown["proportional_bytes"].as_u64().expect("a size"), shown)
}

#[test]
fn memory_that_linux_frees_returns_to_the_host() {
    let pair = Pair::without_nodes();
    boot(&pair.a);
    await_text(&pair.a, "lend: taken");
    let (taken, _) = cost(&pair.a);
    let input = json!({ "input": "\n" });
    pair.a.guest("lender").request("PUT", "/v1/guest/console", Some(&input)).success().unwrap();
    wait::within(BOOT_PATIENCE, "the host has its memory again", || {
        let (now, shown) = cost(&pair.a);
        wait::holds(now + BACK_BYTES <= taken, (taken, now, shown))
    });
    let balloon = pair.a.run(&["balloon", "lender", "--json"]).ok().json();
    assert!(balloon["reported_bytes_total"].as_u64() >= Some(BACK_BYTES), "{balloon:#}");
    assert_eq!(balloon["actual_bytes"], balloon["memory_bytes"], "{balloon:#}");
}
