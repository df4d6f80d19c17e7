//! Where the two hosts of a contest are: both on this machine's loopback device, or each in a
//! network namespace of its own, with a cable between them.

use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::link::{Cable, Link};
use support::in_namespace;

/// Addresses of the two ends of the cable (TEST-NET-2, RFC 5737).
const ADDRESSES: [&str; 2] = ["198.51.100.1", "198.51.100.2"];
/// The device at each end.
const DEVICE: &str = "cable";

/// Where a host is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Its IP address.
    pub(crate) address: &'static str,
    /// Its network namespace, if not this process's own.
    pub(crate) namespace: Option<String>,
}

impl Place {
    /// Returns the command, moved to this place.
    pub(crate) fn within(&self, command: Command) -> Command {
        in_namespace(command, self.namespace.as_deref())
    }
}

/// The places of two hosts. What was made for them is removed when this is dropped.
pub(crate) struct Places {
    namespaces: Option<[String; 2]>,
}

impl Places {
    /// Makes the places of two hosts that `link` connects.
    ///
    /// # Errors
    /// If ip(8) is missing, or this process is not root.
    pub(crate) fn make(link: Link) -> Result<Self> {
        if link == Link::Loopback {
            return Ok(Self { namespaces: None });
        }
        let names = ["a", "b"].map(|end| format!("lighter-peers-{}{end}", std::process::id()));
        let [a, b] = &names;
        run("ip", &["netns", "add", a])?;
        let places = Self { namespaces: Some(names.clone()) };
        run("ip", &["netns", "add", b])?;
        run(
            "ip",
            &["-n", a, "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", b],
        )?;
        for (name, address) in names.iter().zip(ADDRESSES) {
            let address = format!("{address}/24");
            run("ip", &["-n", name, "address", "add", &address, "dev", DEVICE])?;
            for device in ["lo", DEVICE] {
                run("ip", &["-n", name, "link", "set", device, "up"])?;
            }
        }
        Ok(places)
    }

    /// The two places.
    pub(crate) fn both(&self) -> [Place; 2] {
        match self.namespaces.clone() {
            None => [0, 1].map(|_| Place { address: "127.0.0.1", namespace: None }),
            Some([a, b]) => [(a, ADDRESSES[0]), (b, ADDRESSES[1])]
                .map(|(namespace, address)| Place { address, namespace: Some(namespace) }),
        }
    }

    /// Makes the cable like `cable`.
    ///
    /// # Errors
    /// If tc(8) is missing, or the kernel lacks a queue.
    pub(crate) fn shape(&self, cable: &Cable) -> Result<()> {
        for namespace in self.namespaces.iter().flatten() {
            // Fails if there is none yet.
            let _ = run("tc", &["-n", namespace, "qdisc", "del", "dev", DEVICE, "root"]);
            for queue in cable.queues() {
                let add = ["-n", namespace, "qdisc", "add", "dev", DEVICE];
                let queue = queue.iter().map(String::as_str);
                let arguments: Vec<&str> = add.into_iter().chain(queue).collect();
                run("tc", &arguments).context(
                    "a limited rate needs sch_tbf, a round trip or a loss sch_netem too",
                )?;
            }
        }
        Ok(())
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        for namespace in self.namespaces.iter().flatten() {
            if let Err(error) = run("ip", &["netns", "del", namespace]) {
                eprintln!("a namespace is left: {error:#}");
            }
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("{program}(8) is needed"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {complaint}", arguments.join(" "));
    Ok(())
}
