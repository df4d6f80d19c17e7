//! The NUMA nodes of the host that guest memory comes from
//! (Documentation/admin-guide/mm/numa_memory_policy.rst).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::MemoryError;

/// One more than the highest node number that can be given.
const NODES_MAX: u32 = 64;
/// Lists the nodes of this host that have memory; missing on a kernel without NUMA.
const WITH_MEMORY: &str = "/sys/devices/system/node/has_memory";

/// Which nodes guest memory comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NumaPolicy {
    /// The kernel chooses: near the vCPU that touches the memory first.
    #[default]
    Default,
    /// From these nodes only.
    Bind(NodeSet),
    /// From these nodes in turn.
    Interleave(NodeSet),
    /// From this node as long as it has free memory.
    Preferred(u8),
}

/// A set of nodes 0 to 63.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSet(u64);

impl NodeSet {
    /// Returns a word with a bit for each node.
    pub(super) fn bits(self) -> u64 {
        self.0
    }

    fn nodes(self) -> impl Iterator<Item = u32> {
        (0..NODES_MAX).filter(move |node| self.0 >> node & 1 == 1)
    }
}

impl fmt::Display for NodeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut nodes = self.nodes().peekable();
        let mut separator = "";
        while let Some(first) = nodes.next() {
            let mut last = first;
            while let Some(next) = nodes.next_if(|next| *next == last + 1) {
                last = next;
            }
            write!(f, "{separator}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            separator = ",";
        }
        Ok(())
    }
}

impl FromStr for NodeSet {
    type Err = MemoryError;

    /// Reads a list as the kernel writes it: `0-1,3`.
    fn from_str(text: &str) -> Result<Self, MemoryError> {
        let wrong =
            || MemoryError::Word { text: text.to_owned(), wanted: "nodes like 0-1,3, up to 63" };
        let mut bits = 0u64;
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let first: u32 = first.parse().map_err(|_| wrong())?;
            let last: u32 = last.parse().map_err(|_| wrong())?;
            if first > last || last >= NODES_MAX {
                return Err(wrong());
            }
            (first..=last).for_each(|node| bits |= 1 << node);
        }
        Ok(Self(bits))
    }
}

impl fmt::Display for NumaPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Bind(nodes) => write!(f, "bind:{nodes}"),
            Self::Interleave(nodes) => write!(f, "interleave:{nodes}"),
            Self::Preferred(node) => write!(f, "preferred:{node}"),
        }
    }
}

impl FromStr for NumaPolicy {
    type Err = MemoryError;

    fn from_str(text: &str) -> Result<Self, MemoryError> {
        let wanted = "default, bind:NODES, interleave:NODES or preferred:NODE";
        let wrong = || MemoryError::Word { text: text.to_owned(), wanted };
        match text.split_once(':') {
            None if text == "default" => Ok(Self::Default),
            Some(("bind", nodes)) => Ok(Self::Bind(nodes.parse()?)),
            Some(("interleave", nodes)) => Ok(Self::Interleave(nodes.parse()?)),
            Some(("preferred", node)) => {
                let node = node.parse().ok().filter(|node| u32::from(*node) < NODES_MAX);
                node.map(Self::Preferred).ok_or_else(wrong)
            }
            _ => Err(wrong()),
        }
    }
}

impl NumaPolicy {
    /// Returns the nodes that the policy names.
    pub(crate) fn nodes(self) -> Option<NodeSet> {
        self.binding().map(|(_, nodes)| nodes)
    }

    /// Returns the kernel's mode (`MPOL_*` of `linux/mempolicy.h`) and the nodes; `None` for the
    /// default policy.
    pub(super) fn binding(self) -> Option<(libc::c_int, NodeSet)> {
        match self {
            Self::Default => None,
            Self::Bind(nodes) => Some((libc::MPOL_BIND, nodes)),
            Self::Interleave(nodes) => Some((libc::MPOL_INTERLEAVE, nodes)),
            Self::Preferred(node) => {
                let only = NodeSet(1u64.checked_shl(node.into()).unwrap_or(0));
                Some((libc::MPOL_PREFERRED, only))
            }
        }
    }

    /// Checks that the policy names a node: one from a peer might not.
    pub(super) fn check(self) -> Result<(), MemoryError> {
        match self.nodes() {
            Some(NodeSet(0)) => Err(MemoryError::Nodes),
            _ => Ok(()),
        }
    }

    /// Checks that this host has the nodes that the policy names.
    pub(super) fn check_host(self) -> Result<(), MemoryError> {
        let Some(wanted) = self.nodes() else { return Ok(()) };
        let text = std::fs::read_to_string(WITH_MEMORY).unwrap_or_else(|_| "0".to_owned());
        // A list that does not parse has nodes beyond 63: assume that the host has all of 0 to 63.
        let there = text.trim().parse().unwrap_or(NodeSet(!0));
        check_nodes(wanted, there)
    }
}

fn check_nodes(wanted: NodeSet, there: NodeSet) -> Result<(), MemoryError> {
    match wanted.nodes().find(|node| there.0 >> node & 1 == 0) {
        Some(node) => Err(MemoryError::NoSuchNode { node, there: there.to_string() }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_parse_and_display_alike() {
        for text in ["default", "bind:0", "bind:0-2,5", "interleave:0-1,3-63", "preferred:7"] {
            assert_eq!(text.parse::<NumaPolicy>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn invalid_policies_are_refused() {
        for text in [
            "",
            "bind",
            "bind:",
            "bind:x",
            "bind:2-1",
            "bind:64",
            "preferred:64",
            "preferred:0,1",
            "local:0",
        ] {
            assert!(text.parse::<NumaPolicy>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_that_is_not_there_is_named() {
        let there: NodeSet = "0-1".parse().unwrap();
        check_nodes("1".parse().unwrap(), there).unwrap();
        let error = check_nodes("0,3".parse().unwrap(), there).unwrap_err().to_string();
        assert!(error.contains("NUMA node 3") && error.contains("0-1"), "{error}");
        "bind:0".parse::<NumaPolicy>().unwrap().check_host().unwrap();
        assert!("bind:63".parse::<NumaPolicy>().unwrap().check_host().is_err());
    }

    #[test]
    fn no_nodes_from_a_peer_are_refused() {
        assert!(matches!(NumaPolicy::Bind(NodeSet(0)).check(), Err(MemoryError::Nodes)));
        assert!(matches!(NumaPolicy::Preferred(200).check(), Err(MemoryError::Nodes)));
    }
}
