//! Queries a real QEMU, whose guest never runs, and a server that implements Cloud Hypervisor's
//! API.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixListener;

use super::*;
use crate::foreign::{Discovery, discover};
use crate::observe::Sources;
use crate::plan::fixture;
use crate::situation::Vmm;

const PATIENCE: Duration = Duration::from_secs(10);

fn asking() -> QueryOptions {
    let statistics_every = Some(Duration::from_secs(10));
    QueryOptions { patience: PATIENCE, statistics_every, unix_seconds: 1_800_000_000 }
}

/// A QEMU with 64 MiB and a monitor on a socket. It is stopped on drop. The kernel may not merge
/// its guest unless `more` allows it: tests that drive ksmd may run at the same time.
struct Qemu {
    process: Child,
    folder: tempfile::TempDir,
}

impl Qemu {
    fn start(more: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let monitor = format!("unix:{},server=on,wait=off", folder.path().join("qmp").display());
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-name", "guest=looked-at,debug-threads=on", "-m", "64", "-S", "-nodefaults"]);
        qemu.args([
            "-display",
            "none",
            "-machine",
            "q35,mem-merge=off",
            "-accel",
            "tcg",
            "-qmp",
            &monitor,
        ]);
        qemu.args(["-qmp", "stdio"]).args(more).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = qemu.spawn().expect("QEMU; scripts/setup installs it");
        // Once one monitor greets, the others listen.
        let said = process.stdout.take().unwrap();
        BufReader::new(said).read_line(&mut String::new()).unwrap();
        Self { process, folder }
    }

