//! The PCI bus in the tables: where its configuration space is (MCFG: PCI Firmware Specification
//! 3.3, 4.1.2), and its host bridge in the DSDT.

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name,
    ResourceTemplate,
};
use acpi_tables::mcfg::MCFG;

use super::{Encoded, OEM, OEM_REVISION, OEM_TABLE, encode, hot_plug};
use crate::pci::{APERTURE, CONFIG_PORT, CONFIG_PORTS, ECAM, HOT_PLUG_PORT, HOT_PLUG_PORTS};

/// Number of the only segment, and of its only bus.
const SEGMENT: u16 = 0;
const BUS: u8 = 0;

/// Builds the MCFG.
pub(super) fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(ECAM.start, SEGMENT, BUS, BUS);
    mcfg
}

/// Describes the host bridge: the bus, the ports that it takes itself, the addresses that it passes
/// on to its devices, below 4 GiB and `above` its RAM, and its slots. There are no interrupt pins,
/// so there is no routing of them.
pub(super) fn host_bridge(above: &Range<u64>) -> Encoded {
    const COHERENT: u8 = 1;
    let (zero, writable) = (0u8, true);
    let (start, last) = (APERTURE.start as u32, APERTURE.end as u32 - 1);
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let bus = AddressSpace::new_bus_number(u16::from(BUS), u16::from(BUS));
    let ports = IO::new(CONFIG_PORT, CONFIG_PORT, 1, CONFIG_PORTS);
    let low = AddressSpace::new_memory(cacheable, writable, start, last, None);
    let last_above = above.end.saturating_sub(1);
    let high = AddressSpace::new_memory(cacheable, writable, above.start, last_above, None);
    let mut resources: Vec<&dyn Aml> = vec![&bus, &ports, &low];
    if !above.is_empty() {
        resources.push(&high);
    }
    let parts: [&dyn Aml; 7] = [
        &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
        &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
        &Name::new("_UID".into(), &zero),
        &Name::new("_SEG".into(), &zero),
        &Name::new("_BBN".into(), &BUS),
        &Name::new("_CCA".into(), &COHERENT),
        &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
    ];
    let slots = hot_plug::in_bridge();
    let slots = slots.iter().map(|part| part as &dyn Aml);
    Encoded(encode(&Device::new("PCI0".into(), parts.into_iter().chain(slots).collect())))
}

/// Reserves the addresses of configuration space, without which kernels do not trust the MCFG, and
/// the ports of hot-plug.
pub(super) fn reserved() -> Encoded {
    let writable = true;
    let bytes = ECAM.end - ECAM.start;
    Encoded(encode(&Device::new(
        "ECAM".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &0u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![
                    &Memory32Fixed::new(writable, ECAM.start as u32, bytes as u32),
                    &IO::new(HOT_PLUG_PORT, HOT_PLUG_PORT, 1, HOT_PLUG_PORTS),
                ]),
            ),
        ],
    )))
}
