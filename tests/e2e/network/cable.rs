//! Two hosts in network namespaces, and the cables between them.

use serde_json::Value;
use support::cable::Namespaces;
use support::{NodePlan, Pair};

/// Addresses of the two ends (TEST-NET-1, RFC 5737). Every cable uses the same ones, in namespaces
/// of its own.
const ADDRESSES: [&str; 2] = ["192.0.2.1", "192.0.2.2"];

/// The same of a second cable between the same namespaces (TEST-NET-3).
const SECOND_ADDRESSES: [&str; 2] = ["203.0.113.1", "203.0.113.2"];

/// Name of the interface in either namespace.
const INTERFACE: &str = "veth0";

/// The same of a second cable.
const SECOND_INTERFACE: &str = "veth1";

/// The interfaces of both cables.
const INTERFACES: [&str; 2] = [INTERFACE, SECOND_INTERFACE];

/// The environment variable that skips these tests.
const SKIP: &str = "LIGHTER_TEST_SKIP_NETWORK";

/// Two namespaces and the veth pair that joins them; deleted when dropped.
#[derive(Debug)]
pub(crate) struct Cable {
    namespaces: Namespaces,
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
        let namespaces = Namespaces::create(&format!("lighter-{}", &id[..8]));
        let cable = Self { namespaces: done(namespaces) };
        cable.join(INTERFACE, ADDRESSES);
        Some(cable)
    }

    /// Joins the namespaces by a veth pair with these addresses.
    fn join(&self, interface: &str, addresses: [&str; 2]) {
        done(self.namespaces.join(interface, addresses));
    }

    /// Lays a second cable beside this one.
    pub(super) fn double(&self) {
        self.join(SECOND_INTERFACE, SECOND_ADDRESSES);
    }

    /// Limits the traffic of both cables, in either direction, to these rates.
    pub(super) fn shape_both(&self, rates: [&str; 2]) {
        for (interface, rate) in INTERFACES.into_iter().zip(rates) {
            self.shape_one(interface, rate);
        }
    }

    /// The addresses of host a (0) or b (1) on both cables, as `--via` takes them.
    pub(super) fn via(end: usize) -> String {
        format!("{},{}", ADDRESSES[end], SECOND_ADDRESSES[end])
    }

    /// The addresses of host a (0) or b (1) on both cables.
    pub(super) fn addresses(end: usize) -> [&'static str; 2] {
        [ADDRESSES[end], SECOND_ADDRESSES[end]]
    }

    /// Bytes that host a (0) or b (1) has sent on either cable by now.
    pub(super) fn sent(&self, end: usize) -> [u64; 2] {
        INTERFACES.map(|interface| {
            let show = ["-n", self.namespaces()[end], "-s", "-j", "link", "show", "dev", interface];
            let shown: Value = serde_json::from_str(&tool("ip", &show)).expect("JSON");
            shown[0]["stats64"]["tx"]["bytes"].as_u64().expect("a count")
        })
    }

    /// Unplugs the first (0) or second (1) cable.
    pub(super) fn pull_one(&self, cable: usize) {
        ip(&["-n", self.namespaces()[1], "link", "set", INTERFACES[cable], "down"]);
    }

    /// Gives host a another address on the first cable instead of the one that it has.
    pub(super) fn renumber_a(&self, to: &str) {
        let here = ["-n", self.namespaces()[0], "address"];
        let from = format!("{}/24", ADDRESSES[0]);
        ip(&[&here[..], &["del", &from, "dev", INTERFACE]].concat());
        ip(&[&here[..], &["add", &format!("{to}/24"), "dev", INTERFACE]].concat());
    }

    /// The plan for starting the node of host a (end 0) or b (end 1), reachable on both cables.
    pub(super) fn node_plan_of_both(&self, end: usize) -> NodePlan {
        NodePlan { listen: Some("0.0.0.0:0".to_owned()), ..self.node_plan(end) }
    }

    /// Two hosts without nodes, with certificates for the ends of the cable.
    pub(crate) fn hosts(&self) -> Pair {
        Pair::with_names(["host-a", ADDRESSES[0]], ["host-b", ADDRESSES[1]])
    }

    /// The plan for starting the node of host a (end 0) or b (end 1) in its namespace.
    pub(crate) fn node_plan(&self, end: usize) -> NodePlan {
        NodePlan {
            namespace: Some(self.namespaces()[end].to_owned()),
            listen: Some(format!("{}:0", ADDRESSES[end])),
            ..NodePlan::default()
        }
    }

    /// The namespace of host a.
    pub(crate) fn end_a(&self) -> Option<String> {
        Some(self.namespaces()[0].to_owned())
    }

    /// The namespaces of both hosts.
    pub(super) fn namespaces(&self) -> [&str; 2] {
        self.namespaces.names()
    }

    /// Limits the traffic in either direction to `rate`, in the syntax of tc(8).
    pub(super) fn shape(&self, rate: &str) {
        self.shape_one(INTERFACE, rate);
    }

    fn shape_one(&self, interface: &str, rate: &str) {
        for namespace in self.namespaces() {
            let place = ["-n", namespace, "qdisc", "add", "dev", interface, "root"];
            let shaper = ["tbf", "rate", rate, "burst", "128kb", "latency", "50ms"];
            tool("tc", &[place.as_slice(), &shaper].concat());
        }
    }

    /// Unplugs the cable: nothing passes any more, in either direction.
    pub(crate) fn pull(&self) {
        ip(&["-n", self.namespaces()[1], "link", "set", INTERFACE, "down"]);
    }

    /// Plugs the cable in again.
    pub(crate) fn put_back(&self) {
        ip(&["-n", self.namespaces()[1], "link", "set", INTERFACE, "up"]);
    }
}

/// Runs ip(8), which must succeed.
pub(super) fn ip(arguments: &[&str]) {
    tool("ip", arguments);
}

/// Runs a tool of iproute2, which must succeed, and returns what it prints.
pub(super) fn tool(name: &str, arguments: &[&str]) -> String {
    done(support::cable::tool(name, arguments))
}

/// Returns what a tool has done; tells what these tests need if it failed.
#[track_caller]
pub(super) fn done<T>(outcome: anyhow::Result<T>) -> T {
    outcome.unwrap_or_else(|error| panic!("{error:#}; these tests need root, or {SKIP}=1"))
}
