//! Attempts of a guest's process to do what it may not; and what every user of a host may see.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
#[cfg(feature = "failpoints")]
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;

#[cfg(feature = "failpoints")]
use support::kernel::sleeper;
#[cfg(feature = "failpoints")]
use support::ksm::KsmTurn;
use support::{
    Exit, Guest, GuestPlan, Host, Migration, NodePlan, Pair, as_stranger, ask, lighter, run,
};
#[cfg(feature = "failpoints")]
use support::{Running, wait};

/// The seccomp state of each thread of the guest's process, with the thread's name
/// (proc_pid_status(5): 2 is a filter).
fn filters(guest: &Guest) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{}/task", guest.pid().0)).expect("a live process");
    let field = |status: &str, name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap_or_default().trim().to_owned()
    };
    tasks
        // A thread may end while this reads its status.
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok())
        .filter(|status| !field(status, "Name:").starts_with("kvm-"))
        .map(|status| (field(&status, "Name:"), field(&status, "Seccomp:")))
        .collect()
}

/// Capabilities that a guest's process may keep if root runs it (capabilities(7)): access to files
/// of other users, memory locks, networks.
const CAPABILITIES_MAX: u64 = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 12 | 1 << 14 | 1 << 24;

fn no_thread_has_other_capabilities(guest: &Guest) {
    for task in fs::read_dir(format!("/proc/{}/task", guest.pid().0)).expect("a live process") {
        // A thread may end before its status is read.
        let Ok(status) = fs::read_to_string(task.expect("a thread").path().join("status")) else {
            continue;
        };
        for set in ["CapPrm:", "CapEff:"] {
            let has = status.lines().find_map(|line| line.strip_prefix(set)).expect("a set");
            let has = u64::from_str_radix(has.trim(), 16).expect("hexadecimal");
            assert_eq!(has & !CAPABILITIES_MAX, 0, "{set} {has:x}");
        }
    }
}

fn every_thread_has_a_filter(guest: &Guest) {
    no_thread_has_other_capabilities(guest);
    let filters = filters(guest);
    assert!(filters.iter().any(|(name, _)| name == "vcpu0"), "{filters:?}");
    assert!(filters.iter().all(|(_, state)| state == "2"), "{filters:?}");
}

fn confinement(host: &Host) -> serde_json::Value {
    host.run(&["show", "web-1", "--json"]).ok().json()["confinement"].clone()
}

#[test]
fn every_thread_is_confined_where_a_guest_starts_and_where_it_arrives() {
    let pair = Pair::new();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    every_thread_has_a_filter(&guest);
    assert_eq!(confinement(&pair.a)["seccomp"], "on");
    let shown = pair.a.run(&["show", "web-1"]).ok().stdout;
    assert!(shown.contains("its system calls"), "{shown}");

    Migration::run(&pair.a, "web-1", &pair.b).ok();
    every_thread_has_a_filter(&pair.b.guest("web-1"));
    assert_eq!(confinement(&pair.b)["seccomp"], "on");
}

#[test]
fn confinement_can_be_switched_off_and_is_reported_as_off() {
    let pair = Pair::without_nodes();
    let off = ["LIGHTER_SECCOMP", "LIGHTER_LANDLOCK"].map(|it| (it.to_owned(), "off".to_owned()));
    let plan = GuestPlan { environment: off.to_vec(), ..GuestPlan::default() };
    let guest = Guest::start(&pair.a, &plan);
    assert!(filters(&guest).iter().all(|(_, state)| state == "0"));
    let expected = serde_json::json!({ "seccomp": "off", "landlock": "off" });
    assert_eq!(confinement(&pair.a), expected);
}

#[test]
fn read_only_clients_see_the_guest_and_change_nothing() {
    let pair = Pair::without_nodes();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    for verb in [&["ls"][..], &["show", "web-1"]] {
        let shown = pair.a.run(&[&["--readonly"], verb].concat()).ok().stdout;
        assert!(shown.contains("running"), "{shown}");
    }
    pair.a.run(&["--readonly", "pause", "web-1"]).complains(Exit::Failed, &["changes nothing"]);

    let socket = guest.socket().with_file_name("api-ro.sock");
    assert_eq!(ask(&socket, "GET", "/v1/guest", None).unwrap().status, 200);
    for (method, path) in [("PUT", "/v1/guest/pause"), ("GET", "/v1/guest/console")] {
        let answer = ask(&socket, method, path, None).unwrap();
        assert!(answer.status >= 400, "{method} {path}: {answer:?}");
    }
    assert_eq!(guest.state().as_deref(), Some("running"));
}

