//! The ACPI tables, which describe processors, interrupts and devices to a stock kernel (ACPI
//! specification 6.5, chapter 5).
//!
//! The tables are contiguous: the root pointer first, then FACS, DSDT, FADT, MADT, MCFG if there is
//! a PCI bus, and XSDT. The VMM writes them once, at boot. From then on they are guest memory and
//! move with it. docs/adr/0008-acpi-and-power.md says why the guest gets fixed hardware and not the
//! hardware-reduced kind.

mod hot_plug;
mod pci;

use std::ops::Range;

use acpi_tables::aml::{
    Arg, Device, EISAName, Equal, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, Package,
    Path, ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use super::layout::{ACPI_TABLES, ACPI_TABLES_END, IOAPIC_ADDRESS, IOAPIC_ID, LAPIC_ADDRESS};
use super::{BootError, vmgenid};
use crate::cpuid;
use crate::devices::mmio::Slot;
use crate::devices::power::{
    PM1_CONTROL_BYTES, PM1_CONTROL_PORT, PM1_EVENT_BYTES, PM1_EVENT_PORT, RESET_PORT, RESET_VALUE,
    SCI_GSI, SLEEP_TYPE_OFF,
};
use crate::devices::{GENERATION_IRQ, HOT_PLUG_IRQ, SERIAL_IRQ, SERIAL_PORT};
use crate::memory::GuestRam;
use crate::pci::above;
use crate::shape::VmShape;

const OEM: [u8; 6] = *b"LIGHTR";
const OEM_TABLE: [u8; 8] = *b"LIGHTRVM";
const OEM_REVISION: u32 = 1;
/// Bytes of a table's header (table 5.4).
const HEADER_BYTES: u32 = 36;
/// Alignment of a table's address: that of the FACS, the strictest.
const ALIGNMENT: u64 = 64;

/// How a guest reaches its virtio devices.
#[derive(Debug, Clone)]
pub(super) enum Devices<'a> {
    /// In these slots.
    Mmio(&'a [Slot]),
    /// On the PCI bus, where it finds them itself; with addresses above its RAM for large BARs.
    Pci {
        /// Empty if there are none.
        above_ram: Range<u64>,
    },
}

impl Devices<'_> {
    /// Those of a machine with a PCI bus and this shape.
    pub(super) fn on_pci(shape: &VmShape, ram: &GuestRam) -> Self {
        Self::Pci { above_ram: above(ram.layout().end(), cpuid::address_bits(&shape.cpuid)) }
    }
}

/// Writes the tables of a guest with `vcpus` processors and these devices; returns the address of
/// their root.
///
/// # Errors
/// [`BootError::AcpiTables`] if they are too long.
pub(super) fn write(ram: &GuestRam, vcpus: u8, devices: &Devices<'_>) -> Result<u64, BootError> {
    let tables = build(ACPI_TABLES, vcpus, devices);
    let room = (ACPI_TABLES_END - ACPI_TABLES) as usize;
    if tables.len() > room {
        return Err(BootError::AcpiTables { bytes: tables.len() });
    }
    ram.write(ACPI_TABLES, &tables)?;
    Ok(ACPI_TABLES)
}

/// Builds the tables of a guest with `vcpus` processors and these devices, for the address `gpa`, a
/// multiple of 64 below 4 GiB. The root pointer comes first.
fn build(gpa: u64, vcpus: u8, devices: &Devices<'_>) -> Vec<u8> {
    let mut tables = Tables { gpa, bytes: vec![0; Rsdp::len()] };
    let facs = tables.add(&encode(&FACS::new()));
    let dsdt = tables.add(dsdt(devices).as_slice());
    let fadt = tables.add(&encode(&fadt(facs, dsdt)));
    let madt = tables.add(madt(vcpus).as_slice());
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    if let Devices::Pci { .. } = devices {
        xsdt.add_entry(tables.add(&encode(&pci::mcfg())));
    }
    let xsdt = tables.add(&encode(&xsdt));
    let root = encode(&Rsdp::new(OEM, xsdt));
    tables.bytes[..root.len()].copy_from_slice(&root);
    tables.bytes
}

/// Tables under construction, one after the other.
struct Tables {
    gpa: u64,
    bytes: Vec<u8>,
}

