//! Which devices a guest has: a part of its [`crate::VmShape`], from which the same devices are created
//! on any host.

use serde::{Deserialize, Serialize};

use super::balloon::BalloonDevice;
use super::block::{BlockConfig, BlockDevice};
use super::device::Device;
use super::error::DeviceError;
use super::net::{NetConfig, NetDevice};
use super::rng::RngDevice;
use crate::devices::mmio::SLOTS_MAX;

/// A device of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceConfig {
    /// A source of entropy.
    Rng,
    /// A disk.
    Block(BlockConfig),
    /// A balloon, with free page reporting; a guest has one at most.
    Balloon,
    /// A network device.
    Net(NetConfig),
}

impl DeviceConfig {
    /// Checks that the description makes sense, without looking at this host.
    ///
    /// # Errors
    /// [`DeviceError::Config`].
    fn check(&self) -> Result<(), DeviceError> {
        match self {
            Self::Rng | Self::Balloon => Ok(()),
            Self::Block(config) => config.check(),
            Self::Net(config) => config.check(),
        }
    }

    /// Checks that this host has what the device needs. Nothing of it stays.
    ///
    /// # Errors
    /// [`DeviceError`], worded for the operator.
    pub(crate) fn check_host(&self) -> Result<(), DeviceError> {
        match self {
            Self::Rng | Self::Balloon => Ok(()),
            Self::Block(config) => config.check_host(),
            Self::Net(config) => config.check_host(),
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
            Self::Balloon => Box::new(BalloonDevice::default()),
            Self::Net(config) => Box::new(NetDevice::open(config)?),
        })
    }
}

/// Checks that a guest can have these devices together.
///
/// # Errors
/// [`DeviceError::Config`].
pub(crate) fn check(devices: &[DeviceConfig]) -> Result<(), DeviceError> {
    if devices.len() > SLOTS_MAX {
        let count = devices.len();
        return Err(DeviceError::Config(format!(
            "a guest has at most {SLOTS_MAX} devices, not {count}"
        )));
    }
    if devices.iter().filter(|device| **device == DeviceConfig::Balloon).count() > 1 {
        return Err(DeviceError::Config("a guest has one balloon at most".to_owned()));
    }
    devices.iter().try_for_each(DeviceConfig::check)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_has_no_more_devices_than_slots() {
        check(&vec![DeviceConfig::Rng; SLOTS_MAX]).unwrap();
        let error = check(&vec![DeviceConfig::Rng; SLOTS_MAX + 1]).unwrap_err();
        assert_eq!(error.to_string(), "a guest has at most 12 devices, not 13");
    }

    #[test]
    fn a_guest_has_one_balloon() {
        check(&[DeviceConfig::Balloon, DeviceConfig::Rng]).unwrap();
        let error = check(&[DeviceConfig::Balloon, DeviceConfig::Balloon]).unwrap_err();
        assert_eq!(error.to_string(), "a guest has one balloon at most");
    }
}
