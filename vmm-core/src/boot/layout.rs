//! Guest-physical addresses below 1 MiB that the VMM fills before a guest starts, and those of the
//! interrupt controllers. The kernel reuses this memory once it has read it.

/// Global descriptor table, for the segments that vCPUs start with.
pub(crate) const GDT: u64 = 0x500;
/// Task segment with a permission bitmap for all I/O ports.
pub(crate) const TASK_SEGMENT: u64 = 0x1000;
/// PVH: `hvm_start_info`.
pub(crate) const PVH_START_INFO: u64 = 0x6000;
/// PVH: list of modules, which is the initrd alone.
pub(crate) const PVH_MODULES: u64 = 0x6100;
/// PVH: memory map.
pub(crate) const PVH_MEMORY_MAP: u64 = 0x6200;
/// Linux 64-bit boot protocol: `boot_params`, the "zero page".
pub(crate) const ZERO_PAGE: u64 = 0x7000;
/// Top of the stack that the kernel starts with.
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
/// Kernel command line.
pub(crate) const CMDLINE: u64 = 0x9000;
/// Longest command line, without its final zero: `COMMAND_LINE_SIZE` of x86 Linux less one.
pub(crate) const CMDLINE_BYTES_MAX: usize = 2047;
/// Page tables, one page after the other.
pub(crate) const PAGE_TABLES: u64 = 0xa000;
/// End of the room for page tables, and of the low memory that the kernel's memory map lists.
pub(crate) const LOW_MEMORY_END: u64 = 0x9_fc00;
/// ACPI tables: in the range that Linux scans for the root pointer when the boot protocol does not
/// pass its address.
pub(crate) const ACPI_TABLES: u64 = 0xe_0000;
/// End of the room for the ACPI tables.
pub(crate) const ACPI_TABLES_END: u64 = MP_TABLE;
/// MP table: in the BIOS ROM's 64 KiB, which kernels scan for it (MultiProcessor Specification 1.4,
/// chapter 4) and where SeaBIOS puts it too. The other two places that kernels scan have one
/// kilobyte, too little for 255 processors.
pub(crate) const MP_TABLE: u64 = 0xf_0000;
/// SMBIOS entry point and tables: in the same 64 KiB, above the MP table of the most processors.
pub(crate) const SMBIOS: u64 = 0xf_8000;
/// SMBIOS entry point and tables for firmware, which looks for them there and needs no MP table
/// (`OvmfPkg/SmbiosPlatformDxe/CloudHv.c`).
pub(crate) const FIRMWARE_SMBIOS: u64 = MP_TABLE;
/// The VM generation ID: in the last page of these 64 KiB, above the SMBIOS tables.
pub(crate) const GENERATION: u64 = ROM_END - 0x1000;
/// End of the room for all these.
pub(crate) const ROM_END: u64 = HIGH_MEMORY;
/// Start of the memory above the hole for legacy devices.
pub(crate) const HIGH_MEMORY: u64 = 0x10_0000;
/// Address of the local APICs.
pub(crate) const LAPIC_ADDRESS: u32 = 0xfee0_0000;
/// Address of the I/O APIC.
pub(crate) const IOAPIC_ADDRESS: u32 = 0xfec0_0000;
/// The I/O APIC's ID: the value of its register in KVM after a reset, and the ID in the ACPI tables
/// of QEMU and Cloud Hypervisor. The register has 4 bits, too few for an ID above those of many
/// processors. The ID may equal a processor's, since there is no APIC bus.
pub(crate) const IOAPIC_ID: u8 = 0;
