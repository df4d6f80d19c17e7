//! What a vCPU reads and writes outside RAM, for the fuzz targets in `fuzz/`.

use super::Vm;

impl Vm {
    /// Reads ports of the PCI bus as a vCPU; returns false if they are not the bus's.
    pub fn read_bus_port(&self, port: u16, data: &mut [u8]) -> bool {
        self.machine.bus.read_port(port, data)
    }

    /// Writes ports of the PCI bus as a vCPU.
    pub fn write_bus_port(&self, port: u16, data: &[u8]) {
        self.machine.bus.write_port(port, data);
    }

    /// Reads the devices' registers or configuration spaces as a vCPU.
    pub fn read_bus(&self, address: u64, data: &mut [u8]) {
        self.machine.bus.read(address, data);
    }

    /// Writes the devices' registers or configuration spaces as a vCPU.
    pub fn write_bus(&self, address: u64, data: &[u8]) {
        self.machine.bus.write(address, data);
    }
}
