//! A device of the host, opened for a guest.

use std::fmt::Display;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::pci::PciAddress;

/// Where the host describes its PCI devices.
const DEVICES: &str = "/sys/bus/pci/devices";
/// The link from a device to its IOMMU group.
const GROUP: &str = "iommu_group";
/// Where the devices of VFIO are.
const VFIO: &str = "/dev/vfio";
/// The driver that a device must have.
const DRIVER: &str = "vfio-pci";

/// Why a device of the host cannot be given to a guest.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the host's device {address}: {why}")]
pub struct HostDeviceError {
    /// Its address on the host.
    pub address: PciAddress,
    /// What stands in the way.
    pub why: String,
    /// Whether that is another process, which has it open.
    pub is_in_use: bool,
}

impl HostDeviceError {
    /// Returns the error for a device that no other process has open.
    pub(super) fn new(address: PciAddress, why: impl Display) -> Self {
        Self { address, why: why.to_string(), is_in_use: false }
    }

    /// Returns the error for a device of which `path` cannot be opened.
    fn cannot_open(address: PciAddress, path: &Path, error: &io::Error) -> Self {
        let is_in_use = error.kind() == io::ErrorKind::ResourceBusy;
        Self { address, why: cannot_open(path, error), is_in_use }
    }
}

/// A device of the host, opened for a guest. A process other than the guest's may open it.
#[derive(Debug)]
pub struct HostDevice {
    pub(super) address: PciAddress,
    /// None if the guest has its IOMMU group already, which can be opened once.
    pub(super) files: Option<GroupFiles>,
}

/// An open IOMMU group, and a container for it if it is the guest's first.
#[derive(Debug)]
pub(super) struct GroupFiles {
    pub(super) container: File,
    pub(super) group: File,
}

impl HostDevice {
    /// Opens the device at `address`, whose driver must be vfio-pci, for a guest that has the
    /// devices `own` of its host.
    ///
    /// # Errors
    /// [`HostDeviceError`], worded for the operator.
    pub fn open(address: PciAddress, own: &[PciAddress]) -> Result<Self, HostDeviceError> {
        let group = ready_group(address, Path::new(DEVICES))
            .map_err(|why| HostDeviceError::new(address, why))?;
        if own.iter().any(|own| Self::share_a_group(address, *own)) {
            return Ok(Self { address, files: None });
        }
        let open = |path: PathBuf| {
            let opened = OpenOptions::new().read(true).write(true).open(&path);
            opened.map_err(|error| HostDeviceError::cannot_open(address, &path, &error))
        };
        let container = open(Path::new(VFIO).join("vfio"))?;
        let group = open(Path::new(VFIO).join(group))?;
        Ok(Self { address, files: Some(GroupFiles { container, group }) })
    }

    /// Opens the first devices of a guest.
    ///
    /// # Errors
    /// As [`HostDevice::open`].
    pub fn open_all(addresses: &[PciAddress]) -> Result<Vec<Self>, HostDeviceError> {
        let before = |index| &addresses[..index];
        addresses.iter().enumerate().map(|(index, it)| Self::open(*it, before(index))).collect()
    }

    /// Returns whether two devices are in one IOMMU group, so that one guest alone can have them.
    pub fn share_a_group(one: PciAddress, other: PciAddress) -> bool {
        let [one, other] = [one, other].map(|it| link_of(it, Path::new(DEVICES), GROUP));
        one.is_some() && one == other
    }

    /// Checks that the device at `address` is in the hands of vfio-pci, and that this process may
    /// open it. Does not open it: only one process can have it open.
    ///
    /// # Errors
    /// [`HostDeviceError`], worded for the operator.
    pub fn expect_ready(address: PciAddress) -> Result<(), HostDeviceError> {
        let group = ready_group(address, Path::new(DEVICES))
            .map_err(|why| HostDeviceError::new(address, why))?;
        for file in ["vfio", &group] {
            let path = Path::new(VFIO).join(file);
            let found = access(&path, Access::READ_OK | Access::WRITE_OK);
            found.map_err(|error| HostDeviceError::cannot_open(address, &path, &error.into()))?;
        }
        Ok(())
    }

