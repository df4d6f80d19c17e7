//! Starts a Linux kernel through one of two entries.
//!
//! * An ELF image with a PVH note, in 32-bit protected mode (see `pvh.rs`).
//! * A bzImage, or an ELF image without a note, at its 64-bit entry with RSI pointing to
//!   `boot_params` (Documentation/arch/x86/boot.rst, "64-bit Boot Protocol", and zero-page.rst).
//!
//! Either structure gives the kernel its memory map, command line and initrd, and the root of its
//! ACPI tables.

use std::path::Path;

use vm_memory::{Bytes, GuestAddress};

use super::acpi::{self, Devices};
use super::kernel::{self, Entry, Kernel};
use super::layout::{CMDLINE, CMDLINE_BYTES_MAX, MP_TABLE, SMBIOS, ZERO_PAGE};
use super::pvh::{self, Initrd};
use super::source::{BootFile, KernelFiles};
use super::{Acpi, BootError, bzimage, entry, mptable};
use crate::Vm;
use crate::devices::MachineKind;
use crate::devices::mmio::{Slot, kernel_arguments, slots};
use crate::error::Result;
use crate::memory::{GuestRam, PAGE_BYTES};

/// Loads kernel, initrd and tables into the guest's memory and points vCPU 0 at the kernel.
pub(super) fn boot(vm: &Vm, files: &KernelFiles) -> Result<()> {
    let ram = vm.ram();
    let mut file = files.kernel.read(ram.bytes())?;
    let kernel = kernel::load(ram, files.kernel.path(), &mut file)?;
    let initrd = match &files.initrd {
        Some(file) => load_initrd(ram, file, &kernel)?,
        None => Initrd::default(),
    };
    let shape = vm.shape();
    let (vcpus, machine) = (shape.vcpus, shape.machine);
    let slots: Vec<Slot> = slots(shape.devices.len()).collect();
    let devices = match machine {
        MachineKind::Mmio => Devices::Mmio(&slots),
        MachineKind::Pci => Devices::on_pci(&shape, ram),
    };
    super::identify(vm, SMBIOS).map_err(BootError::Memory)?;
    // For a kernel that runs with `acpi=off`.
    write(ram, MP_TABLE, &mptable::build(MP_TABLE, vcpus))?;
    let (root, arguments) = match files.acpi {
        Acpi::On => (Some(acpi::write(ram, vcpus, &devices)?), String::new()),
        Acpi::Off => (None, arguments(&devices)),
    };
    let cmdline = files.cmdline.clone() + &arguments;
    write_cmdline(ram, &cmdline, kernel.cmdline_bytes_max)?;
    match kernel.entry {
        Entry::Pvh { at } => {
            pvh::write_start_info(ram, machine, initrd, root)?;
            entry::in_protected_mode(vm, at)
        }
        Entry::Boot64 { at, setup } => {
            write_boot_params(ram, machine, initrd, (&cmdline, root), &setup)?;
            entry::in_long_mode(vm, at)
        }
    }
}

/// Loads the initrd as high in the memory below 4 GiB as the kernel allows, on a page boundary.
fn load_initrd(ram: &GuestRam, file: &BootFile, kernel: &Kernel) -> Result<Initrd, BootError> {
    let mut open = file.read(ram.bytes())?;
    let unreadable = |cause| unreadable_initrd(file.path(), cause);
    let bytes = open.metadata().map_err(unreadable)?.len();
    let too_large = || BootError::InitrdTooLarge { initrd_bytes: bytes, kernel_end: kernel.end };
    let gpa = kernel.initrd_end_max.checked_sub(bytes).ok_or_else(too_large)?;
    let gpa = gpa & !(PAGE_BYTES as u64 - 1);
    if gpa < kernel.end {
        return Err(too_large());
    }
    ram.memory()
        .read_exact_volatile_from(GuestAddress(gpa), &mut open, bytes as usize)
        .map_err(|error| unreadable(std::io::Error::other(error)))?;
    Ok(Initrd { gpa, bytes })
}

fn unreadable_initrd(path: &Path, cause: std::io::Error) -> BootError {
    BootError::Read { what: "initrd", path: path.to_path_buf(), cause }
}

/// Returns what the kernel must be told about its devices on the command line.
fn arguments(devices: &Devices<'_>) -> String {
    match devices {
        Devices::Mmio(slots) => kernel_arguments(slots),
        // It finds them through ports.
        Devices::Pci { .. } => String::new(),
    }
}

/// Writes the command line with its final zero. The kernel may accept less than the room at
/// `CMDLINE`.
fn write_cmdline(ram: &GuestRam, cmdline: &str, kernel_max: usize) -> Result<(), BootError> {
    let (bytes, max) = (cmdline.len(), kernel_max.min(CMDLINE_BYTES_MAX));
    if bytes > max {
        return Err(BootError::CmdlineTooLong { bytes, max });
    }
    if cmdline.contains('\0') {
        return Err(BootError::CmdlineZeroByte);
    }
    let mut text = cmdline.as_bytes().to_vec();
    text.push(0);
    write(ram, CMDLINE, &text)
}

