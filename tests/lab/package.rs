//! The Debian package on hosts that have nothing else of lighter: from its installation to the
//! first migration, and guests that outlive its node, its upgrade and its removal.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::disks::push_kernel;
use crate::fixtures::{Host, Lab, until};

/// The guest's name.
const NAME: &str = "web";

/// The node's file as an operator edits it.
const NODE_FILE: &str = "disk-dir = [\"/var/lib/disks\"]\nforeign-guests = \"off\"\n";

/// The maintainer of the packages.
const MAINTAINER: [(&str, &str); 2] =
    [("DEBFULLNAME", "A. Packager"), ("DEBEMAIL", "packager@example.org")];

/// What the package installs besides the program and its units.
const FILES: [&str; 9] = [
    "/usr/share/man/man1/lighter.1.gz",
    "/usr/share/man/man1/lighter-migrate.1.gz",
    "/usr/share/bash-completion/completions/lighter",
    "/usr/share/zsh/vendor-completions/_lighter",
    "/usr/share/fish/vendor_completions.d/lighter.fish",
    "/usr/share/lighter/build-firmware",
    "/usr/share/doc/lighter/docs/user-guide.md",
    "/usr/share/doc/lighter/copyright",
    "/usr/share/doc/lighter/changelog.Debian.gz",
];

/// Packages the program under test as `version`.
fn package(version: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut build = Command::new(root.join("scripts/package"));
    // What cargo tells this test about its own package, and what scripts/timed-test sets for it,
    // would have cargo build everything again.
    std::env::vars_os().map(|(name, _)| name).filter(|name| is_of_package(name)).for_each(|name| {
        build.env_remove(name);
    });
    build.args(["--binary", env!("CARGO_BIN_EXE_lighter"), "--version", version]).envs(MAINTAINER);
    let done = build.output().expect("a script");
    assert!(done.status.success(), "{done:?}");
    // The next package replaces this one.
    let name = format!("lighter_{version}_amd64.deb");
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(&name);
    fs::copy(root.join("target/debian").join(&name), &kept).expect("a package");
    kept
}

