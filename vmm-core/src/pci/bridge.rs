//! The host bridge, which is function 00:00.0, and the two ways to configuration space: a window of
//! memory (ECAM) and a pair of ports (PCI Local Bus Specification 3.0, 3.2.2.3.2).

use std::sync::atomic::{AtomicU32, Ordering};

use super::config::{ConfigSpace, Identity};
use super::{CONFIG_PORT, ECAM};

/// First of the four ports through which the selected register is read and written.
const DATA_PORT: u16 = CONFIG_PORT + 4;
/// Last of these ports.
const DATA_PORT_LAST: u16 = DATA_PORT + 3;
/// Bit of the address port: the data ports are connected.
const ENABLE: u32 = 1 << 31;
/// Bits of the address port that exist: the enable bit, bus, device, function and register.
const ADDRESS_BITS: u32 = ENABLE | 0x00ff_fffc;

/// The bridge of Cloud Hypervisor, by which its firmware recognises the machine.
const BRIDGE: Identity =
    Identity { vendor: 0x8086, device: 0x0d57, revision: 0, class: [0x06, 0x00, 0x00] };

/// A place in configuration space: function 0 of a device of bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ConfigAddress {
    /// Device number.
    pub(crate) device: usize,
    /// Offset in the configuration space of its function 0.
    pub(crate) offset: usize,
}

impl ConfigAddress {
    /// Takes an address of ECAM apart: bus, device, function and register have 8, 5, 3 and 12 bits.
    /// There is one bus, and a device has one function.
    fn new(bus: u64, device: u64, function: u64, offset: u64) -> Option<Self> {
        (bus == 0 && function == 0)
            .then_some(Self { device: device as usize, offset: offset as usize })
    }
}

/// Where an access leads that is about configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The port that selects a register.
    AddressPort,
    /// A function's register, which may not exist.
    Register(ConfigAddress),
    /// Nothing: the access reads as ones.
    Nothing,
}

/// The host bridge; see the module.
#[derive(Debug)]
pub(crate) struct HostBridge {
    config: ConfigSpace,
    address: AtomicU32,
}

impl HostBridge {
    /// Creates the bridge after power-on.
    pub(crate) fn new() -> Self {
        Self { config: ConfigSpace::new(BRIDGE), address: AtomicU32::new(0) }
    }

    /// The bridge's own configuration space, of which nothing can be written.
    pub(crate) fn config(&self) -> &ConfigSpace {
        &self.config
    }

    /// Returns where an access to memory at `address` leads; `None` outside of ECAM.
    pub(crate) fn at_address(&self, address: u64) -> Option<Target> {
        let inside = ECAM.contains(&address).then(|| address - ECAM.start)?;
        let place =
            ConfigAddress::new(inside >> 20, inside >> 15 & 31, inside >> 12 & 7, inside & 0xfff);
        Some(place.map_or(Target::Nothing, Target::Register))
    }

    /// Returns where an access to `bytes` ports from `port` on leads; `None` if these ports are not
    /// about configuration space. The reset register lies between them, at 0xcf9: only 32 bits at
    /// once reach the address port.
    pub(crate) fn at_port(&self, port: u16, bytes: usize) -> Option<Target> {
        match port {
            CONFIG_PORT if bytes == 4 => Some(Target::AddressPort),
            DATA_PORT..=DATA_PORT_LAST => Some(self.selected(port - DATA_PORT, bytes)),
            _ => None,
        }
    }

    fn selected(&self, byte: u16, bytes: usize) -> Target {
        let address = u64::from(self.address());
        let within = matches!(bytes, 1 | 2 | 4) && usize::from(byte) + bytes <= 4;
        if !within || address & u64::from(ENABLE) == 0 {
            return Target::Nothing;
        }
        let offset = address & 0xfc | u64::from(byte);
        let place =
            ConfigAddress::new(address >> 16 & 0xff, address >> 11 & 31, address >> 8 & 7, offset);
        place.map_or(Target::Nothing, Target::Register)
    }

    /// Returns what was last written to the address port.
    pub(crate) fn address(&self) -> u32 {
        self.address.load(Ordering::Acquire)
    }

    /// Writes the address port; bits that do not exist stay 0.
    pub(crate) fn set_address(&self, address: u32) {
        self.address.store(address & ADDRESS_BITS, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register(device: usize, offset: usize) -> Option<Target> {
        Some(Target::Register(ConfigAddress { device, offset }))
    }

    #[test]
    fn ecam_has_one_bus_and_one_function_each() {
        let bridge = HostBridge::new();
        assert_eq!(bridge.at_address(ECAM.start), register(0, 0));
        assert_eq!(bridge.at_address(ECAM.start + (3 << 15) + 0x104), register(3, 0x104));
        assert_eq!(bridge.at_address(ECAM.end - 0x7001), register(31, 0xfff));
        assert_eq!(bridge.at_address(ECAM.end - 1), Some(Target::Nothing), "function 7");
        assert_eq!(bridge.at_address(ECAM.start + (1 << 12)), Some(Target::Nothing), "function 1");
        for address in [0, ECAM.start - 1, ECAM.end, u64::MAX] {
            assert_eq!(bridge.at_address(address), None, "{address:#x}");
        }
    }

    #[test]
    fn the_ports_reach_the_same_registers() {
        let bridge = HostBridge::new();
        assert_eq!(bridge.at_port(0xcfc, 4), Some(Target::Nothing), "nothing is selected");
        assert_eq!(bridge.at_port(0xcf8, 4), Some(Target::AddressPort));
        bridge.set_address(0xffff_ffff);
        assert_eq!(bridge.address(), 0x80ff_fffc);
        assert_eq!(bridge.at_port(0xcfc, 4), Some(Target::Nothing), "bus 255");
        bridge.set_address(0x8000_0000 | 5 << 11 | 0x42);
        for (port, bytes, offset) in
            [(0xcfc, 4, 0x40), (0xcfe, 2, 0x42), (0xcff, 1, 0x43), (0xcfd, 2, 0x41)]
        {
            assert_eq!(bridge.at_port(port, bytes), register(5, offset), "{port:#x}");
        }
        bridge.set_address(5 << 11);
        assert_eq!(bridge.at_port(0xcfc, 4), Some(Target::Nothing), "not enabled");
    }

    #[test]
    fn every_other_width_and_port_is_nothing_or_someone_elses() {
        let bridge = HostBridge::new();
        bridge.set_address(0x8000_0000);
        for port in 0xcf0..0xd08 {
            for bytes in 0..=16 {
                let expected = match (port, bytes) {
                    (0xcf8, 4) => Some(Target::AddressPort),
                    (0xcfc..=0xcff, 1 | 2 | 4) if port + bytes <= 0xd00 => {
                        register(0, usize::from(port - 0xcfc))
                    }
                    (0xcfc..=0xcff, _) => Some(Target::Nothing),
                    _ => None,
                };
                assert_eq!(bridge.at_port(port, bytes.into()), expected, "{port:#x}, {bytes}");
            }
        }
    }

    #[test]
    fn the_bridge_is_one() {
        let bridge = HostBridge::new();
        assert_eq!(bridge.config().double_word(0), 0x0d57_8086);
        assert_eq!(bridge.config().double_word(8), 0x0600_0000);
    }
}
