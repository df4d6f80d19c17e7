//! Page tables and segments for a guest that starts in protected or in 64-bit mode.

use kvm_bindings::{kvm_segment, kvm_sregs};

use super::layout::{GDT, PAGE_TABLES, TASK_SEGMENT};
use crate::memory::{GuestRam, MemoryError, PAGE_BYTES};

/// The privilege at which the guest starts, and which may access the mapped memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    /// Ring 0, where a kernel starts.
    Kernel,
    /// Ring 3, where a program without a kernel starts.
    User,
}

impl Privilege {
    fn level(self) -> u8 {
        match self {
            Self::Kernel => 0,
            Self::User => 3,
        }
    }
}

/// Bits of page table entries (Intel SDM volume 3, 4.5). Accessed and dirty are set from the start,
/// so that the processor never writes to the tables.
mod entry {
    pub(super) const PRESENT: u64 = 1 << 0;
    pub(super) const WRITABLE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const ACCESSED: u64 = 1 << 5;
    pub(super) const DIRTY: u64 = 1 << 6;
    pub(super) const LARGE: u64 = 1 << 7;
}

const ENTRIES: usize = 512;
const LARGE_PAGE_BYTES: u64 = 2 << 20;
const GIB: u64 = 1 << 30;

/// Returns the bytes of page tables that map the first `mapped_bytes` of the address space.
pub(crate) const fn identity_map_bytes(mapped_bytes: u64) -> u64 {
    (2 + mapped_bytes.div_ceil(GIB)) * PAGE_BYTES as u64
}

/// Writes page tables at [`PAGE_TABLES`] that map the first `mapped_bytes`, rounded up to GiB, one
/// to one with 2 MiB pages. Returns the value for CR3.
pub(crate) fn write_identity_map(
    ram: &GuestRam,
    mapped_bytes: u64,
    privilege: Privilege,
) -> Result<u64, MemoryError> {
    let user = if privilege == Privilege::User { entry::USER } else { 0 };
    let table = entry::PRESENT | entry::WRITABLE | entry::ACCESSED | user;
    let page = table | entry::LARGE | entry::DIRTY;

    let (pml4, pdpt) = (PAGE_TABLES, PAGE_TABLES + PAGE_BYTES as u64);
    let directories = pdpt + PAGE_BYTES as u64;
    let gibs = mapped_bytes.div_ceil(GIB);

    write_table(ram, pml4, [pdpt | table].into_iter())?;
    write_table(ram, pdpt, (0..gibs).map(|gib| (directories + gib * PAGE_BYTES as u64) | table))?;
    for gib in 0..gibs {
        let entries =
            (0..ENTRIES as u64).map(|index| (gib * GIB + index * LARGE_PAGE_BYTES) | page);
        write_table(ram, directories + gib * PAGE_BYTES as u64, entries)?;
    }
    Ok(pml4)
}

fn write_table(
    ram: &GuestRam,
    gpa: u64,
    entries: impl Iterator<Item = u64>,
) -> Result<(), MemoryError> {
    let mut bytes = [0; PAGE_BYTES];
    for (place, entry) in bytes.chunks_exact_mut(8).zip(entries) {
        place.copy_from_slice(&entry.to_le_bytes());
    }
    ram.write(gpa, &bytes)
}

/// Control register bits (Intel SDM volume 3, 2.5).
mod control {
    pub(super) const CR0_PE: u64 = 1 << 0;
    pub(super) const CR0_MP: u64 = 1 << 1;
    pub(super) const CR0_ET: u64 = 1 << 4;
    pub(super) const CR0_NE: u64 = 1 << 5;
    pub(super) const CR0_WP: u64 = 1 << 16;
    pub(super) const CR0_PG: u64 = 1 << 31;
    pub(super) const CR4_PAE: u64 = 1 << 5;
    pub(super) const CR4_OSFXSR: u64 = 1 << 9;
    pub(super) const CR4_OSXMMEXCPT: u64 = 1 << 10;
    pub(super) const CR4_OSXSAVE: u64 = 1 << 18;
    pub(super) const EFER_LME: u64 = 1 << 8;
    pub(super) const EFER_LMA: u64 = 1 << 10;
    pub(super) const EFER_NXE: u64 = 1 << 11;
}

/// Whether to enable XSAVE, which only a processor that has it allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Xsave {
    /// The processor lacks it.
    Absent,
    /// The processor has it: enable it.
    Enabled,
}

/// Sets up 64-bit mode with page tables at `cr3` and flat segments.
pub(crate) fn enter_long_mode(sregs: &mut kvm_sregs, cr3: u64, privilege: Privilege, xsave: Xsave) {
    use control::*;
    sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_PG;
    sregs.cr3 = cr3;
    sregs.cr4 = CR4_PAE | CR4_OSFXSR | CR4_OSXMMEXCPT;
    if xsave == Xsave::Enabled {
        sregs.cr4 |= CR4_OSXSAVE;
    }
    sregs.efer = EFER_LME | EFER_LMA | EFER_NXE;
    let code = Descriptor { code: true, long: true, privilege };
    let data = Descriptor { code: false, long: false, privilege };
    set_segments(sregs, code, data);
}

