//! A Linux guest that frees memory, which the host then has again: without being asked, or by its balloon, which gives it back when it
//! is needed.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::image::{BOOT_PATIENCE, guest_folder, script};
use crate::density::{POLICY, await_plan, node_uses, write_settings};
use crate::host::{Host, Pair, wait};

/// What the guest frees (`tests/guest/lend`), and what the host has to get of it: the kernel reports whole blocks of
/// 2 MiB only, so what lies between pages that are in use stays, and is more or less from boot to boot.
const FREED_BYTES: u64 = 48 << 20;
const BACK_BYTES: u64 = FREED_BYTES / 2;

fn boot(host: &Host, memory: &str) {
    let [kernel, initrd] = [script("kernel.sh", &["vmlinux"]), script("initramfs.sh", &[])];
    let options = fs::read_to_string(guest_folder().join("cmdline")).expect("a command line");
    let cmdline = format!("console=ttyS0 quiet {} rdinit=/lend", options.trim());
    let arguments = ["run", "--detach", "--name", "lender", "--memory", memory];
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

/// What the guest costs the host, in bytes: proportional set size.
fn cost(host: &Host) -> (u64, Value) {
    let shown = host.run(&["show", "lender", "--json"]).ok().json();
    (shown["proportional_bytes"].as_u64().expect("a size"), shown)
}

fn press_enter(host: &Host) {
    let input = json!({ "input": "\n" });
    host.guest("lender")
        .request("PUT", "/v1/guest/console", Some(&input))
        .success()
        .expect("an answer");
}

/// Its balloon, and what it says of its memory.
fn balloon(host: &Host) -> Value {
    host.guest("lender").request("GET", "/v1/guest/balloon", None).success().expect("an answer")
}

#[test]
fn memory_that_linux_frees_is_the_hosts_again() {
    let pair = Pair::without_nodes();
    // Linux reports free memory beyond 64 MiB of it only (`PAGE_REPORTING_CAPACITY` blocks), so the guest has plenty.
    boot(&pair.a, "320M");
    await_text(&pair.a, "lend: taken");
    let (taken, _) = cost(&pair.a);
    press_enter(&pair.a);
    wait::within(BOOT_PATIENCE, "the host has its memory again", || {
        let (now, shown) = cost(&pair.a);
        wait::holds(now + BACK_BYTES <= taken, (taken, now, shown))
    });
    let balloon = pair.a.run(&["balloon", "lender", "--json"]).ok().json();
    assert!(balloon["reported_bytes_total"].as_u64() >= Some(BACK_BYTES), "{balloon:#}");
    assert_eq!(balloon["actual_bytes"], balloon["memory_bytes"], "{balloon:#}");
}

/// The guest needs 48 MiB, and has been left a third of that: it gets the rest before anything of its own is killed for want of it.
#[test]
fn a_guest_that_needs_its_memory_has_it_back_at_once() {
    let pair = Pair::new();
    // Most of what it does not need, at a stroke.
    write_settings(&pair.a, &POLICY.replace("20%", "50%"));
    node_uses(&pair.a, "\"goal\": \"max density\"");
    boot(&pair.a, "160M");
    await_text(&pair.a, "lend: taken");
    press_enter(&pair.a);
    await_text(&pair.a, "lend: given back");
    let available =
        |balloon: &Value| balloon["statistics"]["available_bytes"].as_u64().unwrap_or(u64::MAX);
    wait::until("the guest has said that it needs it no more", || {
        let now = balloon(&pair.a);
        wait::holds((FREED_BYTES..u64::MAX).contains(&available(&now)), now)
    });
    await_plan(&pair.a);
    pair.a.run(&["density", "apply"]).ok();
    let taken = balloon(&pair.a);
    assert!(available(&taken) < FREED_BYTES / 2, "{taken:#}");

    press_enter(&pair.a);
    let mut asked = None;
    wait::until("the guest has more than it was left", || {
        let now = balloon(&pair.a);
        if available(&now) < available(&taken) / 2 {
            asked.get_or_insert_with(Instant::now);
        }
        let is_more = now["target_bytes"].as_u64() > taken["target_bytes"].as_u64();
        wait::holds(is_more, now)
    });
    let reaction = asked.map_or(Duration::ZERO, |asked| asked.elapsed());
    println!("more memory {} ms after the guest had said that it is short", reaction.as_millis());
    await_text(&pair.a, "lend: taken again");
    let end = balloon(&pair.a);
    assert!(end["statistics"]["oom_kills"].as_u64().unwrap_or(0) == 0, "{end:#}");
}