    /// Takes the device from its files, as [`HostDevice::into_files`] returned them.
    ///
    /// # Errors
    /// [`HostDeviceError`] if they are neither two nor none.
    pub fn handed(address: PciAddress, files: Vec<File>) -> Result<Self, HostDeviceError> {
        if files.is_empty() {
            return Ok(Self { address, files: None });
        }
        match <[File; 2]>::try_from(files) {
            Ok([container, group]) => {
                Ok(Self { address, files: Some(GroupFiles { container, group }) })
            }
            Err(files) => {
                let why =
                    format!("{} files came with it, not its container and group", files.len());
                Err(HostDeviceError::new(address, why))
            }
        }
    }

    /// Returns its files, to pass them to the guest's process.
    pub fn into_files(self) -> Vec<File> {
        self.files.map_or_else(Vec::new, |files| vec![files.container, files.group])
    }

    /// The device's address on the host.
    pub fn address(&self) -> PciAddress {
        self.address
    }
}

/// Returns the name of the IOMMU group, a number, of a device in the hands of vfio-pci.
fn ready_group(address: PciAddress, devices: &Path) -> Result<String, String> {
    if !devices.join(address.to_string()).exists() {
        return Err("the host has no such device (`lspci -D` lists them)".to_owned());
    }
    let Some(group) = link_of(address, devices, GROUP) else {
        return Err(
            "the host has no IOMMU for it: turn on VT-d or AMD-Vi in the host's firmware, and give \
             its kernel `intel_iommu=on` on Intel processors"
                .to_owned(),
        );
    };
    match link_of(address, devices, "driver") {
        // Variants for one make are called mlx5-vfio-pci and the like.
        Some(driver) if driver.contains("vfio") => {}
        Some(driver) => {
            return Err(format!(
                "the host's own driver {driver} has it: `driverctl --nosave set-override {address} {DRIVER}` gives it away, \
                 as does `virsh nodedev-detach`"
            ));
        }
        None => {
            return Err(format!(
                "no driver has it: `modprobe {DRIVER}`, then `driverctl --nosave set-override {address} {DRIVER}`"
            ));
        }
    }
    Ok(group)
}

/// Returns the name of what a link of the device leads to.
fn link_of(address: PciAddress, devices: &Path, link: &str) -> Option<String> {
    let target = fs::read_link(devices.join(address.to_string()).join(link)).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

fn cannot_open(path: &Path, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::ResourceBusy => format!(
            "{path} is in use: a guest has the device or another one of its IOMMU group, all of which go \
             to one guest"
        ),
        _ => format!("cannot open {path}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let (folder, address) = (tempfile::tempdir().unwrap(), "0000:03:00.0".parse().unwrap());
        let group = || ready_group(address, folder.path());
        assert!(group().unwrap_err().contains("no such device"));
        let device = folder.path().join("0000:03:00.0");
        fs::create_dir(&device).unwrap();
        assert!(group().unwrap_err().contains("no IOMMU"));
        symlink("../../../kernel/iommu_groups/17", device.join("iommu_group")).unwrap();
        assert!(group().unwrap_err().contains("modprobe vfio-pci"));
        symlink("../../../bus/pci/drivers/e1000e", device.join("driver")).unwrap();
        let driver = group().unwrap_err();
        assert!(driver.contains("e1000e") && driver.contains("0000:03:00.0"), "{driver}");
        fs::remove_file(device.join("driver")).unwrap();
        symlink("../../../bus/pci/drivers/vfio-pci", device.join("driver")).unwrap();
        assert_eq!(group().unwrap(), "17");
    }

    #[test]
    fn a_device_has_both_files_or_none() {
        let address = "03:00.0".parse().unwrap();
        let null = || File::open("/dev/null").unwrap();
        assert!(HostDevice::handed(address, vec![null()]).is_err());
        for count in [0, 2] {
            let files = std::iter::repeat_with(null).take(count).collect();
            let device = HostDevice::handed(address, files).unwrap();
            assert_eq!(device.into_files().len(), count);
        }
    }
}
