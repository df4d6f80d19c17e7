//! Tap devices: created and deleted with the guest, supplied by the user and kept, and refused.

use super::cable::{ip, tool};
use super::lan::Lan;
use support::kernel::sleeper;
use support::{Exit, Migration, Pair, in_namespace, lighter, run, wait};

/// Starts a sleeping guest with this network in the namespace of host a.
fn start(lan: &Lan, pair: &Pair, name: &str, net: &str) -> support::Done {
    let kernel = sleeper(pair.folder()).display().to_string();
    let arguments = ["run", "--detach", "--name", name, "--memory", "64M"];
    let rest = ["--kernel", &kernel, "--net", net];
    let command = lighter(pair.a.state_dir(), &[arguments.as_slice(), &rest].concat());
    run(in_namespace(command, lan.cable().end_a().as_deref()))
}

/// The line of `ip link show` for an interface on host a; empty if there is none.
fn link(lan: &Lan, name: &str) -> String {
    let all = tool("ip", &["-n", lan.cable().namespaces()[0], "-o", "link", "show"]);
    all.lines().find(|line| line.contains(&format!(": {name}: "))).unwrap_or_default().to_owned()
}

#[test]
fn a_created_tap_is_on_its_bridge_and_removed_with_the_guest() {
    let Some(lan) = Lan::lay() else { return };
    let pair = lan.cable().hosts();
    start(&lan, &pair, "web", "bridge=br0,tap=tap-web").ok();
    let made = link(&lan, "tap-web");
    assert!(made.contains("master br0") && made.contains(",UP,"), "{made}");
    start(&lan, &pair, "db", "bridge=br0").ok();
    let nets = pair.a.list().into_iter().map(|guest| guest["nets"][0].clone());
    let nets: Vec<_> = nets.collect();
    assert_ne!(nets[0]["mac"], nets[1]["mac"], "each has an address of its own");
    assert!(link(&lan, "lighter0").contains("master br0"), "{nets:#?}");

    let words = ["tap-web", "it exists", "omit the bridge"];
    start(&lan, &pair, "other", "bridge=br0,tap=tap-web").complains(Exit::Failed, &words);
    let taken = nets[0]["mac"].as_str().expect("an address");
    let second = format!("bridge=br0,mac={taken}");
    start(&lan, &pair, "other", &second).complains(Exit::Failed, &[taken, "end", "first"]);
    for name in ["web", "db"] {
        pair.a.run(&["destroy", name]).ok();
    }
    wait::until("the taps are gone", || {
        let left = link(&lan, "tap-web") + &link(&lan, "lighter0");
        wait::holds(left.is_empty(), left)
    });
}

#[test]
fn a_guest_from_another_host_is_put_on_a_permitted_network_alone() {
    let Some(lan) = Lan::lay() else { return };
    lan.plug_in(1);
    let mut pair = lan.cable().hosts();
    pair.a.start_node(&lan.node_plan(0));
    let allowing = |names: &str| {
        let mut plan = lan.node_plan(1);
        plan.arguments.extend(["--net-allow", names].map(str::to_owned));
        plan
    };
    start(&lan, &pair, "web", "bridge=br0,mac=52:54:00:99:00:01,standby,queues=2").ok();
    // The bridge exists, but only the host's own guests may use it.
    pair.b.start_node(&allowing("dmz,br0"));
    let words = ["network devices only at dmz, br0, and this guest has one at lan", "--net-allow"];
    Migration::run(&pair.a, "web", &pair.b).stayed(&words);
    pair.b.kill_node();
    pair.b.start_node(&allowing("dmz,lan"));
    Migration::run(&pair.a, "web", &pair.b).ok();
    let net = pair.b.list()[0]["nets"][0].clone();
    assert_eq!((&net["bridge"], &net["standby"]), (&"lan".into(), &true.into()), "{net:#}");
    assert_eq!(net["queues"], 2, "{net:#}");
}

#[test]
fn an_existing_tap_serves_one_guest_and_remains() {
    let Some(lan) = Lan::lay() else { return };
    let pair = lan.cable().hosts();
    let namespace = lan.cable().namespaces()[0];
    let words = ["tap0: there is none", "`ip tuntap add tap0 mode tap`"];
    start(&lan, &pair, "web", "tap=tap0").complains(Exit::Failed, &words);
    ip(&["-n", namespace, "tuntap", "add", "tap0", "mode", "tap"]);
    let words = ["tap0: it is down", "`ip link set tap0 up`"];
    start(&lan, &pair, "web", "tap=tap0").complains(Exit::Failed, &words);
    ip(&["-n", namespace, "link", "set", "tap0", "up", "mtu", "1400"]);

    start(&lan, &pair, "web", "tap=tap0").ok();
    assert_eq!(pair.a.list()[0]["nets"][0]["mtu"], 1400);
    assert!(link(&lan, "tap0").contains("LOWER_UP"), "{}", link(&lan, "tap0"));
    let words = ["tap0: it is in use by another guest or program"];
    start(&lan, &pair, "other", "tap=tap0").complains(Exit::Failed, &words);
    pair.a.run(&["destroy", "web"]).ok();
    wait::until("the cable is out", || {
        let left = link(&lan, "tap0");
        wait::holds(left.contains("NO-CARRIER"), left)
    });
    start(&lan, &pair, "web", "tap=br0").complains(Exit::Failed, &["br0: it is not a tap"]);
}