    fn find(&self) -> DiscoveredGuest {
        let Discovery { guests, .. } = discover(&Sources::system()).unwrap();
        guests.into_iter().find(|guest| guest.pid == self.process.id()).expect("it is found")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test]
async fn a_real_qemu_is_found_asked_and_set() {
    let merging = ["-machine", "mem-merge=on"];
    let balloon = ["-device", "virtio-balloon-pci,free-page-reporting=on"];
    let qemu = Qemu::start(&[merging, balloon].concat());
    let found = qemu.find();
    // Other tests may run guests with the same name.
    assert!(found.name.starts_with("looked-at"), "{}", found.name);
    assert_eq!((found.vmm, found.memory_bytes), (Vmm::Qemu, 64 << 20));
    assert_eq!((found.backing, found.is_mergeable), (Backing::Anonymous, true));
    assert_eq!(found.monitor, Monitor::Qmp(qemu.folder.path().join("qmp")));

    // Twice: the second query finds statistics polling enabled.
    for _ in 0..2 {
        let seen = query(&found, &asking()).await.unwrap();
        assert_eq!((seen.memory_bytes, seen.hindrance), (64 << 20, Some(Hindrance::Paused)));
        let balloon = seen.balloon.unwrap();
        assert_eq!((balloon.actual_bytes, balloon.has_driver), (64 << 20, false));
        assert_eq!(balloon.statistics, None);
    }
    set_balloon(&Sources::system(), &found, 64 << 20, 32 << 20, PATIENCE).await.unwrap();
    let error = set_balloon(&Sources::system(), &found, 64 << 20, 0, PATIENCE).await.unwrap_err();
    assert!(matches!(error, ForeignError::Refused { .. }), "{error}");
}

/// A process that has a device of the host open, according to the kernel.
fn with_device(pid: u32) -> (tempfile::TempDir, Sources) {
    let folder = tempfile::tempdir().unwrap();
    let files = folder.path().join(format!("proc/{pid}/fd"));
    std::fs::create_dir_all(&files).unwrap();
    std::os::unix::fs::symlink("/dev/vfio/12", files.join("31")).unwrap();
    let sources = Sources::at(folder.path());
    (folder, sources)
}

#[tokio::test]
async fn nothing_is_taken_from_a_real_qemu_whose_memory_a_device_pins() {
    let qemu = Qemu::start(&["-device", "virtio-balloon-pci"]);
    let found = qemu.find();
    assert!(query(&found, &asking()).await.unwrap().balloon.is_some());
    let pinned = DiscoveredGuest { has_passthrough: true, ..found.clone() };
    assert_eq!(query(&pinned, &asking()).await.unwrap().balloon, None);

    // The device was plugged in after the guest was found.
    let (_folder, later) = with_device(found.pid);
    for (sources, found) in [(&later, &found), (&Sources::system(), &pinned)] {
        let error = set_balloon(sources, found, 64 << 20, 32 << 20, PATIENCE).await.unwrap_err();
        assert!(matches!(error, ForeignError::Pinned { .. }), "{error}");
        set_balloon(sources, found, 64 << 20, 64 << 20, PATIENCE).await.expect("it may have more");
    }
    set_balloon(&Sources::system(), &found, 64 << 20, 32 << 20, PATIENCE).await.unwrap();
}

#[tokio::test]
async fn memory_of_virtio_mem_devices_is_asked_for() {
    let backend = "memory-backend-ram,id=more,size=128M";
    let device = "virtio-mem-pci,memdev=more,requested-size=64M";
    let plugged = ["-m", "64,maxmem=256M", "-object", backend, "-device", device];
    let qemu = Qemu::start(&[&plugged[..], &["-device", "virtio-balloon-pci"]].concat());
    let seen = query(&qemu.find(), &asking()).await.unwrap();
    // The guest has no driver yet, so it has plugged no memory.
    assert_eq!((seen.memory_bytes, seen.balloon.unwrap().actual_bytes), (64 << 20, 64 << 20));
}

#[test]
fn memory_of_virtio_mem_devices_is_out_of_the_balloons_reach() {
    const MIB: u64 = 1 << 20;
    // Memory to keep, all memory, that of virtio-mem devices, and the balloon's argument.
    for [keep, memory, outside, reported] in [
        [48, 64, 0, 48],
        [100, 192, 128, 16],
        [150, 192, 128, 22],
        [200, 192, 128, 64],
        [0, 64, 0, 0],
        [100, 192, 200, 0],
    ] {
        let target = qemu_target(keep * MIB, memory * MIB, outside * MIB);
        assert_eq!(target, reported * MIB, "{keep} of {memory}, {outside} outside");
    }
}

#[tokio::test]
async fn a_monitor_in_use_by_another_client_is_reported_as_taken() {
    let qemu = Qemu::start(&[]);
    let found = qemu.find();
    let Monitor::Qmp(socket) = &found.monitor else { panic!("{:?}", found.monitor) };
    let libvirt = Qmp::connect(socket, found.pid, PATIENCE).await.unwrap();
    let impatient = QueryOptions { patience: Duration::from_millis(300), ..asking() };
    let error = query(&found, &impatient).await.unwrap_err();
    assert!(matches!(error, ForeignError::Taken { .. }), "{error}");
    drop(libvirt);
    let seen = query(&found, &asking()).await.unwrap();
    assert_eq!(seen.balloon, None, "there is none");
    let error =
        set_balloon(&Sources::system(), &found, 64 << 20, 32 << 20, PATIENCE).await.unwrap_err();
    assert!(matches!(error, ForeignError::NoBalloon { .. }), "{error}");
}

#[test]
fn hindrances_are_those_that_qemu_reports() {
    let state = |status: &str, running| RunState { running, status: status.to_owned() };
    for (status, running, migration, hindrance) in [
        ("running", true, None, None),
        ("running", true, Some("completed"), None),
        ("running", true, Some("active"), Some(Hindrance::Migrating)),
        ("running", true, Some("some-new-phase"), Some(Hindrance::Migrating)),
        ("inmigrate", false, None, Some(Hindrance::Migrating)),
        ("save-vm", false, None, Some(Hindrance::Saving)),
        ("paused", false, Some("failed"), Some(Hindrance::Paused)),
    ] {
        assert_eq!(qemu_hindrance(&state(status, running), migration), hindrance, "{status}");
    }
}

#[tokio::test]
async fn a_guest_without_a_monitor_is_reported_with_a_remedy() {
    let found = |monitor| DiscoveredGuest { monitor, ..hypervisor(Path::new("/")) };
    let error = query(&found(Monitor::Libvirt), &asking()).await.unwrap_err();
    assert!(error.to_string().contains("libvirt's"), "{error}");
    let error = set_balloon(&Sources::system(), &found(Monitor::None("no socket")), 1, 1, PATIENCE)
        .await
        .unwrap_err();
    assert_eq!(error.to_string(), "ch cannot be asked: no socket");
}

fn hypervisor(socket: &Path) -> DiscoveredGuest {
    DiscoveredGuest {
        vmm: Vmm::CloudHypervisor,
        monitor: Monitor::CloudHypervisor(socket.to_owned()),
        ..fixture::found(std::process::id(), "ch")
    }
}

/// A server that gives each request the first answer whose path the request contains, or no answer
/// if the status is empty. It records the requests.
struct Server {
    _folder: tempfile::TempDir,
    socket: PathBuf,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Server {
    fn start(answers: &'static [(&'static str, &'static str, String)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("ch.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        tokio::spawn(async move {
            let mut unanswered = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 4096];
                let mut length = 0;
                // A body is complete at its closing brace; requests without a body end after the
                // headers.
                while !request[..length].ends_with(b"\r\n\r\n")
                    && !request[..length].ends_with(b"}")
                {
                    length += stream.read(&mut request[length..]).await.unwrap();
                }
                let request = String::from_utf8_lossy(&request[..length]).into_owned();
                let answer = answers.iter().find(|(path, ..)| request.contains(path));
                let (_, status, body) = answer.expect("an answer to what is asked");
                noted.lock().unwrap().push(request);
                if status.is_empty() {
                    unanswered.push(stream);
                    continue;
                }
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            }
        });
        Self { _folder: folder, socket, asked }
    }
}

