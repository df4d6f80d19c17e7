//! Two network namespaces with a veth pair between them, created and deleted with ip(8).

use std::process::Command;

use support::{NodePlan, Pair};

/// Addresses of the two ends (TEST-NET-1, RFC 5737). Every cable uses the same ones, in namespaces
/// of its own.
const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// Name of the interface in either namespace.
const INTERFACE: &str = "veth0";

/// The environment variable that skips these tests.
const SKIP: &str = "LIGHTER_TEST_SKIP_NETWORK";

/// Two namespaces and the veth pair that joins them; deleted when dropped.
#[derive(Debug)]
pub(crate) struct Cable {
    namespaces: [String; 2],
}

impl Cable {
    /// Creates a cable; `None` if the tests that need one are to be skipped.
    ///
    /// # Panics
    /// If it cannot be created.
    pub(crate) fn lay() -> Option<Self> {
        if std::env::var_os(SKIP).is_some() {
            eprintln!("skipped, because {SKIP} is set");
            return None;
        }
        let id = uuid::Uuid::new_v4().simple().to_string();
        let cable =
            Self { namespaces: ["a", "b"].map(|end| format!("lighter-{}-{end}", &id[..8])) };
        for namespace in &cable.namespaces {
            ip(&["netns", "add", namespace]);
        }
        let [a, b] = &cable.namespaces;
        ip(&[
            "link", "add", INTERFACE, "netns", a, "type", "veth", "peer", "name", INTERFACE,
            "netns", b,
        ]);
        for (namespace, address) in cable.namespaces.iter().zip(ADDRESSES) {
            ip(&["-n", namespace, "address", "add", &format!("{address}/24"), "dev", INTERFACE]);
            ip(&["-n", namespace, "link", "set", "lo", "up"]);
            ip(&["-n", namespace, "link", "set", INTERFACE, "up"]);
        }
        Some(cable)
    }

    /// Two hosts without nodes, with certificates for the ends of the cable.
    pub(crate) fn hosts(&self) -> Pair {
        Pair::with_names(["host-a", ADDRESSES[0]], ["host-b", ADDRESSES[1]])
    }

    /// The plan for starting the node of host a (end 0) or b (end 1) in its namespace.
    pub(crate) fn node_plan(&self, end: usize) -> NodePlan {
        NodePlan {
            namespace: Some(self.namespaces[end].clone()),
            listen: Some(format!("{}:0", ADDRESSES[end])),
            ..NodePlan::default()
        }
    }

    /// The namespace of host a.
    pub(crate) fn end_a(&self) -> Option<String> {
        Some(self.namespaces[0].clone())
    }

    /// The namespaces of both hosts.
    pub(super) fn namespaces(&self) -> &[String; 2] {
        &self.namespaces
    }

    /// Limits the traffic in either direction to `rate`, in the syntax of tc(8).
    pub(super) fn shape(&self, rate: &str) {
        for namespace in &self.namespaces {
            let place = ["-n", namespace, "qdisc", "add", "dev", INTERFACE, "root"];
            let shaper = ["tbf", "rate", rate, "burst", "128kb", "latency", "50ms"];
            tool("tc", &[place.as_slice(), &shaper].concat());
        }
    }

    /// Unplugs the cable: nothing passes any more, in either direction.
    pub(crate) fn pull(&self) {
        ip(&["-n", &self.namespaces[1], "link", "set", INTERFACE, "down"]);
    }

    /// Plugs the cable in again.
    pub(crate) fn put_back(&self) {
        ip(&["-n", &self.namespaces[1], "link", "set", INTERFACE, "up"]);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        for namespace in &self.namespaces {
            // Deleting the first namespace may already delete the cable; the rest goes with the
            // second.
            let _ = Command::new("ip").args(["netns", "del", namespace]).status();
        }
    }
}

/// Runs ip(8), which must succeed.
pub(super) fn ip(arguments: &[&str]) {
    tool("ip", arguments);
}

/// Runs a tool of iproute2, and returns what it prints.
pub(super) fn tool(name: &str, arguments: &[&str]) -> String {
    let output = Command::new(name).args(arguments).output().expect("iproute2 is installed");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{name} {arguments:?}: {complaint}; these tests need root, or {SKIP}=1"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}
