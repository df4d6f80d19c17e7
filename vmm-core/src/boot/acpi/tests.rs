//! Reads the tables back at the offsets of the specification, and with `iasl`.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::*;
use crate::VCPUS_MAX;
use crate::boot::layout::{ACPI_TABLES, ACPI_TABLES_END};
use crate::devices::mmio::{SLOTS_MAX, slots};

const DEVICES: [Slot; 2] = [
    Slot { address: 0xd000_0000, bytes: 0x1000, gsi: 5 },
    Slot { address: 0xd000_1000, bytes: 0x1000, gsi: 16 },
];

/// The tables in a guest's memory.
struct Memory(Vec<u8>);

impl Memory {
    fn with(vcpus: u8, devices: &[Slot]) -> Self {
        Self(build(ACPI_TABLES, vcpus, &Devices::Mmio(devices)))
    }

    fn with_pci(vcpus: u8) -> Self {
        let above_ram = 0x20_0000_0000..0x40_0000_0000;
        Self(build(ACPI_TABLES, vcpus, &Devices::Pci { above_ram }))
    }

    fn from(&self, gpa: u64) -> &[u8] {
        &self.0[(gpa - ACPI_TABLES) as usize..]
    }

    /// The table at `gpa`, as long as it says it is; its checksum must be right.
    fn table(&self, gpa: u64) -> &[u8] {
        let table = self.from(gpa);
        let table = &table[..word32(table, 4) as usize];
        assert_eq!(sum(table), 0, "{}", String::from_utf8_lossy(&table[..4]));
        table
    }

    /// The tables that the root pointer leads to: FADT, MADT, DSDT.
    fn found(&self) -> [&[u8]; 3] {
        let (found, others) = self.found_with_others();
        assert!(others.is_empty());
        found
    }

    /// As `found`, with the tables that the root table lists beyond FADT and MADT.
    fn found_with_others(&self) -> ([&[u8]; 3], Vec<&[u8]>) {
        let root = self.from(ACPI_TABLES);
        assert_eq!(&root[..8], b"RSD PTR ");
        assert_eq!((sum(&root[..20]), sum(&root[..36])), (0, 0));
        let xsdt = self.table(word64(root, 24));
        assert_eq!(&xsdt[..4], b"XSDT");
        let others = (52..xsdt.len()).step_by(8).map(|at| self.table(word64(xsdt, at)));
        let (fadt, madt) = (self.table(word64(xsdt, 36)), self.table(word64(xsdt, 44)));
        let dsdt = self.table(word64(fadt, 140));
        assert_eq!([&fadt[..4], &madt[..4], &dsdt[..4]], [b"FACP", b"APIC", b"DSDT"]);
        assert_eq!(u64::from(word32(fadt, 40)), word64(fadt, 140));
        ([fadt, madt, dsdt], others.collect())
    }
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte))
}

