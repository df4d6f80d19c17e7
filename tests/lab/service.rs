//! The node as a service of systemd, with the unit that the user guide prints.

use std::path::Path;

use crate::fixtures::{Host, Lab, holds, until};
use support::kernel::sleeper;

const GUEST: &str = "name = \"web\"\nmemory = \"64M\"\nkernel = \"/var/lib/disks/sleeper\"\n[[disk]]\npath = \"/var/lib/disks/web.raw\"\n";

fn await_running(host: Host<'_>) {
    until("the guest runs", || {
        let state = host.state_of("web");
        holds(state.as_deref() == Some("running"), state)
    });
}

#[test]
fn a_guest_comes_back_with_the_power_and_outlives_its_node() {
    let lab = Lab::of(1);
    let host = lab.host(1);
    host.start_node();
    let folder = tempfile::tempdir().expect("a temporary folder");
    host.push(&[Path::new(&sleeper(folder.path()))], "/var/lib/disks");
    host.sh(&format!(
        "truncate -s 16M /var/lib/disks/web.raw && printf '{GUEST}' > /tmp/web.toml && sync"
    ))
    .ok();
    // What it answers is on the disk.
    host.lighter("define /tmp/web.toml && lighter autostart web").ok();
    lab.cut_power(1);
    lab.restore_power(1);
    await_running(host);
    let uuid = host.ask("web", "/v1/guest").expect("a guest")["uuid"].clone();
    for end in [
        "systemctl restart lighter-node",
        "kill -KILL $(systemctl show --property MainPID --value lighter-node)",
    ] {
        host.sh(end);
        host.await_node();
        assert_eq!(host.state_of("web").as_deref(), Some("running"), "{end}");
        assert_eq!(host.ask("web", "/v1/guest").expect("a guest")["uuid"], uuid, "{end}");
    }
}

#[test]
fn a_host_is_found_by_a_name_that_it_got_after_the_guest_started() {
    let lab = Lab::of(2);
    let [here, there] = lab.nodes();
    let folder = tempfile::tempdir().expect("a temporary folder");
    here.push(&[Path::new(&sleeper(folder.path()))], "/var/lib/disks");
    // Each of these puts another file in the place of the last one, as editors do.
    here.sh("echo 127.0.0.1 localhost > /etc/hosts.new && mv /etc/hosts.new /etc/hosts").ok();
    here.lighter("run --name web --memory 64M --kernel /var/lib/disks/sleeper --detach").ok();
    here.lighter("migrate web host2").complains(&["cannot find an address for host2"]);
    here.sh(&format!("sed -i '$a {} host2' /etc/hosts", there.address())).ok();
    here.lighter("migrate web host2 --downtime 10s").ok();
    assert_eq!(there.state_of("web").as_deref(), Some("running"));
}