#[test]
fn missing_permissions_are_reported() {
    let pair = Pair::without_nodes();
    Guest::start(&pair.a, &GuestPlan::default());
    let file = pair.folder().join("off.toml");
    fs::write(&file, "name = \"off-1\"").unwrap();
    pair.a.run(&["define", &file.display().to_string()]).ok();
    let let_through = |mode| {
        fs::set_permissions(pair.folder(), Permissions::from_mode(mode)).unwrap();
    };
    let stranger = |verb: &[&str]| run(as_stranger(&lighter(pair.a.state_dir(), verb)));

    let_through(0o711);
    for verb in [&["ls"][..], &["show", "web-1"], &["events"], &["events", "web-1"]] {
        let words = ["this user may not ask web-1 (`--readonly` may look)", "Permission denied"];
        stranger(verb).complains(Exit::Failed, &words);
    }
    for verb in [
        &["show", "off-1"][..],
        &["start", "off-1"],
        &["undefine", "off-1"],
        &["autostart", "off-1"],
        &["--readonly", "show", "off-1"],
    ] {
        stranger(verb).complains(Exit::Failed, &["definitions", "Permission denied"]);
    }
    let listed = stranger(&["--readonly", "ls", "--all"]).ok();
    assert!(listed.stdout.contains("web-1"), "{listed:#?}");
    let words = ["guests that are off are left out", "Permission denied"];
    assert!(words.iter().all(|word| listed.stderr.contains(word)), "{listed:#?}");
    let done = stranger(&["destroy", "web-1"]);
    assert!(!done.stderr.contains("no process answers"), "{done:#?}");
    done.complains(Exit::Failed, &["no right to use", "Permission denied"]);
    for verb in [&["ls"][..], &["show", "web-1"]] {
        let shown = stranger(&[&["--readonly"], verb].concat()).ok().stdout;
        assert!(shown.contains("running"), "{shown}");
    }

    let_through(0o700);
    for verb in
        [&["ls"][..], &["show", "web-1"], &["show", "none"], &["start", "off-1"], &["events"]]
    {
        stranger(verb).complains(Exit::Failed, &["Permission denied"]);
    }
}

#[test]
fn connections_of_other_users_do_not_block_the_owner() {
    let pair = Pair::without_nodes();
    let guest = Guest::start(&pair.a, &GuestPlan::default());
    let socket = guest.socket().with_file_name("api-ro.sock");
    let visit = |_| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        stream.write_all(b"GET /v1/guest HTTP/1.1\r\n").unwrap();
        stream
    };
    let strangers: Vec<UnixStream> = (0..100).map(visit).collect();
    pair.a.run(&["show", "web-1"]).ok();
    drop(strangers);
    pair.a.run(&["--readonly", "show", "web-1"]).ok();
}

/// Runs a guest whose process makes an attempt once it is confined, in each kind of thread. The
/// attempt is described by `what`.
#[cfg(feature = "failpoints")]
fn attempt(pair: &Pair, what: &str, more: &[&str]) -> Running {
    let arguments = [&["run", "--name", "web-1", "--memory", "64M"], more].concat();
    let mut command = lighter(pair.a.state_dir(), &arguments);
    // Programs with failpoints may write in the folder for temporary files, which also contains the
    // host of this test: another TMPDIR keeps that access away from it.
    command.env("LIGHTER_ATTEMPT", what).env("TMPDIR", "/nowhere");
    Running::start(command)
}

