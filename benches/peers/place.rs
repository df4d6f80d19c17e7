//! Where the two hosts of a contest are: both on this machine's loopback device, or each in a
//! network namespace of its own, with a cable between them, and in that a [`Wire`] if it is long.

use std::process::Command;

use anyhow::{Context, Result};

use super::link::{Cable, Link};
use super::wire::Wire;
use support::cable::{Namespaces, tool};
use support::in_namespace;

/// Addresses of the two ends of each cable (TEST-NET-2 and 3, RFC 5737).
const ADDRESSES: [[&str; 2]; 2] =
    [["198.51.100.1", "198.51.100.2"], ["203.0.113.1", "203.0.113.2"]];
/// The device at each end of each cable.
const DEVICES: [&str; 2] = ["cable", "cable-2"];

/// Where a host is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// Its IP addresses, one on each cable that there may be.
    pub(crate) addresses: [&'static str; 2],
    /// Its network namespace, if not this process's own.
    pub(crate) namespace: Option<String>,
}

impl Place {
    /// Its IP address on the first cable.
    pub(crate) const fn address(&self) -> &'static str {
        self.addresses[0]
    }

    /// The IP address on which a program listens that is reached on every cable.
    pub(crate) const fn listens_on(&self) -> &'static str {
        if self.namespace.is_some() { "0.0.0.0" } else { self.address() }
    }

    /// Returns the command, moved to this place.
    pub(crate) fn within(&self, command: Command) -> Command {
        in_namespace(command, self.namespace.as_deref())
    }
}

/// The places of two hosts. What was made for them is removed when this is dropped.
pub(crate) struct Places {
    /// What the cables lead over, if they are long ones.
    wires: Vec<Wire>,
    namespaces: Option<Namespaces>,
}

impl Places {
    /// Makes the places of two hosts that `link` connects.
    ///
    /// # Errors
    /// If ip(8) is missing, or this process is not root.
    pub(crate) fn make(link: Link) -> Result<Self> {
        if link == Link::Loopback {
            return Ok(Self { wires: Vec::new(), namespaces: None });
        }
        let namespaces = Namespaces::create(&format!("lighter-peers-{}", std::process::id()))?;
        namespaces.join(DEVICES[0], ADDRESSES[0])?;
        Ok(Self { wires: Vec::new(), namespaces: Some(namespaces) })
    }

    /// The two places.
    pub(crate) fn both(&self) -> [Place; 2] {
        [0, 1].map(|end| match &self.namespaces {
            None => Place { addresses: ["127.0.0.1"; 2], namespace: None },
            Some(namespaces) => Place {
                addresses: ADDRESSES.map(|cable| cable[end]),
                namespace: Some(namespaces.names()[end].to_owned()),
            },
        })
    }

    /// Connects the places by other cables.
    ///
    /// # Errors
    /// If ip(8) or tc(8) is missing, or the kernel lacks `sch_tbf`.
    pub(crate) fn connect(&mut self, cable: &Cable) -> Result<()> {
        let Some(namespaces) = &self.namespaces else { return Ok(()) };
        self.wires.clear();
        for device in DEVICES {
            namespaces.cut(device)?;
        }
        for number in 0..cable.count {
            if cable.is_long() {
                self.wires.push(lead_over_wire(namespaces, number, *cable)?);
            } else {
                join(namespaces, number, cable)?;
            }
        }
        Ok(())
    }
}

/// Lays the long cable of this number.
fn lead_over_wire(namespaces: &Namespaces, number: usize, cable: Cable) -> Result<Wire> {
    let device = DEVICES[number];
    let outside = ["a", "b"].map(|end| format!("wire{number}-{}{end}", std::process::id()));
    let outside = [outside[0].as_str(), &outside[1]];
    namespaces.lead_out(device, ADDRESSES[number], outside)?;
    for namespace in namespaces.names() {
        // A wire takes and loses single packets.
        tool("ip", &["-n", namespace, "link", "set", device, "gso_max_segs", "1"])?;
    }
    Wire::between(outside, cable)
}

/// Lays the short cable of this number.
fn join(namespaces: &Namespaces, number: usize, cable: &Cable) -> Result<()> {
    let device = DEVICES[number];
    namespaces.join(device, ADDRESSES[number])?;
    for namespace in namespaces.names() {
        let add = ["-n", namespace, "qdisc", "add", "dev", device, "root"];
        let queue = cable.queue();
        let queue = queue.split(' ');
        tool("tc", &add.into_iter().chain(queue).collect::<Vec<_>>())
            .context("a limited rate needs sch_tbf")?;
    }
    Ok(())
}
