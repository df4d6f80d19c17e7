//! The PVH entry: 32-bit protected mode, with EBX pointing to `hvm_start_info` (Xen's
//! `public/arch-x86/hvm/start_info.h`), which gives the guest its memory map, command line and
//! initrd, and the root of its ACPI tables.

use super::BootError;
use super::layout::{
    ACPI_TABLES, ACPI_TABLES_END, CMDLINE, HIGH_MEMORY, LOW_MEMORY_END, MP_TABLE, PVH_MEMORY_MAP,
    PVH_MODULES, PVH_START_INFO, ROM_END,
};
use crate::devices::MachineKind;
use crate::memory::GuestRam;
use crate::pci::ECAM;

/// Location of the initrd in guest memory; all zero when there is none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Initrd {
    pub(super) gpa: u64,
    pub(super) bytes: u64,
}

/// Type of an address range, numbered as in e820 and PVH.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RangeKind {
    Ram = 1,
    Reserved = 2,
    Acpi = 3,
}

/// Returns the guest's memory map: start, length and kind of each range.
pub(super) fn memory_map(ram: &GuestRam, machine: MachineKind) -> Vec<(u64, u64, RangeKind)> {
    let mut map = vec![
        (0, LOW_MEMORY_END, RangeKind::Ram),
        (ACPI_TABLES, ACPI_TABLES_END - ACPI_TABLES, RangeKind::Acpi),
        (MP_TABLE, ROM_END - MP_TABLE, RangeKind::Reserved),
        (HIGH_MEMORY, ram.layout().regions()[0].bytes - HIGH_MEMORY, RangeKind::Ram),
    ];
    if machine == MachineKind::Pci {
        map.push((ECAM.start, ECAM.end - ECAM.start, RangeKind::Reserved));
    }
    let above = &ram.layout().regions()[1..];
    map.extend(above.iter().map(|region| (region.gpa, region.bytes, RangeKind::Ram)));
    map
}

/// Writes `hvm_start_info`, version 1, with its memory map and the initrd as its one module.
pub(super) fn write_start_info(
    ram: &GuestRam,
    machine: MachineKind,
    initrd: Initrd,
    root: Option<u64>,
) -> Result<(), BootError> {
    const MAGIC: u32 = 0x336e_c578;
    const VERSION: u32 = 1;
    let map = memory_map(ram, machine);
    let modules = u32::from(initrd.bytes > 0);
    let mut info = Vec::new();
    for word in [MAGIC, VERSION, 0, modules] {
        info.extend(word.to_le_bytes());
    }
    for word in [PVH_MODULES, CMDLINE, root.unwrap_or(0), PVH_MEMORY_MAP, map.len() as u64] {
        info.extend(word.to_le_bytes());
    }
    ram.write(PVH_START_INFO, &info)?;
    let module: Vec<u8> =
        [initrd.gpa, initrd.bytes, 0, 0].into_iter().flat_map(u64::to_le_bytes).collect();
    ram.write(PVH_MODULES, &module)?;
    let map = map.into_iter().flat_map(|(start, len, kind)| [start, len, kind as u64]);
    Ok(ram.write(PVH_MEMORY_MAP, &map.flat_map(u64::to_le_bytes).collect::<Vec<u8>>())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_omits_the_holes() {
        let ram = GuestRam::anonymous((3 << 30) + (1 << 20));
        let map = memory_map(&ram, MachineKind::Mmio);
        assert_eq!(map[0], (0, 0x9_fc00, RangeKind::Ram));
        assert_eq!(map[1], (0xe_0000, 0x1_0000, RangeKind::Acpi));
        assert_eq!(map[2], (0xf_0000, 0x1_0000, RangeKind::Reserved));
        assert_eq!(map[3], (1 << 20, (3 << 30) - (1 << 20), RangeKind::Ram));
        assert_eq!(map[4], (4 << 30, 1 << 20, RangeKind::Ram));
        let with_pci = memory_map(&ram, MachineKind::Pci);
        assert_eq!(with_pci[4], (0xe800_0000, 1 << 20, RangeKind::Reserved));
        assert_eq!([&with_pci[..4], &with_pci[5..]].concat(), map);
    }
}
