//! The list of a guest's devices: part of its [`crate::VmShape`], from which any host creates the
//! same devices.

use serde::{Deserialize, Serialize};

use super::balloon::{BalloonDevice, FreePages};
use super::block::{BlockConfig, BlockDevice, SeedConfig, SeedDevice};
use super::device::Device;
use super::error::DeviceError;
use super::net::{NetConfig, NetDevice};
use super::rng::RngDevice;
use super::vsock::{VsockDevice, check_cid};
use crate::devices::MachineKind;

/// A device of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceConfig {
    /// A source of entropy.
    Rng,
    /// A disk: a file or block device of the host.
    Block(BlockConfig),
    /// A balloon, and how it learns of free pages; at most one per guest.
    Balloon(FreePages),
    /// Sockets between the guest and its host; at most one such device per guest.
    Vsock {
        /// The guest's address, 3 to 2^32 - 2.
        cid: u32,
    },
    /// A network device.
    Net(NetConfig),
    /// A disk of documents that the guest reads when it boots; at most one per guest.
    Seed(SeedConfig),
}

impl DeviceConfig {
    /// Checks that the configuration makes sense, without inspecting this host.
    ///
    /// # Errors
    /// [`DeviceError::Config`].
    fn check(&self) -> Result<(), DeviceError> {
        match self {
            Self::Rng | Self::Balloon(_) => Ok(()),
            Self::Vsock { cid } => check_cid(*cid),
            Self::Block(config) => config.check(),
            Self::Net(config) => config.check(),
            Self::Seed(config) => config.check(),
        }
    }

    /// Checks that this host has what the device needs, without keeping anything open.
    ///
    /// # Errors
    /// [`DeviceError`], worded for the operator.
    pub(crate) fn check_host(&self) -> Result<(), DeviceError> {
        match self {
            Self::Rng | Self::Balloon(_) | Self::Vsock { .. } | Self::Seed(_) => Ok(()),
            Self::Block(config) => config.check_host(),
            Self::Net(config) => config.check_host(),
        }
    }

    /// Returns whether the device can be inserted while its guest runs.
    pub(crate) fn may_be_inserted(&self) -> bool {
        matches!(self, Self::Block(_) | Self::Net(_))
    }

    /// Returns the same device for this process's records: without files that it holds open.
    #[must_use]
    pub(crate) fn without_files(&self) -> Self {
        match self {
            Self::Block(disk) => Self::Block(disk.without_files()),
            Self::Net(net) => Self::Net(net.without_files()),
            other => other.clone(),
        }
    }

    /// Creates the device.
    ///
    /// # Errors
    /// As [`DeviceConfig::check_host`].
    pub(crate) fn create(&self) -> Result<Box<dyn Device>, DeviceError> {
        Ok(match self {
            Self::Rng => Box::new(RngDevice::default()),
            Self::Block(config) => Box::new(BlockDevice::open(config)?),
            Self::Balloon(free_pages) => Box::new(BalloonDevice::new(*free_pages)),
            Self::Vsock { cid } => Box::new(VsockDevice::new(*cid)?),
            Self::Net(config) => Box::new(NetDevice::open(config)?),
            Self::Seed(config) => Box::new(SeedDevice::new(config)?),
        })
    }
}

/// Checks that a guest of this machine can have these devices together.
///
/// # Errors
/// [`DeviceError::Config`].
pub(crate) fn check(devices: &[DeviceConfig], machine: MachineKind) -> Result<(), DeviceError> {
    let (count, max) = (devices.len(), machine.devices_max());
    if count > max {
        let what = format!("a guest of machine {machine} has at most {max} devices, not {count}");
        return Err(DeviceError::Config(what));
    }
    let count = |is: fn(&&DeviceConfig) -> bool| devices.iter().filter(is).count();
    if count(|device| matches!(device, DeviceConfig::Balloon(_))) > 1 {
        return Err(DeviceError::Config("a guest has one balloon at most".to_owned()));
    }
    if count(|device| matches!(device, DeviceConfig::Vsock { .. })) > 1 {
        return Err(DeviceError::Config("a guest has one vsock device at most".to_owned()));
    }
    if count(|device| matches!(device, DeviceConfig::Seed(_))) > 1 {
        return Err(DeviceError::Config("a guest has one seed disk at most".to_owned()));
    }
    devices.iter().try_for_each(DeviceConfig::check)
}

#[cfg(test)]
mod tests {
    use super::check as check_on;
    use super::*;

    fn check(devices: &[DeviceConfig]) -> Result<(), DeviceError> {
        check_on(devices, MachineKind::Mmio)
    }

    #[test]
    fn a_guest_has_no_more_devices_than_slots() {
        for (machine, max) in [(MachineKind::Mmio, 12), (MachineKind::Pci, 31)] {
            check_on(&vec![DeviceConfig::Rng; max], machine).unwrap();
            let error = check_on(&vec![DeviceConfig::Rng; max + 1], machine).unwrap_err();
            let expected =
                format!("a guest of machine {machine} has at most {max} devices, not {}", max + 1);
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn a_guest_has_one_balloon() {
        for other in [FreePages::Reported, FreePages::Hinted].map(DeviceConfig::Balloon) {
            check(&[DeviceConfig::Rng, other.clone()]).unwrap();
            let error = check(&[DeviceConfig::Balloon(FreePages::Reported), other]).unwrap_err();
            assert_eq!(error.to_string(), "a guest has one balloon at most");
        }
    }

    #[test]
    fn a_guest_has_one_address_that_a_guest_can_have() {
        check(&[DeviceConfig::Vsock { cid: 3 }]).unwrap();
        for cid in [0, 1, 2, u32::MAX] {
            let error = check(&[DeviceConfig::Vsock { cid }]).unwrap_err();
            assert_eq!(error.to_string(), format!("a guest's cid is 3 to 4294967294, not {cid}"));
        }
        let error = check(&[3, 4].map(|cid| DeviceConfig::Vsock { cid })).unwrap_err();
        assert_eq!(error.to_string(), "a guest has one vsock device at most");
    }
}
