//! The MP table, which describes processors and interrupt controllers to a kernel without ACPI
//! (Intel MultiProcessor Specification 1.4, chapter 4).

use super::layout::{IOAPIC_ADDRESS, IOAPIC_ID, LAPIC_ADDRESS};

/// Revision 1.4 of the specification.
const SPECIFICATION: u8 = 4;
/// Interrupt lines, one for each pin of KVM's I/O APIC. The table assigns all of them to the ISA
/// bus, even those beyond its sixteen, because ISA interrupts are edge-triggered and active high,
/// like those of our devices.
const ISA_LINES: u8 = 24;
/// Bytes of the floating pointer structure.
const POINTER_BYTES: usize = 16;
/// Bytes of the configuration table's header.
const HEADER_BYTES: usize = 44;

/// Entry types (table 4-3).
mod kind {
    pub(super) const PROCESSOR: u8 = 0;
    pub(super) const BUS: u8 = 1;
    pub(super) const IOAPIC: u8 = 2;
    pub(super) const INTERRUPT: u8 = 3;
    pub(super) const LOCAL_INTERRUPT: u8 = 4;
}

/// Interrupt types (table 4-11).
mod interrupt {
    pub(super) const VECTORED: u8 = 0;
    pub(super) const NMI: u8 = 1;
    pub(super) const EXTINT: u8 = 3;
}

/// Builds the floating pointer and the table for `vcpus` processors, for the address `gpa`.
pub(super) fn build(gpa: u64, vcpus: u8) -> Vec<u8> {
    let (entries, count) = entries(vcpus);
    let mut table = b"PCMP".to_vec();
    table.extend(((HEADER_BYTES + entries.len()) as u16).to_le_bytes());
    table.extend([SPECIFICATION, 0]);
    table.extend(b"LIGHTER VM          ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LAPIC_ADDRESS.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);

    let mut pointer = b"_MP_".to_vec();
    pointer.extend((gpa as u32 + POINTER_BYTES as u32).to_le_bytes());
    pointer.extend([POINTER_BYTES as u8 / 16, SPECIFICATION, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    pointer.extend(table);
    pointer
}

fn entries(vcpus: u8) -> (Vec<u8>, u16) {
    const LAPIC_VERSION: u8 = 0x14;
    const IOAPIC_VERSION: u8 = 0x11;
    const ENABLED: u8 = 1;
    const BOOT_PROCESSOR: u8 = 2;
    const ISA_BUS: u8 = 0;
    let mut bytes = Vec::new();
    for id in 0..vcpus {
        let flags = if id == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
        bytes.extend([kind::PROCESSOR, id, LAPIC_VERSION, flags]);
        bytes.extend([0; 16]);
    }
    bytes.extend([kind::BUS, ISA_BUS]);
    bytes.extend(b"ISA   ");
    bytes.extend([kind::IOAPIC, IOAPIC_ID, IOAPIC_VERSION, ENABLED]);
    bytes.extend(IOAPIC_ADDRESS.to_le_bytes());
    // KVM routes line n to pin n of its I/O APIC.
    for line in 0..ISA_LINES {
        bytes.extend([kind::INTERRUPT, interrupt::VECTORED, 0, 0, ISA_BUS, line, IOAPIC_ID, line]);
    }
    const EVERY_LAPIC: u8 = 0xff;
    bytes.extend([kind::LOCAL_INTERRUPT, interrupt::EXTINT, 0, 0, ISA_BUS, 0, 0, 0]);
    bytes.extend([kind::LOCAL_INTERRUPT, interrupt::NMI, 0, 0, ISA_BUS, 0, EVERY_LAPIC, 1]);
    (bytes, u16::from(vcpus) + 2 + u16::from(ISA_LINES) + 2)
}

/// Returns the byte that makes the sum of all bytes 0.
pub(super) fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)).wrapping_neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boot::layout::{MP_TABLE, SMBIOS};

    #[test]
    fn both_parts_add_up_to_zero_and_fit_their_room() {
        for vcpus in 1..=crate::VCPUS_MAX {
            let bytes = build(MP_TABLE, vcpus);
            let (pointer, table) = bytes.split_at(POINTER_BYTES);
            assert_eq!((checksum(pointer), checksum(table)), (0, 0));
            assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
            assert!(bytes.len() as u64 <= SMBIOS - MP_TABLE);
        }
    }

    #[test]
    fn every_processor_is_listed_and_the_first_boots() {
        let bytes = build(MP_TABLE, 3);
        let entries = &bytes[POINTER_BYTES + HEADER_BYTES..];
        let processors: Vec<_> = entries.chunks(20).take(3).map(|entry| &entry[..4]).collect();
        assert_eq!(processors, [[0, 0, 0x14, 3], [0, 1, 0x14, 1], [0, 2, 0x14, 1]]);
    }

    #[test]
    fn interrupts_lead_to_the_io_apic_that_is_listed() {
        let bytes = build(MP_TABLE, crate::VCPUS_MAX);
        let processors = 20 * usize::from(crate::VCPUS_MAX);
        let (listed, others) = bytes[POINTER_BYTES + HEADER_BYTES..].split_at(processors);
        let ids: Vec<u8> = listed.chunks(20).map(|entry| entry[1]).collect();
        let others: Vec<_> = others.chunks(8).collect();
        let lines = others.iter().filter(|entry| entry[0] == kind::INTERRUPT);

        assert!(ids.iter().copied().eq(0..crate::VCPUS_MAX), "{ids:?}");
        assert_eq!(others[1][..4], [kind::IOAPIC, IOAPIC_ID, 0x11, 1]);
        assert!(lines.clone().all(|entry| entry[6] == IOAPIC_ID));
        assert_eq!(lines.count(), usize::from(ISA_LINES));
    }
}