/// Writes `boot_params` at the offsets of zero-page.rst and boot.rst: the kernel's own setup
/// header, or a minimal one, with the fields that a boot loader fills in.
fn write_boot_params(
    ram: &GuestRam,
    machine: MachineKind,
    initrd: Initrd,
    (cmdline, root): (&str, Option<u64>),
    setup: &[u8],
) -> Result<(), BootError> {
    const ACPI_RSDP_ADDR: usize = 0x70;
    const E820_ENTRIES: usize = 0x1e8;
    const E820_TABLE: usize = 0x2d0;
    const BOOT_FLAG: usize = 0x1fe;
    const HEADER: usize = 0x202;
    const TYPE_OF_LOADER: usize = 0x210;
    const RAMDISK_IMAGE: usize = 0x218;
    const RAMDISK_SIZE: usize = 0x21c;
    const CMD_LINE_PTR: usize = 0x228;
    const CMDLINE_SIZE: usize = 0x238;
    let mut page = [0u8; PAGE_BYTES];
    let mut put = |at: usize, bytes: &[u8]| page[at..at + bytes.len()].copy_from_slice(bytes);
    put(ACPI_RSDP_ADDR, &root.unwrap_or(0).to_le_bytes());
    if setup.is_empty() {
        put(BOOT_FLAG, &0xaa55u16.to_le_bytes());
        put(HEADER, b"HdrS");
        put(CMDLINE_SIZE, &(cmdline.len() as u32).to_le_bytes());
    } else {
        put(bzimage::SETUP_HEADER, setup);
    }
    put(TYPE_OF_LOADER, &[0xff]);
    put(RAMDISK_IMAGE, &(initrd.gpa as u32).to_le_bytes());
    put(RAMDISK_SIZE, &(initrd.bytes as u32).to_le_bytes());
    put(CMD_LINE_PTR, &(CMDLINE as u32).to_le_bytes());
    let map = pvh::memory_map(ram, machine);
    put(E820_ENTRIES, &[map.len() as u8]);
    for (index, (start, len, kind)) in map.into_iter().enumerate() {
        let at = E820_TABLE + index * 20;
        put(at, &start.to_le_bytes());
        put(at + 8, &len.to_le_bytes());
        put(at + 16, &(kind as u32).to_le_bytes());
    }
    write(ram, ZERO_PAGE, &page)
}

fn write(ram: &GuestRam, gpa: u64, bytes: &[u8]) -> Result<(), BootError> {
    Ok(ram.write(gpa, bytes)?)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::BootSource;
    use crate::boot::{DEFAULT_CMDLINE, KernelSource};
    use crate::testing::{elf, empty_vm, file_with};

    fn source(kernel: &Path) -> KernelSource {
        let kernel = kernel.to_path_buf();
        KernelSource { kernel, initrd: None, cmdline: DEFAULT_CMDLINE.into(), acpi: Acpi::On }
    }

    fn refusal(kernel: &KernelSource) -> String {
        let vm = empty_vm(16, 1);
        vm.boot(&BootSource::Kernel(kernel.clone())).unwrap_err().to_string()
    }

    #[test]
    fn files_other_than_kernels_are_refused_by_name() {
        let missing = refusal(&source(Path::new("/nowhere/vmlinux")));
        assert!(
            missing.starts_with("cannot read kernel /nowhere/vmlinux: No such file"),
            "{missing}"
        );
        let folder = refusal(&source(Path::new("/")));
        assert!(folder.starts_with("cannot read kernel /: "), "{folder}");
        let text = file_with(&[b'x'; 500]);
        let text = refusal(&source(text.path()));
        assert!(text.contains("neither an ELF vmlinux nor a bzImage"), "{text}");
        let large = file_with(&elf(0x100_0000 - 1, b"code"));
        let large = refusal(&source(large.path()));
        assert!(large.starts_with("cannot boot the kernel "), "{large}");
    }

    #[test]
    fn command_lines_and_initrds_that_do_not_fit_are_refused() {
        let kernel = file_with(&elf(0x10_0000, b"code"));
        let mut long = source(kernel.path());
        long.cmdline = "x".repeat(2048);
        assert_eq!(
            refusal(&long),
            "the kernel command line has 2048 bytes, this kernel takes at most 2047"
        );
        long.cmdline = "a\0b".into();
        assert_eq!(refusal(&long), "the kernel command line contains a zero byte");
        let initrd = file_with(&[]);
        initrd.as_file().set_len(15 << 20).unwrap();
        let mut fat = source(kernel.path());
        fat.initrd = Some(PathBuf::from(initrd.path()));
        assert!(refusal(&fat).contains("no room for an initrd of 15728640 bytes"));
    }

    #[test]
    fn a_kernel_without_a_pvh_note_starts_in_64_bit_mode_with_its_boot_params() {
        // KVM on this host may emulate kernel mode instruction by instruction, so use plain
        // instructions:
        // mov eax, [rsi + 0x228]; mov dx, 0x4c0; out dx, eax; jmp $
        let code = [0x8b, 0x86, 0x28, 2, 0, 0, 0x66, 0xba, 0xc0, 4, 0xef, 0xeb, 0xfe];
        let kernel = file_with(&elf(0x10_0000, &code));
        let vm = empty_vm(16, 1);
        vm.boot(&BootSource::Kernel(source(kernel.path()))).unwrap();
        vm.resume().unwrap();
        let expected = crate::VmEvent::Doorbell { vcpu: 0, value: CMDLINE as u32 };
        assert_eq!(crate::testing::event(&vm), expected);
    }
}
