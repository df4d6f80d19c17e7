//! Where the two hosts of a contest are: both on this machine's loopback device, or each in a
//! network namespace of its own, with a cable between them.

use std::process::Command;

use anyhow::{Context, Result};

use super::link::{Cable, Link};
use support::cable::{Namespaces, tool};
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
    namespaces: Option<Namespaces>,
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
        let namespaces = Namespaces::create(&format!("lighter-peers-{}", std::process::id()))?;
        namespaces.join(DEVICE, ADDRESSES)?;
        Ok(Self { namespaces: Some(namespaces) })
    }

    /// The two places.
    pub(crate) fn both(&self) -> [Place; 2] {
        [0, 1].map(|end| match &self.namespaces {
            None => Place { address: "127.0.0.1", namespace: None },
            Some(namespaces) => Place {
                address: ADDRESSES[end],
                namespace: Some(namespaces.names()[end].to_owned()),
            },
        })
    }

    /// Makes the cable like `cable`.
    ///
    /// # Errors
    /// If tc(8) is missing, or the kernel lacks a queue.
    pub(crate) fn shape(&self, cable: &Cable) -> Result<()> {
        for namespace in self.namespaces.iter().flat_map(Namespaces::names) {
            // Fails if there is none yet.
            let _ = tool("tc", &["-n", namespace, "qdisc", "del", "dev", DEVICE, "root"]);
            for queue in cable.queues() {
                let add = ["-n", namespace, "qdisc", "add", "dev", DEVICE];
                let queue = queue.iter().map(String::as_str);
                let arguments: Vec<&str> = add.into_iter().chain(queue).collect();
                tool("tc", &arguments).context(
                    "a limited rate needs sch_tbf, a round trip or a loss sch_netem too",
                )?;
            }
        }
        Ok(())
    }
}
