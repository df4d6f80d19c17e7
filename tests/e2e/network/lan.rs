//! A network for guests: a bridge on each of two hosts, both connected to a switch that lighter
//! does not manage.
//!
//! The switch is a bridge in a namespace of its own, with the client's address. Its forwarding
//! table therefore behaves like that of any switch between two hosts.

use super::cable::{Cable, done, ip, tool};
use support::NodePlan;
use support::cable::Namespace;

/// Name of the bridge on each host.
pub(super) const BRIDGES: [&str; 2] = ["br0", "lan"];
/// Name of the switch.
const SWITCH: &str = "sw0";
/// Names of the switch's ports, by host.
const PORTS: [&str; 2] = ["port-a", "port-b"];
/// The interface to which a filter diverts the frames that it drops, and its other end.
const DROPPED: [&str; 2] = ["dropped", "dropped-end"];
/// EtherType of reverse ARP, which announces a guest that has migrated.
const REVERSE_ARP: &str = "0x8035";
/// The interface of each host towards the switch.
const UPLINK: &str = "up0";
/// Address of the client (TEST-NET-2, RFC 5737).
const CLIENT: &str = "198.51.100.1/24";
/// Address of the guest, in the network of [`CLIENT`].
pub(super) const GUEST: &str = "198.51.100.2";

/// Two hosts on a cable, and the switch; deleted when dropped.
#[derive(Debug)]
pub(super) struct Lan {
    cable: Cable,
    switch: Namespace,
}

/// A filter at a port of the switch; deleted when dropped.
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

impl Lan {
    /// Creates the switch, its client and both hosts; host b has no bridge yet. `None` if such
    /// tests are to be skipped.
    pub(super) fn lay() -> Option<Self> {
        let cable = Cable::lay()?;
        let name = format!("{}-switch", cable.namespaces()[0]);
        let lan = Self { cable, switch: done(Namespace::create(name)) };
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

    /// Creates the bridge of host a (0) or b (1), and connects it to the switch.
    pub(super) fn plug_in(&self, host: usize) {
        let (switch, port, bridge) = (self.switch(), PORTS[host], BRIDGES[host]);
        let namespace = self.cable.namespaces()[host];
        let ends = ["link", "add", port, "netns", switch, "type", "veth", "peer", "name", UPLINK];
        ip(&[ends.as_slice(), &["netns", namespace]].concat());
        ip(&["-n", switch, "link", "set", port, "master", SWITCH, "up"]);
        ip(&["-n", namespace, "link", "add", bridge, "type", "bridge"]);
        ip(&["-n", namespace, "link", "set", UPLINK, "master", bridge, "up"]);
        ip(&["-n", namespace, "link", "set", bridge, "up"]);
    }

    /// The plan for starting the node of host a (0) or b (1), with the map from the other host's
    /// bridge to its own.
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
        self.switch.name()
    }

    /// Drops, until the filter is dropped, all frames from host a (0) or b (1) to the switch except
    /// announcements (reverse ARP).
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

    /// The host behind which the switch has learnt the address `mac`: 0 or 1; `None` if it has not.
    pub(super) fn learnt(&self, mac: &str) -> Option<usize> {
        let table = tool("bridge", &["-n", self.switch(), "fdb", "show", "br", SWITCH]);
        let line = table.lines().find(|line| line.starts_with(mac))?;
        PORTS.iter().position(|port| line.contains(&format!("dev {port} ")))
    }
}
