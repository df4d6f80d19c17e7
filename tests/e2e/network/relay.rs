//! A Linux guest with a disk and a network, which migrates back and forth while an external client
//! sends a file through it.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lan::{BRIDGES, GUEST, Lan};
use support::checks::nothing_left_behind;
use support::linux::image::{BOOT_PATIENCE, cmdline, script};
use support::{Host, Migration, in_namespace, lighter, run, wait};

const NAME: &str = "relay";
const MAC: &str = "52:54:00:c0:ff:ee";
/// Number of migrations: there and back, five times.
const MIGRATIONS: usize = 10;
/// Bytes that go through the guest at a time; few, because the guest's kernel may be emulated.
const PART_BYTES: usize = 2 << 10;
/// Rate of the hosts' link.
const LINK_RATE: &str = "400mbit";
/// Slow enough for data to go through the guest and come back meanwhile: the memory takes 2 s to
/// send. The downtime is for hosts that are emulated themselves.
const SLOWLY: [&str; 4] = ["--bandwidth", "4MB/s", "--downtime", "10s"];
/// How soon after the fastest migration the switch must know the guest's new port. The first rounds
/// of the announcement (at 0, 50 and 200 ms; the last is at 800 ms) are early enough. What a guest
/// may send on its own comes much later: Linux asks for a neighbour's address 5 s after it has used
/// it.
const LEARNT_WITHIN: Duration = Duration::from_millis(300);
/// Limit for data to pass through an emulated kernel and back, on a busy machine.
const ECHO_PATIENCE: Duration = Duration::from_secs(120);

/// Creates a disk of 64 MiB with an empty ext4 file system.
fn make_disk(folder: &Path) -> PathBuf {
    let disk = folder.join("disk.raw");
    std::fs::File::create(&disk).and_then(|file| file.set_len(64 << 20)).expect("a disk");
    let now = "lazy_itable_init=0,lazy_journal_init=0";
    tool(Command::new("mkfs.ext4").args(["-q", "-E", now]).arg(&disk));
    disk
}

