//! Where the two hosts of a contest are: both on this machine's loopback device, or each in a
//! network namespace of its own, with a cable between them, and in that a [`Wire`] if it is long.

use std::process::Command;

use anyhow::{Context, Result};

use super::link::{Cable, Link};
use super::wire::Wire;
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
    /// What the cable leads over, if it is a long one.
    wire: Option<Wire>,
    namespaces: Option<Namespaces>,
}

impl Places {
    /// Makes the places of two hosts that `link` connects.
    ///
    /// # Errors
    /// If ip(8) is missing, or this process is not root.
    pub(crate) fn make(link: Link) -> Result<Self> {
        if link == Link::Loopback {
            return Ok(Self { wire: None, namespaces: None });
        }
        let namespaces = Namespaces::create(&format!("lighter-peers-{}", std::process::id()))?;
        namespaces.join(DEVICE, ADDRESSES)?;
        Ok(Self { wire: None, namespaces: Some(namespaces) })
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

    /// Connects the places by another cable.
    ///
    /// # Errors
    /// If ip(8) or tc(8) is missing, or the kernel lacks `sch_tbf`.
    pub(crate) fn connect(&mut self, cable: &Cable) -> Result<()> {
        let Some(namespaces) = &self.namespaces else { return Ok(()) };
        self.wire = None;
        namespaces.cut(DEVICE)?;
        if cable.is_long() {
            let outside = ["a", "b"].map(|end| format!("wire-{}{end}", std::process::id()));
            let outside = [outside[0].as_str(), &outside[1]];
            namespaces.lead_out(DEVICE, ADDRESSES, outside)?;
            for namespace in namespaces.names() {
                // A wire takes and loses single packets.
                tool("ip", &["-n", namespace, "link", "set", DEVICE, "gso_max_segs", "1"])?;
            }
            self.wire = Some(Wire::between(outside, *cable)?);
            return Ok(());
        }
        namespaces.join(DEVICE, ADDRESSES)?;
        for namespace in namespaces.names() {
            let add = ["-n", namespace, "qdisc", "add", "dev", DEVICE, "root"];
            let queue = cable.queue();
            let queue = queue.split(' ');
            tool("tc", &add.into_iter().chain(queue).collect::<Vec<_>>())
                .context("a limited rate needs sch_tbf")?;
        }
        Ok(())
    }
}