impl Tables {
    /// Adds a table; returns its address.
    fn add(&mut self, table: &[u8]) -> u64 {
        let at = (self.bytes.len() as u64).next_multiple_of(ALIGNMENT);
        self.bytes.resize(at as usize, 0);
        self.bytes.extend(table);
        self.gpa + at
    }
}

fn encode(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Builds the FADT: fixed hardware with a power button, without a sleep button and without an RTC
/// that can wake the system.
fn fadt(facs: u64, dsdt: u64) -> FADT {
    /// Latencies above the limits, which say that the processor has no such idle state.
    const NO_C2: u16 = 101;
    const NO_C3: u16 = 1001;
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .firmware_ctrl_32(facs as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.sci_int = (SCI_GSI as u16).into();
    fadt.pm1a_evt_blk = u32::from(PM1_EVENT_PORT).into();
    fadt.pm1_evt_len = PM1_EVENT_BYTES;
    fadt.x_pm1a_evt_blk = port(PM1_EVENT_PORT, PM1_EVENT_BYTES, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(PM1_CONTROL_PORT).into();
    fadt.pm1_cnt_len = PM1_CONTROL_BYTES;
    fadt.x_pm1a_cnt_blk = port(PM1_CONTROL_PORT, PM1_CONTROL_BYTES, AccessSize::WordAccess);
    fadt.p_lvl2_lat = NO_C2.into();
    fadt.p_lvl3_lat = NO_C3.into();
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = port(RESET_PORT, 1, AccessSize::ByteAccess);
    fadt.reset_value = RESET_VALUE;
    fadt.finalize()
}

/// IA-PC boot architecture flags (table 5.11): the ISA bus has devices (the serial port), but there
/// is no keyboard controller worth probing, no VGA and no CMOS clock.
const BOOT_ARCHITECTURE: u16 = {
    const LEGACY_DEVICES: u16 = 1 << 0;
    const NO_VGA: u16 = 1 << 2;
    const NO_CMOS_RTC: u16 = 1 << 5;
    LEGACY_DEVICES | NO_VGA | NO_CMOS_RTC
};

fn port(port: u16, bytes: u8, access: AccessSize) -> GAS {
    GAS::new(AddressSpace::SystemIo, bytes * 8, 0, access, port.into())
}

/// Builds the MADT: processors and interrupt controllers (section 5.2.12). The MADT type of
/// `acpi_tables` cannot say that there are 8259s too, nor describe the SCI, so this puts that
/// crate's entries into a generic table. A processor's entry has 8 bits for its ID, and 255 means
/// no processor: that is enough for [`crate::VCPUS_MAX`], without the longer x2APIC entries.
fn madt(vcpus: u8) -> Sdt {
    const REVISION: u8 = 5;
    const HAS_8259S: u32 = 1;
    let mut entries = Vec::new();
    entries.extend(LAPIC_ADDRESS.to_le_bytes());
    entries.extend(HAS_8259S.to_le_bytes());
    for id in 0..vcpus {
        let enabled = EnabledStatus::Enabled;
        ProcessorLocalApic::new(id, id, enabled).to_aml_bytes(&mut entries);
    }
    IoApic::new(IOAPIC_ID, IOAPIC_ADDRESS, 0).to_aml_bytes(&mut entries);
    entries.extend(sci_override());
    entries.extend(nmi_of_every_processor());
    let mut madt = Sdt::new(*b"APIC", HEADER_BYTES, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    madt.append_slice(&entries);
    madt
}

/// Describes the SCI as level-triggered and active high, like KVM's lines: ISA interrupts are
/// edge-triggered unless overridden (section 5.2.12.5).
fn sci_override() -> [u8; 10] {
    const INTERRUPT_SOURCE_OVERRIDE: u8 = 2;
    const ISA: u8 = 0;
    const ACTIVE_HIGH: u8 = 0b01;
    const LEVEL: u8 = 0b11 << 2;
    let [g0, g1, g2, g3] = SCI_GSI.to_le_bytes();
    let flags = ACTIVE_HIGH | LEVEL;
    [INTERRUPT_SOURCE_OVERRIDE, 10, ISA, SCI_GSI as u8, g0, g1, g2, g3, flags, 0]
}

/// Connects LINT1 of every processor to NMI (section 5.2.12.7).
fn nmi_of_every_processor() -> [u8; 6] {
    const LOCAL_APIC_NMI: u8 = 4;
    const EVERY_PROCESSOR: u8 = 0xff;
    const LINT1: u8 = 1;
    [LOCAL_APIC_NMI, 6, EVERY_PROCESSOR, 0, 0, LINT1]
}

/// Builds the DSDT, which describes what is not fixed hardware: the soft-off state, the serial
/// console, the VM generation ID, and the virtio devices or the PCI bus that they are on. Only a
/// change of the generation, and devices that come and go, have the guest interpret AML.
fn dsdt(devices: &Devices<'_>) -> Sdt {
    const REVISION: u8 = 2;
    let mut aml = Vec::new();
    let (off, none) = (SLEEP_TYPE_OFF, 0u8);
    Name::new("_S5_".into(), &Package::new(vec![&off, &off, &none, &none])).to_aml_bytes(&mut aml);
    let (serial, generation, event) = (serial(), generation(), event_device(devices));
    let devices: Vec<Encoded> = match devices {
        Devices::Mmio(slots) => {
            (0..).zip(*slots).map(|(index, slot)| virtio(index, slot)).collect()
        }
        Devices::Pci { above_ram } => vec![pci::host_bridge(above_ram), pci::reserved()],
    };
    let mut children: Vec<&dyn Aml> = vec![&serial, &generation, &event];
    children.extend(devices.iter().map(|device| device as &dyn Aml));
    Scope::new("\\_SB_".into(), children).to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER_BYTES, REVISION, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// AML that is already encoded, to be put into other AML.
struct Encoded(Vec<u8>);

impl Aml for Encoded {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

fn serial() -> Encoded {
    const PORTS: u8 = 8;
    Encoded(encode(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &IO::new(SERIAL_PORT, SERIAL_PORT, 1, PORTS),
                    &edge(SERIAL_IRQ),
                ]),
            ),
        ],
    )))
}

/// Name of the device of the VM generation ID.
const GENERATION_DEVICE: &str = "VGEN";

/// Describes where the VM generation ID is: `ADDR`, low and high half of its address.
fn generation() -> Encoded {
    let (low, high) = (vmgenid::ID as u32, (vmgenid::ID >> 32) as u32);
    Encoded(encode(&Device::new(
        GENERATION_DEVICE.into(),
        vec![
            &Name::new("_HID".into(), &"LGTR0001"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    )))
}

/// Describes the interrupts that say that something has changed: a Generic Event Device (section
/// 5.6.9). It notifies the device of the generation with 0x80, as the ID's specification says, and
/// has the PCI bus scanned for devices that come and go.
fn event_device(devices: &Devices<'_>) -> Encoded {
    const CHANGED: u8 = 0x80;
    let device = Path::new(GENERATION_DEVICE);
    let notify = Notify::new(&device, &CHANGED);
    let is_generation = Equal::new(&Arg(0), &GENERATION_IRQ);
    let generation = If::new(&is_generation, vec![&notify]);
    let hot_plug = hot_plug::on_event();
    let (generation_line, hot_plug_line) = (edge(GENERATION_IRQ), edge(HOT_PLUG_IRQ));
    let (lines, reactions): (Vec<&dyn Aml>, Vec<&dyn Aml>) = match devices {
        Devices::Mmio(_) => (vec![&generation_line], vec![&notify]),
        Devices::Pci { .. } => {
            (vec![&generation_line, &hot_plug_line], vec![&generation, &hot_plug])
        }
    };
    Encoded(encode(&Device::new(
        "GED0".into(),
        vec![
            &Name::new("_HID".into(), &"ACPI0013"),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(lines)),
            &Method::new("_EVT".into(), 1, true, reactions),
        ],
    )))
}

fn virtio(index: u32, slot: &Slot) -> Encoded {
    const COHERENT: u8 = 1;
    let writable = true;
    Encoded(encode(&Device::new(
        Path::new(&format!("V{index:03X}")),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &index),
            &Name::new("_CCA".into(), &COHERENT),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(writable, slot.address as u32, slot.bytes as u32),
                    &edge(slot.gsi),
                ]),
            ),
        ],
    )))
}

/// An interrupt resource that a device uses: active high, edge-triggered and not shared.
fn edge(gsi: u32) -> Interrupt {
    let (consumer, edge, active_low, shared) = (true, true, false, false);
    Interrupt::new(consumer, edge, active_low, shared, gsi)
}

#[cfg(test)]
#[path = "acpi/tests.rs"]
mod tests;