/// Runs a tool and returns its output.
#[track_caller]
fn tool(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

fn start(host: &Host, lan: &Lan, disk: &Path) {
    let [kernel, initrd] = [script("kernel.sh", &["vmlinux"]), script("initramfs.sh", &[])];
    let cmdline = cmdline(&format!("rdinit=/relay relay_address={GUEST}/24"));
    let (disk, net) = (disk.display().to_string(), format!("bridge={},mac={MAC}", BRIDGES[0]));
    let arguments = ["run", "--detach", "--name", NAME, "--memory", "128M", "--kernel", &kernel];
    let devices = ["--initrd", &initrd, "--cmdline", &cmdline, "--disk", &disk, "--net", &net];
    let command = lighter(host.state_dir(), &[arguments.as_slice(), &devices].concat());
    run(in_namespace(command, lan.cable().end_a().as_deref())).ok();
}

/// The guest's console output on `host`.
fn console(host: &Host) -> String {
    let log = host.state_dir().join("guests").join(NAME).join("console.log");
    String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
}

/// A TCP client in the switch's namespace, with one connection for its whole life.
struct Client {
    process: Child,
    keys: Option<ChildStdin>,
    sent: Vec<u8>,
    echoed: Arc<Mutex<Vec<u8>>>,
}

impl Client {
    fn connect(lan: &Lan) -> Self {
        let mut process = Command::new("ip")
            .args(["netns", "exec", lan.switch(), "busybox", "nc", GUEST, "7000"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("busybox is installed");
        let echoed = Arc::<Mutex<Vec<u8>>>::default();
        let mut output = process.stdout.take().expect("a pipe");
        let heard = Arc::clone(&echoed);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                heard.lock().expect("no panic").extend(&bytes[..count]);
            }
        });
        let keys = process.stdin.take();
        Self { process, keys, sent: Vec::new(), echoed }
    }

    /// Sends the next part of a file in which no two parts are equal.
    fn send(&mut self) {
        let start = self.sent.len() as u64;
        let words = (start / 8..).map(|word| word.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let part: Vec<u8> = words.take(PART_BYTES / 8).flat_map(u64::to_le_bytes).collect();
        self.keys.as_mut().expect("not closed").write_all(&part).expect("the client lives");
        self.sent.extend(part);
    }

    /// Waits until everything that was sent has come back, and nothing else. The panic message
    /// contains `seen` if it does not.
    #[track_caller]
    fn await_echo(&mut self, seen: impl Fn() -> String) {
        wait::within(ECHO_PATIENCE, "the guest sends all back", || {
            let count = self.echoed.lock().expect("no panic").len();
            wait::holds(count >= self.sent.len(), (count, self.sent.len(), seen()))
        });
        assert!(*self.echoed.lock().expect("no panic") == self.sent, "other bytes came back");
        assert!(self.process.try_wait().expect("a child").is_none(), "the connection is lost");
    }

    /// Migrates the guest while data goes through it. Returns how many bytes came back between the
    /// start of precopy and the end of the migration.
    #[track_caller]
    fn stream_during_migration(&mut self, from: &Host, to: &Host) -> usize {
        let echoed = Arc::clone(&self.echoed);
        let count = || echoed.lock().expect("no panic").len();
        std::thread::scope(|scope| {
            let migration = scope.spawn(|| {
                let migration = Migration::start(from, NAME, to, &SLOWLY);
                migration.await_phase("precopy");
                let before = count();
                migration.finish().ok();
                count() - before
            });
            while !migration.is_finished() {
                self.send();
                self.await_echo(|| console(from) + &console(to));
            }
            migration.join().expect("it succeeds")
        })
    }

    /// Closes the connection, which tells the guest that it has received everything.
    fn close(&mut self) {
        self.keys = None;
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Waits until the switch has learnt that the guest is behind host `place`; returns how long that
/// took.
#[track_caller]
fn await_learnt(lan: &Lan, place: usize) -> Duration {
    let since = Instant::now();
    wait::within(ECHO_PATIENCE, "the switch knows the guest's port", || {
        let learnt = lan.learnt(MAC);
        wait::holds(learnt == Some(place), learnt)
    });
    since.elapsed()
}

/// Migrates the guest while the switch receives only announcements from the destination, so that it
/// learns the port from them. Returns how long after the migration it did.
#[track_caller]
fn announced_migration(lan: &Lan, from: &Host, (place, to): (usize, &Host)) -> Duration {
    let _filter = lan.admit_only_announcements(place);
    Migration::run(from, NAME, to).ok();
    await_learnt(lan, place)
}

/// The guest's network device on this host, as `lighter ls --json` shows it.
fn net(host: &Host) -> serde_json::Value {
    host.list()[0]["nets"][0].clone()
}

/// The metrics of the node of host a, which are served within its namespace.
fn metrics_page(host: &Host, lan: &Lan) -> String {
    let file = std::fs::read(host.state_dir().join("node.json")).expect("node.json");
    let node: serde_json::Value = serde_json::from_slice(&file).expect("JSON");
    let url = format!("http://{}/metrics", node["metrics"].as_str().expect("an address"));
    let namespace = lan.cable().end_a().expect("a namespace");
    let wget = ["netns", "exec", &namespace, "busybox", "wget", "-q", "-O", "-", &url];
    String::from_utf8(tool(Command::new("ip").args(wget))).expect("text")
}

#[test]
fn a_connection_through_linux_lives_while_it_moves_ten_times() {
    let Some(lan) = Lan::lay() else { return };
    lan.cable().shape(LINK_RATE);
    let mut pair = lan.cable().hosts();
    let disk = make_disk(pair.folder());
    pair.a.start_node(&lan.node_plan(0));
    pair.b.start_node(&lan.node_plan(1));
    start(&pair.a, &lan, &disk);
    wait::within(BOOT_PATIENCE, "linux boots and listens", || {
        let said = console(&pair.a);
        wait::holds(said.contains("relay: ready"), said)
    });
    let mut client = Client::connect(&lan);
    client.send();
    client.await_echo(|| console(&pair.a));
    assert_eq!(lan.learnt(MAC), Some(0));

    let words = ["lan: there is none; make it with `ip link add lan type bridge`"];
    Migration::run(&pair.a, NAME, &pair.b).stayed(&words);
    lan.plug_in(1);
    let mut hosts = [(0, &pair.a), (1, &pair.b)];
    let mut learnt_after = Vec::new();
    for turn in 0..MIGRATIONS {
        let [(_, from), (place, to)] = hosts;
        // Two migrations of each kind in turn, so that both kinds happen in both directions.
        if turn % 4 >= 2 {
            let bytes = client.stream_during_migration(from, to);
            eprintln!("{bytes} bytes came back while the guest moved to host {place}");
            assert!(bytes > 0, "nothing went through the guest while it moved to host {place}");
            await_learnt(&lan, place);
        } else {
            learnt_after.push(announced_migration(&lan, from, (place, to)));
        }
        client.send();
        client.await_echo(|| console(to));
        hosts.reverse();
    }
    eprintln!("the switch knew the guest's port {learnt_after:?} after the migrations");
    // On a busy machine the test itself is late at times, but not every time.
    let fastest = learnt_after.iter().min().expect("migrations");
    assert!(*fastest < LEARNT_WITHIN, "{learnt_after:?}");

    let net = net(&pair.a);
    assert_eq!((&net["mac"], &net["bridge"]), (&MAC.into(), &BRIDGES[0].into()), "{net:#}");
    for flow in ["received", "transmitted"] {
        assert!(net[flow]["bytes"].as_u64() >= Some(PART_BYTES as u64), "{net:#}");
        assert!(net[flow]["packets"].as_u64() > Some(0), "{net:#}");
    }
    let shown = pair.a.run(&["show", NAME]).ok().stdout;
    assert!(shown.contains(MAC) && shown.contains("on br0"), "{shown}");
    let page = metrics_page(&pair.a, &lan);
    let labels = [("guest", NAME), ("device", net["tap"].as_str().expect("a tap"))];
    for name in [
        "lighter_guest_network_receive_bytes_total",
        "lighter_guest_network_receive_packets_total",
        "lighter_guest_network_transmit_bytes_total",
        "lighter_guest_network_transmit_packets_total",
    ] {
        assert!(crate::metrics::value(&page, name, &labels) > Some(0.0), "{name}: {page}");
    }

    client.close();
    wait::within(ECHO_PATIENCE, "the guest closes its file system", || {
        let said = console(&pair.a);
        wait::holds(said.contains("relay: done"), said)
    });
    pair.a.run(&["destroy", NAME]).ok();
    tool(Command::new("e2fsck").args(["-f", "-n"]).arg(&disk));
    let kept = tool(Command::new("debugfs").args(["-R", "cat /stream"]).arg(&disk));
    assert!(kept == client.sent, "{} bytes are on the disk, not the file", kept.len());
    nothing_left_behind(&pair.hosts());
}
