//! The node as a systemd service, with the unit of the package.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use crate::disks::push_kernel;
use crate::fixtures::{Host, Lab, StockGuest, holds, until};

const GUEST: &str = "name = \"web\"\nmemory = \"64M\"\nkernel = \"/var/lib/disks/sleeper\"\n[[disk]]\npath = \"/var/lib/disks/web.raw\"\n";

fn await_running(host: Host<'_>) {
    until("the guest runs", || {
        let state = host.state_of("web");
        holds(state.as_deref() == Some("running"), state)
    });
}

#[test]
fn a_guest_restarts_after_a_power_cut_and_outlives_its_node() {
    let lab = Lab::of(1);
    let host = lab.host(1);
    host.start_node();
    push_kernel(host);
    host.sh(&format!(
        "truncate -s 16M /var/lib/disks/web.raw && printf '{GUEST}' > /tmp/web.toml && sync"
    ))
    .ok();
    // Once these commands return, their results are on disk, without a sync.
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
    push_kernel(here);
    // Each command replaces the file by another one (rename or `sed -i`), as editors do.
    here.sh("echo 127.0.0.1 localhost > /etc/hosts.new && mv /etc/hosts.new /etc/hosts").ok();
    here.lighter("run --name web --memory 64M --kernel /var/lib/disks/sleeper --detach").ok();
    here.lighter("migrate web host2").complains(&["cannot find an address for host2"]);
    here.sh(&format!("sed -i '$a {} host2' /etc/hosts", there.address())).ok();
    here.lighter("migrate web host2 --downtime 10s").ok();
    assert_eq!(there.state_of("web").as_deref(), Some("running"));
}

/// The runs in the density history of `host`, by number, with their states; asserts that every
/// entry is readable.
fn runs(host: Host<'_>) -> BTreeMap<u64, String> {
    let history = host.lighter("density history --count 1000 --json").json();
    assert_eq!(history["unreadable"], json!([]), "{history}");
    let runs = history["runs"].as_array().expect("a list").iter();
    let state = |run: &Value| run["state"].as_str().expect("a state").to_owned();
    runs.map(|run| (run["id"].as_u64().expect("a number"), state(run))).collect()
}

#[test]
fn density_history_survives_a_power_cut() {
    let lab = Lab::of(1);
    let host = lab.host(1);
    host.start_node();
    for cut in 1..=3 {
        // The power cut can hit any point of a run.
        let apply = "while true; do lighter density apply; done";
        host.sh(&format!("systemd-run --quiet --unit lab-apply sh -c '{apply}'")).ok();
        let before = until("runs are recorded", || {
            let runs = runs(host);
            if runs.len() > 4 * cut { Ok(runs) } else { Err(runs) }
        });
        lab.cut_power(1);
        lab.restore_power(1);
        host.await_node();
        let after = runs(host);
        let lost = |(run, state): &(&u64, &String)| match after.get(run).map(String::as_str) {
            Some("done") => false,
            Some("interrupted") => *state == "done",
            _ => true,
        };
        let lost: Vec<_> = before.iter().filter(lost).collect();
        assert!(lost.is_empty(), "lost: {lost:?} of {before:?}; there are {after:?}");
    }
}

/// Has guests shut down with the host, for as long as that takes here.
fn bring_guests_unit(host: Host<'_>) {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/lighter-guests.service");
    let folder = "/etc/systemd/system";
    host.push(&[&unit], folder);
    let changes = "s,/usr/bin/lighter,/usr/local/bin/lighter,; s/ 90s/ 1h/; s/Sec=110/Sec=1h/";
    host.sh(&format!(
        "sed -i '{changes}' {folder}/lighter-guests.service && systemctl daemon-reload \
         && systemctl enable --now --quiet lighter-guests && sync"
    ))
    .ok();
}

#[test]
fn a_host_that_shuts_down_lets_its_guests_shut_down_first() {
    let lab = Lab::of(1);
    let host = lab.host(1);
    host.start_node();
    bring_guests_unit(host);
    let guest = StockGuest::boot(&lab, host, 1, "");
    guest.sh(host, "echo kept > /root/note").ok();
    // Guests run on when only the unit stops, as in an upgrade.
    host.sh("systemctl restart lighter-guests").ok();
    assert_eq!(host.state_of("debian").as_deref(), Some("running"));

    host.sh("systemctl poweroff");
    lab.await_off(1);
    lab.restore_power(1);
    host.await_node();

    let shown = host.lighter("show debian --json").json();
    assert_eq!(shown["how"], "powered-off", "{shown:#}");
    host.sh("e2fsck -f -n /dev/vdb").ok();
    let note = "debugfs -R 'cat /root/note' /dev/vdb";
    assert_eq!(host.sh(note).stdout, "kept\n");
}
