//! What a guest sees of a device of the host, without such a device, for the fuzz targets in
//! `fuzz/`.

use std::cell::Cell;
use std::ops::Range;

use super::view::View;
use super::windows;
use crate::pci::CONFIG_BYTES;

/// A guest's view of a device whose configuration space has any content.
#[derive(Debug)]
pub struct SeenDevice {
    view: View,
    /// Bytes that have come from the device or gone to it.
    passed_on: Cell<u64>,
}

impl SeenDevice {
    /// Returns the view of a device with this configuration space, whose BARs have so many bytes.
    ///
    /// # Errors
    /// If a guest cannot have such a device; the text says why.
    pub fn new(host: &[u8; CONFIG_BYTES], bars: [u64; 6]) -> Result<Self, String> {
        Ok(Self { view: View::new(host, bars)?, passed_on: Cell::new(0) })
    }

    /// Reads the configuration space as a vCPU.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        self.view.read(offset, data, |_, own| {
            own.fill(0xdd);
            self.passed_on.set(self.passed_on.get() + own.len() as u64);
        });
    }

    /// Writes the configuration space as a vCPU.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        self.view.write(offset, data, |at, own| {
            assert!(at >= 0x40 && at + own.len() <= CONFIG_BYTES, "{at:#x} of the device");
            self.passed_on.set(self.passed_on.get() + own.len() as u64);
        });
    }

    /// Gives the BARs addresses, as firmware does.
    pub fn power_on(&mut self) {
        let assigned = windows::assign(&[self.view.bars().to_vec()]);
        assigned.iter().for_each(|addresses| self.view.power_on(addresses));
    }

    /// Returns the addresses that the device decodes.
    pub fn windows(&self) -> Vec<Range<u64>> {
        let bars = self.view.bars().iter();
        let window = |start: u64, bytes: u64| Some(start..start.checked_add(bytes)?);
        bars.filter_map(|bar| window(self.view.address(bar)?, bar.bytes)).collect()
    }

    /// Returns the device's own command register.
    pub fn command(&self) -> u16 {
        self.view.command()
    }

    /// Returns how many bytes have come from the device or gone to it.
    pub fn passed_on(&self) -> u64 {
        self.passed_on.get()
    }
}
