//! A network for guests: a bridge on each of two hosts, both plugged into a switch that somebody
//! else looks after.
//!
//! The switch is a bridge in a namespace of its own; the client's address is on it. So its table of
//! addresses is what any switch between two hosts would have.

use super::cable::{Cable, ip, tool};
use support::NodePlan;

/// The bridge on each host.
pub(super) const BRIDGES: [&str; 2] = ["br0", "lan"];
/// The switch.
const SWITCH: &str = "sw0";
/// Its ports, by host.
const PORTS: [&str; 2] = ["port-a", "port-b"];
/// The switch's interface for frames that a filter drops, and its other end.
const DROPPED: [&str; 2] = ["dropped", "dropped-end"];
/// Reverse ARP's type in a frame: what announces a guest that has moved.
const REVERSE_ARP: &str = "0x8035";
/// The interface of each host towards the switch.
const UPLINK: &str = "up0";
/// The client's address, and the guest's (TEST-NET-2, RFC 5737).
const CLIENT: &str = "198.51.100.1/24";
/// See [`CLIENT`].
pub(super) const GUEST: &str = "198.51.100.2";

/// Two hosts on a cable, and the switch; removed when dropped.
#[derive(Debug)]
pub(super) struct Lan {
    cable: Cable,
    switch: Namespace,
}

/// A filter at a port of the switch; removed when dropped.
#[derive(Debug)]
pub(super) struct PortFilter<'a> {
    switch: &'a str,
    port: &'static str,
}

impl Drop for PortFilter<'_> {
    fn drop(&mut self) {
        let remove = ["-n", self.switch, "qdisc", "del", "dev", self.port, "clsact"];
        let _ = std::process::Command::new("tc").args(remove).status();
    }
}

#[derive(Debug)]
struct Namespace(String);

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

impl Lan {
    /// The switch with its client and both hosts; host b has no bridge yet. None when such tests
    /// are to be skipped.
    pub(super) fn lay() -> Option<Self> {
        let cable = Cable::lay()?;
        let name = format!("{}-switch", cable.namespaces()[0]);
        ip(&["netns", "add", &name]);
        let lan = Self { cable, switch: Namespace(name) };
        let switch = lan.switch();
        ip(&["-n", switch, "link", "add", SWITCH, "type", "bridge"]);
        ip(&["-n", switch, "address", "add", CLIENT, "dev", SWITCH]);
        ip(&["-n", switch, "link", "set", SWITCH, "up"]);
        let [dropped, end] = DROPPED;
        ip(&["-n", switch, "link", "add", dropped, "type", "veth", "peer", "name", end]);
        ip(&["-n", switch, "link", "set", dropped, "up"]);
        lan.plug_in(0);
        Some(lan)
    }

    /// Gives host a (0) or b (1) a bridge, and plugs it into the switch.
    pub(super) fn plug_in(&self, host: usize) {
        let (switch, port, bridge) = (self.switch(), PORTS[host], BRIDGES[host]);
        let namespace = &self.cable.namespaces()[host];
        let ends = ["link", "add", port, "netns", switch, "type", "veth", "peer", "name", UPLINK];
        ip(&[ends.as_slice(), &["netns", namespace]].concat());
        ip(&["-n", switch, "link", "set", port, "master", SWITCH, "up"]);
        ip(&["-n", namespace, "link", "add", bridge, "type", "bridge"]);
        ip(&["-n", namespace, "link", "set", UPLINK, "master", bridge, "up"]);
        ip(&["-n", namespace, "link", "set", bridge, "up"]);
    }

    /// How the node of host a (0) or b (1) is started: it knows what the other one calls the
    /// bridge.
    pub(super) fn node_plan(&self, host: usize) -> NodePlan {
        let (here, there) = (BRIDGES[host], BRIDGES[1 - host]);
        let net_map = ["--net-map".to_owned(), format!("{there}={here}")];
        let disks = ["--disk-dir".to_owned(), std::env::temp_dir().display().to_string()];
        let arguments = [net_map, disks].concat();
        NodePlan { arguments, ..self.cable.node_plan(host) }
    }

    /// The cable between the hosts.
    pub(super) fn cable(&self) -> &Cable {
        &self.cable
    }

    /// The namespace of the switch and the client.
    pub(super) fn switch(&self) -> &str {
        &self.switch.0
    }

    /// From now on the switch receives nothing from host a (0) or b (1) but announcements (reverse
    /// ARP).
    pub(super) fn admit_only_announcements(&self, host: usize) -> PortFilter<'_> {
        let (switch, port) = (self.switch(), PORTS[host]);
        tool("tc", &["-n", switch, "qdisc", "add", "dev", port, "clsact"]);
        let filter = PortFilter { switch, port };
        let add = ["-n", switch, "filter", "add", "dev", port, "ingress"];
        let any = ["u32", "match", "u32", "0", "0"];
        let admit = ["pref", "1", "protocol", REVERSE_ARP];
        tool("tc", &[&add[..], &admit, &any, &["flowid", ":1"]].concat());
        let rest = ["pref", "2", "protocol", "all"];
        let drop = ["action", "mirred", "egress", "redirect", "dev", DROPPED[0]];
        tool("tc", &[&add[..], &rest, &any, &drop].concat());
        filter
    }

    /// Behind which host the switch believes the device of address `mac` to be: 0, 1, or none.
    pub(super) fn learnt(&self, mac: &str) -> Option<usize> {
        let table = tool("bridge", &["-n", self.switch(), "fdb", "show", "br", SWITCH]);
        let line = table.lines().find(|line| line.starts_with(mac))?;
        PORTS.iter().position(|port| line.contains(&format!("dev {port} ")))
    }
}
