//! Starts firmware: an ELF image with a PVH note, such as EDK2's build for Cloud Hypervisor
//! (`OvmfPkg/CloudHv`) or `rust-hypervisor-firmware`. It finds the memory map and the ACPI tables in
//! `hvm_start_info`, and the guest's disks on the PCI bus.

use linux_loader::loader::elf::PvhBootCapability;

use super::acpi::{self, Devices};
use super::layout::CMDLINE;
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
    super::describe(vm).map_err(BootError::Memory)?;
    let root = acpi::write(ram, shape.vcpus, Devices::Pci)?;
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