#[test]
fn a_tap_with_several_queues_serves_one_guest_too() {
    let Some(lan) = Lan::lay() else { return };
    let pair = lan.cable().hosts();
    let namespace = lan.cable().namespaces()[0];
    for (name, kind) in [("tap1", &[][..]), ("tap4", &["multi_queue"])] {
        let add = ["-n", namespace, "tuntap", "add", name, "mode", "tap"];
        ip(&[&add[..], kind].concat());
        ip(&["-n", namespace, "link", "set", name, "up"]);
    }
    let words = ["tap1: it is not a tap for several queues", "multi_queue"];
    start(&lan, &pair, "web", "tap=tap1,queues=2").complains(Exit::Failed, &words);
    let words = ["tap4: it is not a tap with a single queue"];
    start(&lan, &pair, "web", "tap=tap4").complains(Exit::Failed, &words);
    start(&lan, &pair, "web", "tap=tap4,queues=4").ok();
    let words = ["tap4: it is in use by another guest or program"];
    start(&lan, &pair, "other", "tap=tap4,queues=2").complains(Exit::Failed, &words);
    start(&lan, &pair, "db", "bridge=br0,queues=8,tap=tap8").ok();
    let shown = pair.a.run(&["show", "db"]).ok().stdout;
    assert!(shown.contains(" at tap8 on br0, 8 pairs of queues"), "{shown}");

    // Their guests have no driver that wants more than one.
    let details = ["-n", namespace, "-d", "link", "show", "tap8"];
    let details = tool("ip", &details);
    assert!(details.contains("numqueues 1 numdisabled 7"), "{details}");
    let saved = pair.folder().join("db.lighter").display().to_string();
    pair.a.run(&["save", "db", &saved]).ok();
    wait::until("the tap is gone", || {
        let left = link(&lan, "tap8");
        wait::holds(left.is_empty(), left)
    });
    let restore = ["restore", &saved, "--detach", "--name", "db"];
    let restore = lighter(pair.a.state_dir(), &restore);
    run(in_namespace(restore, lan.cable().end_a().as_deref())).ok();
    assert_eq!(pair.a.list()[0]["nets"][0]["queues"], 8);
}

#[test]
fn a_tap_comes_while_its_guest_runs_and_goes_with_it() {
    let Some(lan) = Lan::lay() else { return };
    let pair = lan.cable().hosts();
    let kernel = sleeper(pair.folder()).display().to_string();
    let attach = |name: &str, net: &str| {
        let command = lighter(pair.a.state_dir(), &["attach-interface", name, net]);
        run(in_namespace(command, lan.cable().end_a().as_deref()))
    };
    // One guest has files to give up, the other has not; neither has a network at first.
    for (name, landlock, tap, queues) in [("web", "on", "tap-web", 1), ("db", "off", "tap-db", 8)] {
        let arguments = ["run", "--detach", "--name", name, "--memory", "64M", "--kernel", &kernel];
        let command =
            lighter(pair.a.state_dir(), &[&arguments[..], &["--landlock", landlock]].concat());
        run(in_namespace(command, lan.cable().end_a().as_deref())).ok();
        let words = ["br9: there is none"];
        attach(name, "bridge=br9").complains(Exit::Failed, &words);
        let attached = attach(name, &format!("bridge=br0,tap={tap},queues={queues}")).ok();
        assert!(attached.stdout.contains(&format!("is attached to {name} at 0000:00:")));
        let made = link(&lan, tap);
        assert!(made.contains("master br0") && made.contains("LOWER_UP"), "{made}");
        let guest = pair.a.list().into_iter().find(|guest| guest["name"] == *name);
        let net = guest.expect("the guest")["nets"][0].clone();
        assert_eq!((&net["tap"], &net["queues"]), (&tap.into(), &queues.into()));
        pair.a.run(&["pause", name]).ok();
        pair.a.run(&["resume", name]).ok();
        attach(name, &format!("bridge=br0,tap={tap}")).complains(Exit::Failed, &["it exists"]);
    }
    for name in ["web", "db"] {
        pair.a.run(&["destroy", name]).ok();
    }
    wait::until("the taps are gone", || {
        let left = link(&lan, "tap-web") + &link(&lan, "tap-db");
        wait::holds(left.is_empty(), left)
    });
}