#[cfg(feature = "failpoints")]
#[test]
fn a_forbidden_system_call_ends_the_process_and_is_named() {
    let pair = Pair::without_nodes();
    for (what, call) in [
        ("execute:/bin/true", "execve"),
        ("kill:1", "kill"),
        ("limits:1", "prlimit64"),
        ("priority:nice", "prlimit64"),
        ("priority:realtime", "prlimit64"),
    ] {
        let done = attempt(&pair, what, &[]).finish();
        assert_eq!(done.exit, Exit::Other, "{done:?}");
        assert!(
            done.stderr.contains(&format!("forbidden system call: {call} (")),
            "{}",
            done.stderr
        );
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn a_guest_that_has_arrived_reads_nothing_of_its_hosts() {
    let mut pair = Pair::without_nodes();
    pair.a.start_node(&NodePlan::default());
    let _guest = Guest::start(&pair.a, &GuestPlan::default());
    let outside = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "hidden").unwrap();
    for (file, answer) in [
        ("certs/host.key", "Permission denied"),
        ("merge-domain", "Permission denied"),
        ("node.json", "denied"),
        (&secret.display().to_string(), "Permission denied"),
        ("/etc/passwd", "Permission denied"),
    ] {
        let path = pair.b.state_dir().join(file);
        let attempt = format!("read:{}", path.display());
        let environment = [("LIGHTER_ATTEMPT", attempt.as_str()), ("TMPDIR", "/nowhere")];
        let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
        pair.b.start_node(&NodePlan { environment: environment.to_vec(), ..NodePlan::default() });
        Migration::run(&pair.a, "web-1", &pair.b).ok();
        pair.b.await_log(&[&format!("attempt in the new thread: {attempt}: ")]);
        let logs = pair.b.logs();
        let reported: Vec<_> = logs.lines().filter(|line| line.contains(&attempt)).collect();
        assert!(
            reported.len() == 3 && reported.iter().all(|line| line.contains(answer)),
            "{reported:?}"
        );
        Migration::run(&pair.b, "web-1", &pair.a).ok();
        pair.b.kill_node();
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn a_guest_that_arrived_with_a_disk_reaches_no_other_disk_in_its_folder() {
    let mut pair = Pair::without_nodes();
    let folder = pair.folder().join("disks");
    fs::create_dir(&folder).unwrap();
    let [own, copy, neighbour] =
        ["own", "copy", "other"].map(|name| folder.join(format!("{name}.raw")));
    for disk in [&own, &neighbour] {
        fs::write(disk, [7; 8192]).unwrap();
    }
    let node = |environment: &[(&str, &str)]| NodePlan {
        arguments: vec!["--disk-dir".to_owned(), folder.display().to_string()],
        environment: environment.iter().map(|(name, it)| ((*name).into(), (*it).into())).collect(),
        ..NodePlan::default()
    };
    pair.a.start_node(&node(&[]));
    let kernel = sleeper(pair.folder()).display().to_string();
    let (disk, there) = (own.display().to_string(), copy.display().to_string());
    let start = ["run", "--detach", "--name", "web-1", "--memory", "64M", "--kernel", &kernel];
    pair.a.run(&[&start[..], &["--disk", &disk]].concat()).ok();
    let copied = ["--copy-disks", "--disk-path", &format!("{disk}={there}")];
    let (neighbour, new) = (neighbour.display(), folder.join("new.raw"));
    for (attempt, answer, how) in [
        (format!("read:{disk}"), "done", &[][..]),
        (format!("read:{neighbour}"), "Permission denied", &[]),
        (format!("write:{neighbour}"), "Permission denied", &[]),
        (format!("create:{}", new.display()), "Permission denied", &[]),
        (format!("read:{neighbour}"), "Permission denied", &copied),
        (format!("write:{neighbour}"), "Permission denied", &copied),
        (format!("create:{}", new.display()), "Permission denied", &copied),
    ] {
        let environment = [("LIGHTER_ATTEMPT", &*attempt), ("TMPDIR", "/nowhere")];
        pair.b.start_node(&node(&environment));
        Migration::start(&pair.a, "web-1", &pair.b, how).finish().ok();
        pair.b.await_log(&[&format!("attempt in the new thread: {attempt}: ")]);
        let logs = pair.b.logs();
        let reported: Vec<_> = logs.lines().filter(|line| line.contains(&attempt)).collect();
        assert!(reported.iter().all(|line| line.contains(answer)), "{reported:?}");
        let back = ["--copy-disks", "--replace-disks", "--disk-path", &format!("{there}={disk}")];
        let back = if how.is_empty() { &[][..] } else { &back };
        Migration::start(&pair.b, "web-1", &pair.a, back).finish().ok();
        pair.b.kill_node();
        // A migration with a copy has left an outdated disk on host b.
        let _there_after_a_copy = fs::remove_file(&copy);
    }
}

#[cfg(feature = "failpoints")]
#[test]
fn forbidden_access_is_refused_in_every_thread() {
    let pair = Pair::without_nodes();
    let outside = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let secret = outside.path().join("secret");
    fs::write(&secret, "hidden").unwrap();
    let (secret, new) = (secret.display(), outside.path().join("new"));
    let listener_path = outside.path().join("sock");
    let _listener = UnixListener::bind(&listener_path).unwrap();
    let others_vsock = pair.a.state_dir().join("vsock/other.sock");
    let others = [
        "migrations/guests/other/00000000-0000-0000-0000-000000000005/a.json",
        "ended/guests/other/ended.json",
        "departed/guests/other/00000000-0000-0000-0000-000000000005/a.json",
    ];
    let others = others.map(|file| pair.a.state_dir().join(file));
    for file in &others {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "another guest's").unwrap();
    }
    let beside_others = |file: &str| pair.a.state_dir().join(file).display().to_string();
    let key = pair.a.state_dir().join("certs/host.key");
    assert!(key.exists(), "{key:?}");
    let denied = "Permission denied";
    let forbidden = "Operation not permitted";
    for (what, answer) in [
        (format!("read:{secret}"), denied),
        (format!("write:{secret}"), denied),
        (format!("read:{}", key.display()), denied),
        (format!("create:{}", new.display()), denied),
        (format!("create:{}", others_vsock.display()), denied),
        (format!("read:{}", others[0].display()), denied),
        (format!("write:{}", others[0].display()), denied),
        (format!("read:{}", others[1].display()), denied),
        (format!("write:{}", others[2].display()), denied),
        (format!("create:{}", others[1].with_file_name("b.json").display()), denied),
        (format!("create:{}", beside_others("migrations/a.json")), denied),
        (format!("create:{}", beside_others("migrations/guests/web-1/a.json")), denied),
        (format!("create:{}", beside_others("ended/other.json")), denied),
        (format!("read:{}", beside_others("merge-domain")), denied),
        (format!("create:{}", beside_others("ended/guests/other.json")), denied),
        (format!("connect:{}", listener_path.display()), forbidden),
        ("netlink".to_owned(), forbidden),
        ("tcp".to_owned(), denied),
        ("packets".to_owned(), forbidden),
        ("process:/bin/true".to_owned(), forbidden),
        ("read:/proc/self/status".to_owned(), "done"),
    ] {
        let run = attempt(&pair, &what, &[]);
        let reported = wait::until("all threads have tried it", || {
            let (_, stderr) = run.said();
            let reported: Vec<String> = stderr.lines().map(str::to_owned).collect();
            let reported: Vec<_> =
                reported.into_iter().filter(|line| line.contains("attempt")).collect();
            if reported.len() == 3 { Ok(reported) } else { Err(stderr) }
        });
        assert!(reported.iter().all(|line| line.contains(answer)), "{what}: {reported:?}");
        pair.a.run(&["destroy", "web-1"]).ok();
        run.finish();
    }
    let run = attempt(&pair, &format!("read:{secret}"), &["--landlock", "off"]);
    wait::until("it is read where nothing forbids it", || {
        let (_, stderr) = run.said();
        if stderr.matches(": done").count() == 3 { Ok(()) } else { Err(stderr) }
    });
    pair.a.run(&["destroy", "web-1"]).ok();
    run.finish();
}

#[cfg(feature = "failpoints")]
#[test]
fn a_merged_guest_cannot_claim_another_domain_is_merged() {
    let _turn = KsmTurn::take();
    let pair = Pair::without_nodes();
    let file = pair.a.state_dir().join("merge-domain");
    let of_domain = ["--merge-domain", "shop"];
    let run = attempt(&pair, &format!("write:{}", file.display()), &of_domain);
    wait::until("it is refused where nothing else is", || {
        let (_, stderr) = run.said();
        if stderr.matches("Permission denied").count() == 3 { Ok(()) } else { Err(stderr) }
    });
    assert_eq!(fs::read_to_string(&file).unwrap(), "shop");
    let shown = pair.a.run(&["show", "web-1", "--json"]).ok().json();
    assert_eq!(shown["backing"]["mergeable"], true, "{shown:#}");
    pair.a.run(&["destroy", "web-1"]).ok();
    run.finish();
}
