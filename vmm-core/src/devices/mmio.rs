//! Addresses and interrupt lines of the virtio devices.
//!
//! Device `n` of a guest has a page of registers at [`WINDOW_START`]` + n * 4 KiB`, in the hole
//! below 4 GiB, and its own edge-triggered interrupt line. Both depend on `n` alone, so they are
//! the same on every host. The rest of the hole reads as ones.

use crate::memory::LOW_RAM_MAX;

/// First address of the window.
pub const WINDOW_START: u64 = 0xd000_0000;
/// Size of a device's page of registers, in bytes.
pub const SLOT_BYTES: u64 = 4096;
/// Most devices that a guest may have.
pub const SLOTS_MAX: usize = 12;
/// The interrupt lines, by slot: the upper eight pins of the I/O APIC, which no legacy device uses,
/// then ISA interrupts that no device of these virtual machines uses.
const GSIS: [u32; SLOTS_MAX] = [16, 17, 18, 19, 20, 21, 22, 23, 5, 6, 10, 11];

const _: () = assert!(WINDOW_START >= LOW_RAM_MAX);
const _: () = assert!(WINDOW_START + SLOT_BYTES * SLOTS_MAX as u64 <= 0xfec0_0000);

/// What a driver needs to find a device: goes into the ACPI tables and the kernel's command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// Guest-physical address of the page of registers.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u64,
    /// The interrupt line: a pin of the I/O APIC, edge-triggered, active high.
    pub gsi: u32,
}

/// Returns the slots of a guest's first `devices` devices, in order; at most [`SLOTS_MAX`].
pub fn slots(devices: usize) -> impl Iterator<Item = Slot> {
    (0..).zip(GSIS).take(devices).map(|(index, gsi): (u64, u32)| Slot {
        address: WINDOW_START + index * SLOT_BYTES,
        bytes: SLOT_BYTES,
        gsi,
    })
}

/// Returns the arguments that announce the devices to a kernel without ACPI (`virtio_mmio.device=`
/// of Documentation/admin-guide/kernel-parameters.txt).
pub(crate) fn kernel_arguments(devices: &[Slot]) -> String {
    let argument = |slot: &Slot| format!(" virtio_mmio.device=4K@{:#x}:{}", slot.address, slot.gsi);
    devices.iter().map(argument).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_slot_has_an_address_and_a_line_of_its_own() {
        let slots: Vec<Slot> = slots(SLOTS_MAX).collect();
        assert_eq!(slots.len(), SLOTS_MAX);
        for (index, slot) in (0..).zip(&slots) {
            assert_eq!((slot.address, slot.bytes), (0xd000_0000 + index * 0x1000, 0x1000));
            assert_eq!(slots.iter().filter(|other| other.gsi == slot.gsi).count(), 1);
        }
    }

    #[test]
    fn the_command_line_lists_each_device() {
        let expected = " virtio_mmio.device=4K@0xd0000000:16 virtio_mmio.device=4K@0xd0001000:17";
        assert_eq!(kernel_arguments(&slots(2).collect::<Vec<_>>()), expected);
        assert_eq!(kernel_arguments(&[]), "");
    }
}