fn is_of_package(variable: &OsStr) -> bool {
    let name = variable.to_string_lossy();
    ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "RUSTC_BOOTSTRAP"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

/// Installs or upgrades the package on `host`, without the network.
#[track_caller]
fn install(host: Host<'_>, package: &Path) {
    host.push(&[package], "/tmp/lab");
    let file = package.file_name().expect("a name").display().to_string();
    host.sh(&format!(
        "DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends /tmp/lab/{file}"
    ))
    .ok();
}

/// A bare host with the package, whose operator has edited the node's file.
fn set_up(host: Host<'_>, package: &Path) {
    host.make_bare();
    install(host, package);
    // It has its certificates, so the package has started it.
    host.await_node();
    host.sh("echo 'lisen = \"[::]:4950\"' > /etc/lighter/node.toml").ok();
    let restart = "! systemctl restart lighter-node && journalctl -u lighter-node | grep lisen";
    host.sh(restart).ok();
    host.sh(&format!("printf '{NODE_FILE}' > /etc/lighter/node.toml")).ok();
    host.sh("systemctl restart lighter-node && test -e /var/lib/lighter/node.json").ok();
    host.await_node();
}

/// The process ID of the guest, which must run on `host`.
#[track_caller]
fn pid(host: Host<'_>) -> u64 {
    let guest = host.ask(NAME, "/v1/guest").expect("a guest");
    assert_eq!(host.state_of(NAME).as_deref(), Some("running"));
    guest["pid"].as_u64().expect("a process ID")
}

/// Asserts that the guest's process has a scope of its own on `host`.
#[track_caller]
fn is_in_the_slice(host: Host<'_>) {
    let own = host.sh(&format!("cat /proc/{}/cgroup", pid(host))).ok();
    assert!(own.contains(&format!("/lighter.slice/lighter-guest-{NAME}-")), "{own}");
    let all = host.sh("systemd-cgls --no-pager --full --unit lighter.slice").ok();
    assert!(all.contains(&format!("lighter-guest-{NAME}-")) && all.contains("lighter"), "{all}");
}

#[test]
fn guests_outlive_the_packages_node_its_upgrade_and_its_removal() {
    let [old, new] = ["0.1.0-1", "0.1.0-2"].map(package);
    let lab = Lab::of(2);
    let [here, there] = [1, 2].map(|number| lab.host(number));
    [here, there].into_iter().for_each(|host| set_up(host, &old));
    for file in FILES {
        here.sh(&format!("test -s {file}")).ok();
    }
    let refused = here.sh("/usr/share/lighter/build-firmware /etc/hostname");
    assert!(
        refused.code == Some(1) && refused.stderr.contains("/etc/hostname exists"),
        "{refused:?}"
    );
    let maintainer = here.sh("dpkg-query -W -f '${Maintainer}' lighter").ok();
    assert_eq!(maintainer, "A. Packager <packager@example.org>");
    [here, there].into_iter().for_each(push_kernel);

    here.lighter(&format!(
        "run --name {NAME} --memory 64M --kernel /var/lib/disks/sleeper --detach"
    ))
    .ok();
    is_in_the_slice(here);
    let first = pid(here);
    here.sh("systemctl restart lighter-node").ok();
    here.await_node();
    assert_eq!(pid(here), first);
    let node = "systemctl show --property MainPID --value lighter-node";
    let before = here.sh(node).ok();
    install(here, &new);
    until("the upgrade has replaced the node", || {
        let now = here.sh(node).ok();
        if now == before || now.trim() == "0" { Err(now) } else { Ok(()) }
    });
    here.await_node();
    assert_eq!(here.sh("dpkg-query -W -f '${Version}' lighter").ok(), "0.1.0-2");
    assert_eq!(here.sh("cat /etc/lighter/node.toml").ok(), NODE_FILE);
    assert_eq!(pid(here), first);

    here.lighter(&format!("migrate {NAME} {} --downtime 10s", there.address())).ok();
    is_in_the_slice(there);
    let moved = pid(there);
    there.sh("systemctl stop lighter-node").ok();
    assert_eq!(pid(there), moved);
    let said = there.sh("dpkg --purge lighter").ok();
    assert!(said.contains("/var/lib/lighter stays"), "{said}");
    there.sh(&format!("test -d /proc/{moved} && test -d /var/lib/lighter/guests/{NAME}")).ok();
}

/// The page that shows the recording.
const PAGE: &str = include_str!("../../docs/two-hosts.md");

/// The commands in a recording, each with its prompt.
fn commands(recording: &str) -> Vec<&str> {
    let is_command = |line: &&str| ["host-a# ", "host-b# "].iter().any(|it| line.starts_with(it));
    recording.lines().map(str::trim).filter(is_command).collect()
}

/// What operators type on two hosts, and what they see.
#[derive(Default)]
struct Recording(String);

impl Recording {
    /// Runs a command that must succeed on the host that is called `name`; returns its output.
    #[track_caller]
    fn run(&mut self, (name, host): (&str, Host<'_>), command: &str) -> String {
        let done = host.sh(&format!("cd /root && {{ {command} ; }} 2>&1"));
        self.0.push_str(&format!("{name}# {command}\n{}", done.stdout));
        done.ok()
    }

    /// Copies a file from one host to another, as scp(1) would.
    #[track_caller]
    fn copy(&mut self, from: (&str, Host<'_>), to: (&str, Host<'_>), file: &str) {
        let text = from.1.sh(&format!("cat /root/{file}")).ok();
        to.1.sh(&format!("cat > /root/{file} <<'END'\n{text}END\n")).ok();
        self.0.push_str(&format!("{}# scp {file} {}:\n", from.0, to.0));
    }

    /// Writes the recording to where a person finds it.
    fn keep(&self) {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("two-hosts.txt");
        fs::write(path, &self.0).expect("a file");
    }
}

/// What the firewall of a host lets through at first: the lab's own connections, and answers.
const FIREWALL: &str = "nft 'add table inet filter; \
    add chain inet filter input { type filter hook input priority 0; policy drop; }; \
    add rule inet filter input iifname != \"eth0\" accept; \
    add rule inet filter input ct state established,related accept'";

#[test]
fn the_guides_path_from_the_package_to_the_first_migration() {
    let package = package("0.1.0-1");
    let lab = Lab::of(2);
    let hosts = [("host-a", lab.host(1)), ("host-b", lab.host(2))];
    let [a, b] = hosts;
    for (_, host) in hosts {
        host.make_bare();
        host.sh("rm -rf /var/lib/lighter /root/host-b.*").ok();
        host.push(&[&package], "/root");
        host.sh("grep -q host-b /etc/hosts || printf '10.77.0.1 host-a\\n10.77.0.2 host-b\\n' >> /etc/hosts").ok();
        host.sh(FIREWALL).ok();
    }
    let mut recording = Recording::default();
    for on in hosts {
        recording.run(on, "apt-get install -qq -o Dpkg::Use-Pty=0 ./lighter_0.1.0-1_amd64.deb");
    }
    recording.run(a, "lighter certs init host-a 10.77.0.1");
    recording.run(b, "lighter certs request host-b 10.77.0.2 --out host-b.csr");
    recording.copy(b, a, "host-b.csr");
    recording.run(a, "lighter certs sign host-b.csr --out host-b.pem");
    recording.copy(a, b, "host-b.pem");
    recording.run(b, "lighter certs install host-b.pem");
    for on in hosts {
        recording.run(
            on,
            "nft add rule inet filter input ip saddr 10.77.0.0/24 udp dport '{ 4950, 49152-49215 }' accept",
        );
        recording.run(on, "systemctl start lighter-node");
        on.1.await_node();
    }
    recording.run(a, "lighter run --name web-1 --memory 64M --dirty-rate 500 --detach");
    recording.run(a, "lighter ls");
    recording.run(a, "lighter migrate web-1 host-b --downtime 2s");
    let there = recording.run(b, "lighter ls");
    assert!(there.contains("web-1") && there.contains("running"), "{there}");
    let gone = recording.run(a, "lighter show web-1");
    assert!(gone.contains("moved to host-b"), "{gone}");
    recording.keep();
    assert_eq!(commands(&recording.0), commands(PAGE), "docs/two-hosts.md shows other commands");
}
