//! A Linux guest that QEMU runs: the same commands as for lighter's guests list it, plan for it,
//! reclaim its memory and merge it.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::density::{POLICY, node_uses, write_settings};
use support::ksm::{KsmTurn, marked_and_huge, merged_pages};
use support::linux::image::{BOOT_PATIENCE, cmdline, script};
use support::{NodePlan, Pair, Pid, wait};

const ALL_BYTES: u64 = 128 << 20;

/// Assigns foreign guests to domain shop, which has an effect on those whose VMM lets ksmd merge
/// them, as QEMU does unless told otherwise.
const MERGING: &str = r#"
goal = "free 1GiB"
actuators = ["merge"]
[merge]
gain-min = "1MiB"
[[guest]]
name = "foreign-*"
user = "root"
merge-domain = "shop"
"#;

/// Makes what the guest writes huge, though half of that memory is zeros that are not present.
const HOT: &str = r#"
goal = "max density"
actuators = ["huge"]
[huge]
present = "20%"
[[guest]]
name = "foreign-*"
user = "root"
merge-domain = "shop"
"#;

/// A QEMU with a Linux guest, started independently of lighter. Killed when dropped.
struct Qemu {
    child: Child,
    name: String,
}

impl Qemu {
    fn boot(folder: &Path) -> Self {
        let [kernel, initrd] = [script("kernel.sh", &["vmlinux"]), script("initramfs.sh", &[])];
        // Half of the 24 MiB are zero pages; the guest writes to 8 MiB, a fifth of them each
        // second.
        let check = "mem=80M check.mib=24 check.ws=8 check.random=50 check.rate=400 check.halt=1";
        let cmdline = cmdline(check);
        let name = format!("foreign-{}", std::process::id());
        let monitor = format!("unix:{},server=on,wait=off", folder.join("qmp").display());
        let console = format!("file:{}", folder.join("console").display());
        let errors = File::create(folder.join("errors")).expect("a file");
        let child = Command::new("qemu-system-x86_64")
            .args(["-name", &format!("guest={name}"), "-accel", "kvm", "-cpu", "kvm64"])
            .args(["-M", "microvm,x-option-roms=off,isa-serial=on,rtc=off,acpi=off"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-smp", "1", "-m", "128", "-qmp", &monitor, "-serial", &console])
            .args(["-device", "virtio-balloon-device,free-page-reporting=on"])
            .args(["-append", &cmdline, "-kernel", &kernel, "-initrd", &initrd])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(errors)
            .spawn()
            .expect("QEMU; scripts/setup installs it");
        Self { child, name }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Number of lines in which the guest has checked itself; asserts that none reports a fault.
fn checks(folder: &Path) -> usize {
    let console = fs::read_to_string(folder.join("console")).unwrap_or_default();
    let lines: Vec<&str> = console.lines().filter(|line| line.starts_with("check ")).collect();
    assert!(lines.iter().all(|line| !line.contains("errors=") || line.contains("errors=0")));
    lines.len()
}

#[test]
fn a_guest_of_qemus_gives_memory_by_the_same_commands() {
    // QEMU lets ksmd merge its guest, so this test needs a turn.
    let ksm = KsmTurn::take();
    let mut pair = Pair::without_nodes();
    write_settings(&pair.a, POLICY);
    let node = |doing: &str| {
        let arguments = ["--foreign-guests", doing].map(str::to_owned).into();
        NodePlan { arguments, ..NodePlan::default() }
    };
    pair.a.start_node(&node("watch"));
    let folder = pair.folder().to_owned();
    let qemu = Qemu::boot(&folder);
    wait::within(BOOT_PATIENCE, "linux boots and checks itself", || {
        let errors = fs::read_to_string(folder.join("errors")).unwrap_or_default();
        wait::holds(checks(&folder) > 0, errors)
    });
    let of_ours = |list: &Value| -> Vec<Value> {
        let all = list.as_array().expect("a list").iter();
        let is_it =
            |value: &&Value| value["action"]["guest"] == *qemu.name || value["name"] == *qemu.name;
        all.filter(is_it).cloned().collect()
    };
    let status = pair.a.run(&["density", "status", "--json"]).ok().json();
    let [guest] = &of_ours(&status["situation"]["guests"])[..] else { panic!("{status:#}") };
    assert_eq!(guest["hindrance"], "watched", "{status:#}");
    let plan = pair.a.run(&["density", "plan"]).ok().stdout;
    assert!(plan.contains("it is only watched"), "{plan}");
    pair.a.kill_node();
    pair.a.start_node(&node("act"));
    // A second node by mistake: both would drive the same balloon.
    pair.b.start_node(&node("act"));
    let status = pair.a.run(&["density", "status", "--json"]).ok().json();
    let [guest] = &of_ours(&status["situation"]["guests"])[..] else { panic!("{status:#}") };
    assert_eq!((&guest["vmm"], &guest["memory_bytes"]), (&"qemu".into(), &ALL_BYTES.into()));
    let others = pair.b.run(&["density", "status", "--json"]).ok().json();
    assert!(of_ours(&others["situation"]["guests"]).is_empty(), "one node's only: {others:#}");

    let plan = wait::within(BOOT_PATIENCE, "the guest has said what it needs", || {
        let plan = pair.a.run(&["density", "plan", "--json"]).ok().json();
        if of_ours(&plan["steps"]).is_empty() { Err(plan) } else { Ok(plan) }
    });
    assert_eq!(of_ours(&plan["steps"])[0]["action"]["kind"], "set-balloon", "{plan:#}");
    let before = checks(&folder);
    // A single round: the guest's driver is slow where its kernel is emulated.
    let file = folder.join("plan.json").display().to_string();
    fs::write(&file, plan.to_string()).expect("a file");
    let run = pair.a.run(&["density", "apply", "--plan", &file, "--json"]).ok().json();
    assert!(run["actions"].as_u64() >= Some(1), "{run:#}");
    let status = pair.a.run(&["density", "status", "--json"]).ok().json();
    let [guest] = &of_ours(&status["situation"]["guests"])[..] else { panic!("{status:#}") };
    assert!(guest["balloon"]["actual_bytes"].as_u64() < Some(ALL_BYTES), "{status:#}");
    goes_on(&folder, before);
    its_equal_pages_are_merged(&pair, &qemu, &ksm);
    goes_on(&folder, checks(&folder));
    what_it_writes_becomes_huge(&pair, &qemu);
    goes_on(&folder, checks(&folder));
}

fn goes_on(folder: &Path, before: usize) {
    wait::within(BOOT_PATIENCE, "it goes on", || {
        let now = checks(folder);
        wait::holds(now > before, now)
    });
}

fn its_equal_pages_are_merged(pair: &Pair, qemu: &Qemu, ksm: &KsmTurn) {
    write_settings(&pair.a, MERGING);
    node_uses(&pair.a, "\"goal\": \"free 1073741824\"");
    let run = pair.a.run(&["density", "apply", "--json"]).ok().json();
    let steps = run["steps"].as_array().expect("a list");
    let window = steps.iter().find(|step| step["action"]["action"]["kind"] == "drive-ksm");
    let window = window.unwrap_or_else(|| panic!("{run:#}"));
    assert!(window["verified_bytes"].as_i64() > Some(4 << 20), "{run:#}");
    // The kernel merges most zero pages by splitting huge pages, and does not count those.
    assert!(merged_pages(Pid(qemu.child.id())) > 1 << 8, "{run:#}");
    assert!(ksm.is_as_before(), "{run:#}");
}

/// Checks that the node collapses the guest's written memory into huge pages again, after ksmd has
/// split them.
fn what_it_writes_becomes_huge(pair: &Pair, qemu: &Qemu) {
    let huge_bytes = || marked_and_huge(Pid(qemu.child.id())).1;
    write_settings(&pair.a, HOT);
    node_uses(&pair.a, "\"goal\": \"max density\"");
    wait::until("a look tells what it writes", || {
        let plan = pair.a.run(&["density", "plan", "--survey", "--json"]).ok().json();
        wait::holds(plan["steps"][0]["action"]["kind"] == "make-huge", plan)
    });
    let before = huge_bytes();
    let run = pair.a.run(&["density", "apply", "--json"]).ok().json();
    assert_eq!(run["steps"][0]["action"]["action"]["kind"], "make-huge", "{run:#}");
    assert_eq!(run["steps"][0]["error"], Value::Null, "{run:#}");
    let after = huge_bytes();
    assert!(after >= before + (2 << 20), "{before} bytes before, {after} after: {run:#}");
}