fn word32(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn word64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn holds(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[test]
fn the_root_leads_to_every_table_and_all_sums_are_zero() {
    for vcpus in 1..=VCPUS_MAX {
        Memory::with(vcpus, &DEVICES).found();
    }
}

#[test]
fn the_fixed_hardware_is_where_the_device_is() {
    let memory = Memory::with(1, &[]);
    let [fadt, ..] = memory.found();
    let facs = memory.from(word32(fadt, 36).into());
    assert_eq!((&facs[..4], word32(facs, 4)), (&b"FACS"[..], 64));
    assert_eq!(word32(fadt, 36) % 64, 0);
    assert_eq!(u16::from_le_bytes([fadt[46], fadt[47]]), 9, "SCI");
    assert_eq!(word32(fadt, 48), 0, "no SMI command: ACPI is always on");
    assert_eq!((word32(fadt, 56), fadt[88]), (0x600, 4), "PM1a events");
    assert_eq!((word32(fadt, 64), fadt[89]), (0x604, 2), "PM1a control");
    assert_eq!(fadt[116..128], [1, 8, 0, 1, 0xf9, 0xc, 0, 0, 0, 0, 0, 0], "reset register");
    assert_eq!(fadt[128], 6, "reset value");
    let flags = word32(fadt, 112);
    assert_eq!(flags & (1 << 4 | 1 << 20), 0, "a fixed power button, and not reduced hardware");
    assert_ne!(flags & 1 << 10, 0, "the reset register is there");
}

#[test]
fn every_processor_and_the_level_of_the_sci_are_listed() {
    let memory = Memory::with(3, &[]);
    let [_, madt, _] = memory.found();
    assert_eq!((word32(madt, 36), word32(madt, 40)), (0xfee0_0000, 1));
    let expected: [&[u8]; 6] = [
        &[0, 8, 0, 0, 1, 0, 0, 0],
        &[0, 8, 1, 1, 1, 0, 0, 0],
        &[0, 8, 2, 2, 1, 0, 0, 0],
        &[1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0],
        &[2, 10, 0, 9, 9, 0, 0, 0, 0xd, 0],
        &[4, 6, 0xff, 0, 0, 1],
    ];
    assert_eq!(entries_of(madt), expected);
}

/// The entries of an MADT.
fn entries_of(madt: &[u8]) -> Vec<&[u8]> {
    let mut entries = Vec::new();
    let mut rest = &madt[44..];
    while let [_, bytes, ..] = rest {
        let (entry, after) = rest.split_at((*bytes).into());
        entries.push(entry);
        rest = after;
    }
    entries
}

#[test]
fn every_processor_of_many_has_an_id_that_the_tables_can_hold() {
    for vcpus in [9, 16, 64, 65, 128, 240, 254, VCPUS_MAX] {
        let memory = Memory::with(vcpus, &DEVICES);
        let [_, madt, _] = memory.found();
        let processors = entries_of(madt).into_iter().filter(|entry| entry[0] == 0);
        // As Linux reads them (acpi_parse_lapic): processor UID, APIC ID, enabled; an ID of 255
        // means no processor.
        let ids: Vec<(u8, u8, u8)> =
            processors.map(|entry| (entry[2], entry[3], entry[4])).collect();
        assert!(ids.iter().copied().eq((0..vcpus).map(|id| (id, id, 1))), "{vcpus}: {ids:?}");
        assert!(ids.iter().all(|(uid, id, _)| *uid < 255 && *id < 255));
    }
}

#[test]
fn devices_are_found_with_their_window_and_interrupt() {
    let memory = Memory::with(1, &DEVICES);
    let [_, _, dsdt] = memory.found();
    for (name, device) in [b"V000", b"V001"].into_iter().zip(DEVICES) {
        assert!(holds(dsdt, name));
        let mut window = vec![0x86, 9, 0, 1];
        window.extend((device.address as u32).to_le_bytes());
        window.extend((device.bytes as u32).to_le_bytes());
        assert!(holds(dsdt, &window), "{device:?}");
        let mut interrupt = vec![0x89, 6, 0, 0b0011, 1];
        interrupt.extend(device.gsi.to_le_bytes());
        assert!(holds(dsdt, &interrupt), "{device:?}");
    }
    assert!(holds(dsdt, b"LNRO0005\0"));
    assert!(holds(dsdt, b"_S5_\x12\x08\x04\x0a\x05\x0a\x05"), "{dsdt:02x?}");
}

#[test]
fn the_pci_bus_is_found_with_its_configuration_space_and_aperture() {
    let memory = Memory::with_pci(2);
    let ([_, _, dsdt], others) = memory.found_with_others();
    let [mcfg] = others[..] else { panic!("{} tables", others.len()) };
    assert_eq!((&mcfg[..4], mcfg.len()), (&b"MCFG"[..], 36 + 8 + 16));
    assert_eq!(word64(mcfg, 44), 0xe800_0000);
    assert_eq!(mcfg[52..60], [0; 8], "segment 0, bus 0 to 0");
    for name in [b"PCI0", b"ECAM", b"_BBN", b"_SEG"] {
        assert!(holds(dsdt, name));
    }
    assert!(!holds(dsdt, b"LNRO0005"), "devices are on the bus");
    let ids: [&[u8]; 3] =
        [&[0x41, 0xd0, 0x0a, 0x08], &[0x41, 0xd0, 0x0a, 0x03], &[0x41, 0xd0, 0x0c, 0x02]];
    ids.into_iter().for_each(|id| assert!(holds(dsdt, id), "{id:x?}"));
    // Memory, fixed at both ends, writable; no granularity; first and last address, length.
    let mut aperture = vec![0x87, 23, 0, 0, 0x0c, 1];
    for word in [0u32, 0xc000_0000, 0xe7ff_ffff, 0, 0x2800_0000] {
        aperture.extend(word.to_le_bytes());
    }
    assert!(holds(dsdt, &aperture), "{dsdt:02x?}");
    assert!(holds(dsdt, &[0x47, 1, 0xf8, 0xc, 0xf8, 0xc, 1, 8]), "the ports");
    assert!(holds(dsdt, &[0x86, 9, 0, 1, 0, 0, 0, 0xe8, 0, 0, 0x10, 0]), "ECAM is reserved");
    assert!(holds(dsdt, &[0x47, 1, 0, 0xae, 0, 0xae, 1, 12]), "so are the ports of hot-plug");
    assert!(holds(dsdt, &[0x88, 13, 0, 2, 0x0c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]), "bus 0");
}

#[test]
fn the_generation_of_the_guest_is_found_with_its_interrupt() {
    let memory = Memory::with(1, &DEVICES);
    let [_, _, dsdt] = memory.found();
    assert!(holds(dsdt, b"VM_Gen_Counter\0") && holds(dsdt, b"ACPI0013\0"));
    // A package of two integers, the second of them zero.
    assert!(holds(dsdt, b"ADDR\x12\x08\x02\x0c\x10\xf0\x0f\0\0"), "{dsdt:02x?}");
    assert!(holds(dsdt, &[0x89, 6, 0, 0b0011, 1, 12, 0, 0, 0]));
    assert!(holds(dsdt, b"_EVT\x09\x86VGEN\x0a\x80"), "{dsdt:02x?}");
    let lines = slots(SLOTS_MAX).map(|slot| slot.gsi);
    assert!(!lines.chain([SERIAL_IRQ, SCI_GSI]).any(|line| line == GENERATION_IRQ));
}

#[test]
fn devices_that_come_and_go_are_found_with_their_interrupt() {
    let memory = Memory::with_pci(1);
    let ([_, _, dsdt], _) = memory.found_with_others();
    for line in [GENERATION_IRQ, HOT_PLUG_IRQ] {
        assert!(holds(dsdt, &[0x89, 6, 0, 0b0011, 1, line as u8, 0, 0, 0]), "{line}");
    }
    for device in 1..=31u8 {
        let name = format!("S{device:03}");
        // Its address; the notifications of both kinds.
        assert!(holds(dsdt, &[b"_ADR\x0c\0\0".as_slice(), &[device, 0]].concat()), "{name}");
        for value in [&[1][..], &[0x0a, 3]] {
            assert!(holds(dsdt, &[&[0x86], name.as_bytes(), value].concat()), "{name}");
        }
    }
    let mmio = Memory::with(1, &DEVICES);
    let [_, _, dsdt] = mmio.found();
    assert!(!holds(dsdt, b"_EJ0") && !holds(dsdt, &[0x89, 6, 0, 0b0011, 1, 10, 0, 0, 0]));
    assert!(![SERIAL_IRQ, SCI_GSI, GENERATION_IRQ].contains(&HOT_PLUG_IRQ));
}

#[test]
fn as_many_devices_as_there_are_interrupt_lines_fit_the_room() {
    let devices = [DEVICES[0]; 256];
    let room = (ACPI_TABLES_END - ACPI_TABLES) as usize;
    assert!(Memory::with(VCPUS_MAX, &devices).0.len() <= room);
    assert!(Memory::with_pci(VCPUS_MAX).0.len() <= room);
}

/// Intel's disassembler accepts every table. The tests above need no external program.
#[test]
fn the_disassembler_takes_every_table() {
    if std::env::var_os("LIGHTER_SKIP_IASL").is_some() {
        eprintln!("left out: LIGHTER_SKIP_IASL is set");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (mmio, pci) = (Memory::with(2, &DEVICES), Memory::with_pci(2));
    for table in mmio.found() {
        let source = disassembled(folder.path(), table);
        if table.starts_with(b"DSDT") {
            assert!(source.contains("Device (V001)"), "{source}");
            assert!(source.contains("0xD0001000"), "{source}");
        }
    }
    let (found, others) = pci.found_with_others();
    for table in found.into_iter().chain(others) {
        let source = disassembled(folder.path(), table);
        if table.starts_with(b"DSDT") {
            assert!(source.contains("EisaId (\"PNP0A08\") /* PCI Express Bus */"), "{source}");
            for part in ["PEJT = (One << 0x1F)", "Notify (S031, 0x03)", "\\_SB.PCI0.SCAN ()"] {
                assert!(source.contains(part), "{part}: {source}");
            }
            recompiles(folder.path());
        }
    }
}

/// Disassembles a table in `folder`; returns the source.
fn disassembled(folder: &Path, table: &[u8]) -> String {
    let name = String::from_utf8_lossy(&table[..4]).into_owned();
    let path = folder.join(format!("{name}.aml"));
    std::fs::write(&path, table).unwrap();
    let said = iasl(&["-d".as_ref(), path.as_os_str()]);
    for trouble in ["Error", "Invalid", "incorrect", "Warning"] {
        assert!(!said.contains(trouble), "{name}: {said}");
    }
    std::fs::read_to_string(path.with_extension("dsl")).unwrap()
}

/// Compiles the DSDT in `folder` again, which checks what its names and resources mean together.
fn recompiles(folder: &Path) {
    let said = iasl(&[
        "-p".as_ref(),
        folder.join("again").as_os_str(),
        folder.join("DSDT.dsl").as_os_str(),
    ]);
    assert!(said.contains("0 Errors, 0 Warnings"), "{said}");
}

fn iasl(arguments: &[&OsStr]) -> String {
    let output = Command::new("iasl").args(arguments).output();
    let output = output
        .expect("iasl (Debian's package `acpica-tools`), or LIGHTER_SKIP_IASL=1 to go without");
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
    said
}