/// Follows the API's description (vmm/src/api/openapi/cloud-hypervisor.yaml), shortened.
const INFO: &str = r#"{"config": {"payload": {"kernel": "/vmlinux"},
    "memory": {"size": 1073741824, "mergeable": true, "shared": false, "hugepages": false, "hotplugged_size": null, "zones": null},
    "balloon": {"size": 268435456, "free_page_reporting": true}, "devices": null},
    "state": "Running", "memory_actual_size": 805306368, "device_tree": {"__serial": {"id": "__serial"}}}"#;

fn leaked(
    answers: Vec<(&'static str, &'static str, String)>,
) -> &'static [(&'static str, &'static str, String)] {
    Box::leak(answers.into_boxed_slice())
}

#[tokio::test]
async fn cloud_hypervisor_is_asked_and_set() {
    let statistics = r#"{"balloon_actual": 268435456, "stats": {"available_memory": 4096}}"#;
    let server = Server::start(leaked(vec![
        ("/api/v1/vm.info", "200 OK", INFO.to_owned()),
        ("/api/v1/vm.balloon-stats", "200 OK", statistics.to_owned()),
        ("/api/v1/vm.resize", "204 No Content", String::new()),
        (
            "/api/v1/vm.counters",
            "200 OK",
            r#"{"_net0": {"rx_bytes": 18446744073709551615}}"#.to_owned(),
        ),
    ]));
    let found = hypervisor(&server.socket);
    let seen = query(&found, &asking()).await.unwrap();
    assert_eq!((seen.memory_bytes, seen.is_mergeable, seen.hindrance), (1 << 30, true, None));
    let balloon = seen.balloon.unwrap();
    assert_eq!((balloon.target_bytes, balloon.actual_bytes), (768 << 20, 768 << 20));
    assert!(balloon.has_driver && balloon.reports_free_pages);
    let reported = balloon.statistics.unwrap();
    assert_eq!((reported.age, reported.available_bytes), (Duration::ZERO, Some(4096)));

    let (_folder, with_device) = with_device(found.pid);
    let error = set_balloon(&with_device, &found, 1 << 30, 512 << 20, PATIENCE).await.unwrap_err();
    assert!(matches!(error, ForeignError::Pinned { .. }), "{error}");
    set_balloon(&Sources::system(), &found, 1 << 30, 512 << 20, PATIENCE).await.unwrap();
    let asked = server.asked.lock().unwrap().last().unwrap().clone();
    assert!(asked.starts_with("PUT /api/v1/vm.resize"), "{asked}");
    assert!(asked.ends_with(r#"{"desired_balloon":536870912}"#), "{asked}");
    let counters = Hypervisor::new(&server.socket, found.pid, PATIENCE).counters().await.unwrap();
    assert_eq!(counters["_net0"]["rx_bytes"], i128::from(u64::MAX));
}

#[tokio::test]
async fn an_older_cloud_hypervisor_has_no_statistics_and_a_guest_may_have_no_balloon() {
    let info = INFO.replace("\"balloon\"", "\"no-balloon\"").replace("Running", "Paused");
    let server = Server::start(leaked(vec![
        ("/api/v1/vm.info", "200 OK", info.replace("\"shared\": false", "\"shared\": true")),
        ("/api/v1/vm.balloon-stats", "404 Not Found", String::new()),
    ]));
    let found = hypervisor(&server.socket);
    let seen = query(&found, &asking()).await.unwrap();
    assert_eq!((seen.balloon, seen.hindrance), (None, Some(Hindrance::Paused)));
    assert_eq!((seen.backing, seen.is_mergeable), (Backing::Shared, false));
    let error = set_balloon(&Sources::system(), &found, 1 << 30, 1, PATIENCE).await.unwrap_err();
    assert!(matches!(error, ForeignError::NoBalloon { .. }), "{error}");
}

/// Cloud Hypervisor waits one second for a guest before it gives up on its statistics.
#[tokio::test]
async fn a_guest_that_owes_its_statistics_is_seen_without() {
    let server = Server::start(leaked(vec![
        ("/api/v1/vm.info", "200 OK", INFO.to_owned()),
        ("/api/v1/vm.balloon-stats", "", String::new()),
    ]));
    let asking = QueryOptions { patience: Duration::from_millis(600), ..asking() };
    let balloon = query(&hypervisor(&server.socket), &asking).await.unwrap().balloon.unwrap();
    assert_eq!((balloon.has_driver, balloon.actual_bytes), (true, 768 << 20));
    assert_eq!(balloon.statistics, None);
}

#[tokio::test]
async fn what_a_server_must_not_say_is_a_typed_error() {
    for (status, body, is_refusal) in [
        ("404 Not Found", "\"the VM is not created\"".to_owned(), true),
        ("500 Internal Server Error", "\u{1b}[2J".to_owned(), true),
        ("200 OK", "not json".to_owned(), false),
        ("200 OK", INFO.replace("1073741824", "-1"), false),
        ("200 OK", "{}".to_owned(), false),
        ("200 OK", " ".repeat(5 << 20), false),
    ] {
        let server = Server::start(leaked(vec![("/api/v1/vm.info", status, body)]));
        let error = query(&hypervisor(&server.socket), &asking()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.len() < 600 && !text.contains('\u{1b}'), "{text}");
        assert_eq!(matches!(error, ForeignError::Refused { .. }), is_refusal, "{error}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("ch.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let error = query(&hypervisor(&socket), &asking()).await.unwrap_err();
    assert!(matches!(&error, ForeignError::Slow { question, .. } if question == "vm.info"));
}

/// Each answer is in time, but all of them together are not.
#[tokio::test(start_paused = true)]
async fn a_monitor_that_takes_its_time_for_everything_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("qmp");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let answer = |id| {
            format!("{{\"id\":{id},\"return\":{{\"running\":true,\"status\":\"running\"}}}}\n")
        };
        let answers = (1..).map(answer);
        for says in ["{\"QMP\": {}}\n".to_owned()].into_iter().chain(answers) {
            tokio::time::sleep(PATIENCE / 3).await;
            if stream.write_all(says.as_bytes()).await.is_err() {
                return;
            }
        }
    });
    let found = DiscoveredGuest { monitor: Monitor::Qmp(socket), ..hypervisor(Path::new("/")) };
    let error = query(&found, &asking()).await.unwrap_err();
    assert!(
        matches!(&error, ForeignError::Slow { question, .. } if question.contains("all")),
        "{error}"
    );
}

#[test]
fn memory_in_zones_is_added_up_and_is_what_its_worst_zone_is() {
    let text = r#"{"size": 0, "mergeable": true, "zones": [{"id": "a", "size": 5, "mergeable": true},
        {"id": "b", "size": 7, "hotplugged_size": 1, "shared": true}]}"#;
    let memory: crate::foreign::hypervisor::Memory = serde_json::from_str(text).unwrap();
    let kind = memory.kind();
    assert_eq!((memory.bytes(), kind.shared, kind.mergeable), (13, true, false));
}
