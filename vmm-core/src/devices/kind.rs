//! The kinds of machines.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::mmio;
use crate::pci;

/// How a guest reaches its virtio devices. A guest keeps its kind for life.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MachineKind {
    /// Each device has a page of registers and an interrupt line: virtio-mmio.
    #[default]
    Mmio,
    /// The devices are functions of a PCI Express bus, with MSI-X: virtio-pci.
    Pci,
}

impl MachineKind {
    /// Returns how many devices a guest can have.
    pub fn devices_max(self) -> usize {
        match self {
            Self::Mmio => mmio::SLOTS_MAX,
            Self::Pci => pci::FUNCTIONS_MAX,
        }
    }
}

impl fmt::Display for MachineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mmio => "mmio",
            Self::Pci => "pci",
        })
    }
}

impl FromStr for MachineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = [Self::Mmio, Self::Pci].into_iter().find(|kind| kind.to_string() == text);
        known.ok_or_else(|| format!("no machine is called {text:?}: use mmio or pci"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_is_read_as_it_is_written() {
        for kind in [MachineKind::Mmio, MachineKind::Pci] {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let refused = "PCI".parse::<MachineKind>().unwrap_err();
        assert_eq!(refused, "no machine is called \"PCI\": use mmio or pci");
    }
}
