//! What is saved of PCI: the port that selects a register, and each function.

use serde::{Deserialize, Serialize};

use crate::pci::{HotPlugState, MsixState};

/// Saved state of what only a machine with a PCI bus has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// What was last written to the port that selects a register of configuration space.
    pub config_address: u32,
    /// The functions behind the host bridge: one for each virtio device, in their order.
    pub functions: Vec<FunctionState>,
    /// The selected register of the CMOS.
    pub cmos_index: u8,
    /// The registers of hot-plug.
    #[serde(skip)]
    pub hot_plug: HotPlugState,
}

/// Saved state of a function, beside its device's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionState {
    /// Its configuration space, with its address in memory.
    pub config: Vec<u8>,
    /// Its interrupts.
    pub interrupts: Interrupts,
}

/// Saved interrupts of a function.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interrupts {
    /// The table of messages.
    pub msix: MsixState,
    /// The vector for changes of the configuration; 0xffff for none.
    pub config_vector: u16,
    /// The vector of each queue; 0xffff for none.
    pub queue_vectors: Vec<u16>,
}
