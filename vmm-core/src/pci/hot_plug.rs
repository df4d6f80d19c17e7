//! The registers through which a guest's ACPI code learns that the bus has changed, and lets go of
//! a device. A bit stands for the device of that number.
//!
//! | offset | register |
//! |---|---|
//! | 0 | devices that were inserted since the register was last read |
//! | 4 | devices that the guest was asked to let go of since the register was last read |
//! | 8 | written: devices that the guest has let go of |
//!
//! They are those of QEMU (docs/specs/acpi_pci_hotplug.rst), as far as one bus needs them; but QEMU
//! repeats the second one until the guest has let go. Linux would let go of the device once for
//! each time that it is notified, and of the next one in the slot if that comes quickly.

use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};

use super::CONFIG_PORT;

/// First of the ports of these registers.
pub(crate) const HOT_PLUG_PORT: u16 = 0xae00;
/// Number of these ports.
pub(crate) const HOT_PLUG_PORTS: u8 = 12;
const INSERTED: u16 = HOT_PLUG_PORT;
const ASKED: u16 = HOT_PLUG_PORT + 4;
const EJECT: u16 = HOT_PLUG_PORT + 8;

const _: () = assert!(HOT_PLUG_PORT > CONFIG_PORT + 8);

/// Saved registers of hot-plug; a bit stands for the device of that number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotPlugState {
    /// Devices that were inserted, which the guest has not read yet.
    pub inserted: u32,
    /// Devices that the guest is asked to let go of, which it has not read yet.
    pub asked: u32,
    /// Devices that the guest is asked to let go of.
    pub leaving: u32,
    /// Devices that the guest has let go of, which are not there for it any more.
    pub ejected: u32,
}

/// The registers; see the module.
#[derive(Debug, Default)]
pub(crate) struct HotPlug {
    inserted: AtomicU32,
    asked: AtomicU32,
    leaving: AtomicU32,
    ejected: AtomicU32,
}

impl HotPlug {
    /// Handles a read of ports; returns false if they are others. Only whole registers can be read.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) -> bool {
        if !is_one_of(port) {
            return false;
        }
        let value = match (port, data.len()) {
            (INSERTED, 4) => self.inserted.swap(0, Ordering::AcqRel),
            (ASKED, 4) => self.asked.swap(0, Ordering::AcqRel),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(byte, own)| *byte = own);
        true
    }

    /// Returns the devices that a write of ports lets go of; `None` if the ports are others. Only a
    /// whole register can be written.
    pub(crate) fn written(port: u16, data: &[u8]) -> Option<u32> {
        let value = match (port, data.try_into()) {
            (EJECT, Ok(bytes)) => u32::from_le_bytes(bytes),
            _ => 0,
        };
        is_one_of(port).then_some(value)
    }

    /// Records that device number `device` was inserted.
    pub(crate) fn insert(&self, device: usize) {
        self.inserted.fetch_or(1 << device, Ordering::AcqRel);
    }

    /// Asks the guest to let go of device number `device`.
    pub(crate) fn request_ejection(&self, device: usize) {
        self.leaving.fetch_or(1 << device, Ordering::AcqRel);
        self.asked.fetch_or(1 << device, Ordering::AcqRel);
    }

    /// Takes that request back; a guest that has read of it may let go all the same.
    pub(crate) fn withdraw_request(&self, device: usize) {
        clear([&self.asked, &self.leaving], device);
    }

    /// Records that the guest has let go of device number `device`.
    pub(crate) fn eject(&self, device: usize) {
        clear([&self.inserted, &self.asked, &self.leaving], device);
        self.ejected.fetch_or(1 << device, Ordering::AcqRel);
    }

    /// Records that device number `device` is gone, and its number free.
    pub(crate) fn forget(&self, device: usize) {
        clear([&self.inserted, &self.asked, &self.leaving, &self.ejected], device);
    }

    /// Returns whether the guest has read of all that it was told.
    pub(crate) fn is_read(&self) -> bool {
        [&self.inserted, &self.asked].iter().all(|register| register.load(Ordering::Acquire) == 0)
    }

    /// Returns whether the guest has let go of device number `device`.
    pub(crate) fn has_ejected(&self, device: usize) -> bool {
        self.ejected.load(Ordering::Acquire) >> device & 1 == 1
    }

    /// Returns all registers.
    pub(crate) fn save(&self) -> HotPlugState {
        HotPlugState {
            inserted: self.inserted.load(Ordering::Acquire),
            asked: self.asked.load(Ordering::Acquire),
            leaving: self.leaving.load(Ordering::Acquire),
            ejected: self.ejected.load(Ordering::Acquire),
        }
    }

    /// Replaces all registers.
    pub(crate) fn load(&self, state: HotPlugState) {
        self.inserted.store(state.inserted, Ordering::Release);
        self.asked.store(state.asked, Ordering::Release);
        self.leaving.store(state.leaving, Ordering::Release);
        self.ejected.store(state.ejected, Ordering::Release);
    }
}

fn clear<const N: usize>(registers: [&AtomicU32; N], device: usize) {
    for register in registers {
        register.fetch_and(!(1 << device), Ordering::AcqRel);
    }
}

fn is_one_of(port: u16) -> bool {
    (HOT_PLUG_PORT..HOT_PLUG_PORT + u16::from(HOT_PLUG_PORTS)).contains(&port)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(registers: &HotPlug, port: u16) -> u32 {
        let mut data = [0xff; 4];
        assert!(registers.read(port, &mut data));
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_guest_reads_once_of_what_was_inserted_and_of_what_is_to_leave() {
        let registers = HotPlug::default();
        registers.insert(5);
        registers.insert(31);
        registers.request_ejection(2);
        registers.request_ejection(3);
        assert_eq!(read(&registers, 0xae00), 1 << 5 | 1 << 31);
        assert!(!registers.is_read());
        assert_eq!([read(&registers, 0xae04), read(&registers, 0xae04)], [1 << 2 | 1 << 3, 0]);
        assert!(registers.is_read() && read(&registers, 0xae00) == 0);
        assert_eq!(registers.save().leaving, 1 << 2 | 1 << 3);
        registers.withdraw_request(3);
        registers.eject(2);
        assert_eq!(registers.save(), HotPlugState { ejected: 1 << 2, ..HotPlugState::default() });
        assert!(registers.has_ejected(2) && !registers.has_ejected(5));
        let other = HotPlug::default();
        other.load(registers.save());
        assert!(other.has_ejected(2));
        other.forget(2);
        assert_eq!(other.save(), HotPlugState::default());
    }

    #[test]
    fn parts_of_registers_and_other_ports_do_nothing() {
        let registers = HotPlug::default();
        registers.insert(1);
        for port in 0xae00..0xae0c {
            for bytes in (0..9).filter(|bytes| *bytes != 4 || port % 4 != 0) {
                let mut data = vec![0xff; bytes];
                assert!(registers.read(port, &mut data));
                assert_eq!(data, vec![0; bytes], "{port:#x}");
                assert_eq!(HotPlug::written(port, &vec![0xff; bytes]), Some(0), "{port:#x}");
            }
        }
        assert_eq!(HotPlug::written(0xae08, &[4, 0, 0, 0x80]), Some(1 << 2 | 1 << 31));
        assert_eq!(HotPlug::written(0xae04, &[4, 0, 0, 0x80]), Some(0));
        for port in [0xadff, 0xae0c] {
            assert!(
                !registers.read(port, &mut [0; 4]) && HotPlug::written(port, &[0; 4]).is_none()
            );
        }
        assert_eq!(read(&registers, 0xae00), 2, "it was never read");
    }
}