/// Sets up 32-bit protected mode without paging and with flat segments, as the PVH entry requires.
pub(crate) fn enter_protected_mode(sregs: &mut kvm_sregs) {
    use control::*;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    sregs.efer = 0;
    let privilege = Privilege::Kernel;
    let code = Descriptor { code: true, long: false, privilege };
    let data = Descriptor { code: false, long: false, privilege };
    set_segments(sregs, code, data);
}

/// Indices of the descriptors that [`write_descriptors`] writes.
const CODE_INDEX: u16 = 2;
const DATA_INDEX: u16 = 3;
const TASK_INDEX: u16 = 4;

/// A flat segment.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    code: bool,
    long: bool,
    privilege: Privilege,
}

impl Descriptor {
    fn segment(self, index: u16) -> kvm_segment {
        const CODE_ACCESSED: u8 = 0xb;
        const DATA_ACCESSED: u8 = 0x3;
        let level = self.privilege.level();
        kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector: index << 3 | u16::from(level),
            type_: if self.code { CODE_ACCESSED } else { DATA_ACCESSED },
            present: 1,
            dpl: level,
            db: u8::from(!self.long),
            s: 1,
            l: u8::from(self.long),
            g: 1,
            ..Default::default()
        }
    }
}

fn set_segments(sregs: &mut kvm_sregs, code: Descriptor, data: Descriptor) {
    let data = data.segment(DATA_INDEX);
    sregs.cs = code.segment(CODE_INDEX);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    const TASK_BUSY: u8 = 0xb;
    sregs.tr = kvm_segment {
        base: TASK_SEGMENT,
        limit: TASK_SEGMENT_BYTES - 1,
        selector: TASK_INDEX << 3,
        type_: TASK_BUSY,
        present: 1,
        ..Default::default()
    };
    sregs.ldt = kvm_segment { unusable: 1, ..Default::default() };
    sregs.gdt.base = GDT;
    sregs.gdt.limit = 5 * 8 - 1;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
}

/// Bytes of the task segment: its fixed part, one bit for each port, and the final byte of ones
/// that the processor requires.
const TASK_SEGMENT_BYTES: u32 = 0x68 + 65536 / 8 + 1;

/// Writes the descriptor table for the segments of `sregs`, and a task segment whose bitmap allows
/// all I/O ports. I/O privilege level 3 allows them too, but not every KVM preserves it (Intel SDM
/// volume 1, 19.5).
pub(crate) fn write_descriptors(ram: &GuestRam, sregs: &kvm_sregs) -> Result<(), MemoryError> {
    let table = [0, 0, descriptor(&sregs.cs), descriptor(&sregs.ds), descriptor(&sregs.tr)];
    for (index, entry) in (0u64..).zip(table) {
        ram.write(GDT + index * 8, &entry.to_le_bytes())?;
    }
    const BITMAP_POINTER: usize = 0x66;
    const BITMAP: u8 = 0x68;
    let mut task = vec![0; TASK_SEGMENT_BYTES as usize];
    task[BITMAP_POINTER] = BITMAP;
    task[TASK_SEGMENT_BYTES as usize - 1] = 0xff;
    ram.write(TASK_SEGMENT, &task)
}

/// Encodes a segment as a descriptor (Intel SDM volume 3, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let (base, limit) = (segment.base, u64::from(segment.limit));
    let limit = if segment.g == 1 { limit >> 12 } else { limit };
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.avl)
        | u64::from(segment.l) << 1
        | u64::from(segment.db) << 2
        | u64::from(segment.g) << 3;
    limit & 0xffff
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_manual() {
        let mut sregs = kvm_sregs::default();
        enter_protected_mode(&mut sregs);
        assert_eq!(descriptor(&sregs.cs), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&sregs.ds), 0x00cf_9300_0000_ffff);
        enter_long_mode(&mut sregs, 0, Privilege::User, Xsave::Absent);
        assert_eq!(descriptor(&sregs.cs), 0x00af_fb00_0000_ffff);
        assert_eq!(sregs.cs.selector, 0x13);
    }

    #[test]
    fn every_mapped_page_is_at_its_own_address() {
        let ram = GuestRam::anonymous(4 << 20);
        let cr3 = write_identity_map(&ram, 2 * GIB + 1, Privilege::User).unwrap();
        let read = |gpa| {
            let mut word = [0; 8];
            ram.read(gpa, &mut word).unwrap();
            u64::from_le_bytes(word)
        };
        let walk = |address: u64| {
            let pdpt = read(cr3) & !0xfff;
            let directory = read(pdpt + (address >> 30) * 8) & !0xfff;
            read(directory + (address >> 21 & 511) * 8)
        };
        for address in
            [0, LARGE_PAGE_BYTES, GIB - LARGE_PAGE_BYTES, GIB, 3 * GIB - LARGE_PAGE_BYTES]
        {
            assert_eq!(walk(address), address | 0xe7, "{address:#x}");
        }
        assert_eq!(identity_map_bytes(2 * GIB + 1), 5 * 4096);
    }
}
