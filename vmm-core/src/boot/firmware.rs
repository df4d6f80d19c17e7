//! Starts firmware: an ELF image with a PVH note, such as EDK2's build for Cloud Hypervisor
//! (`OvmfPkg/CloudHv`). It finds the memory map and the ACPI tables in `hvm_start_info`, the SMBIOS
//! tables at a place of their own, and the guest's disks on the PCI bus.

use linux_loader::loader::elf::PvhBootCapability;

use super::acpi::{self, Devices};
use super::layout::{CMDLINE, FIRMWARE_SMBIOS};
use super::pvh::{self, Initrd};
use super::source::BootFile;
use super::{BootError, entry, kernel};
use crate::Vm;
use crate::devices::MachineKind;
use crate::error::Result;
use crate::memory::GuestRam;

/// Loads the firmware and the tables into the guest's memory and points vCPU 0 at the firmware.
pub(super) fn boot(vm: &Vm, file: &BootFile) -> Result<()> {
    let (ram, shape) = (vm.ram(), vm.shape());
    if shape.machine != MachineKind::Pci {
        return Err(refused(file, "it finds nothing on a machine without PCI").into());
    }
    let at = load(ram, file)?;
    super::identify(vm, FIRMWARE_SMBIOS).map_err(BootError::Memory)?;
    let root = acpi::write(ram, shape.vcpus, &Devices::on_pci(&shape, ram))?;
    ram.write(CMDLINE, b"\0").map_err(BootError::Memory)?;
    pvh::write_start_info(ram, shape.machine, Initrd::default(), Some(root))?;
    entry::in_protected_mode(vm, at)
}

/// Loads the firmware; returns its PVH entry.
fn load(ram: &GuestRam, file: &BootFile) -> Result<u64, BootError> {
    let mut open = file.read(ram.bytes())?;
    let low_end = ram.layout().regions()[0].bytes;
    let loaded =
        kernel::load_image(ram, low_end, &mut open).map_err(|reason| refused(file, &reason))?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok(entry.0),
        _ => {
            let reason = "it has no PVH entry: give EDK2's build for Cloud Hypervisor (CLOUDHV.fd)";
            Err(refused(file, reason))
        }
    }
}

fn refused(file: &BootFile, reason: &str) -> BootError {
    BootError::Firmware { path: file.path().to_path_buf(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use std::io::sink;
    use std::path::Path;

    use super::*;
    use crate::shape::VmShape;
    use crate::testing::{elf, event, file_with, shape, with_pvh_entry};
    use crate::{BootSource, VmEvent};

    fn vm_with(machine: MachineKind) -> Vm {
        Vm::create(&VmShape { machine, ..shape(16, 1) }, Box::new(sink())).unwrap()
    }

    fn refusal(machine: MachineKind, file: &Path) -> String {
        let source = BootSource::Firmware(file.to_path_buf());
        vm_with(machine).boot(&source).unwrap_err().to_string()
    }

    #[test]
    fn firmware_starts_in_protected_mode_with_the_memory_map() {
        // mov eax, [ebx]; mov dx, 0x4c0; out dx, eax; jmp $
        let code = [0x8b, 0x03, 0x66, 0xba, 0xc0, 4, 0xef, 0xeb, 0xfe];
        let file = file_with(&with_pvh_entry(0x10_0000, &code));
        let vm = vm_with(MachineKind::Pci);
        vm.boot(&BootSource::Firmware(file.path().to_path_buf())).unwrap();
        vm.resume().unwrap();
        assert_eq!(event(&vm), VmEvent::Doorbell { vcpu: 0, value: 0x336e_c578 });
    }

    #[test]
    fn files_other_than_firmware_are_refused_by_name() {
        let missing = refusal(MachineKind::Pci, Path::new("/nowhere/CLOUDHV.fd"));
        assert!(missing.starts_with("cannot read firmware /nowhere/CLOUDHV.fd: "), "{missing}");
        let text = file_with(&[b'x'; 500]);
        let text = refusal(MachineKind::Pci, text.path());
        assert!(text.starts_with("cannot boot the firmware "), "{text}");
        let kernel = file_with(&elf(0x10_0000, b"code"));
        let kernel = refusal(MachineKind::Pci, kernel.path());
        assert!(
            kernel.contains("no PVH entry: give EDK2's build for Cloud Hypervisor"),
            "{kernel}"
        );
        let file = file_with(&with_pvh_entry(0x10_0000, b"code"));
        let without_pci = refusal(MachineKind::Mmio, file.path());
        assert!(without_pci.contains("a machine without PCI"), "{without_pci}");
    }
}
