//! `vfio=ADDRESS`: a device of the host for a guest.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use vmm_core::PciAddress;

/// A device of the host, by its PCI address there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct HostDeviceArg {
    /// Its address on the host.
    pub(crate) address: PciAddress,
}

impl FromStr for HostDeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let address = text.strip_prefix("vfio=").ok_or_else(|| {
            format!("`{text}` is no device of the host: give vfio=ADDRESS, like vfio=0000:03:00.0")
        })?;
        Ok(Self { address: address.parse().map_err(|error| format!("{error}"))? })
    }
}

impl TryFrom<String> for HostDeviceArg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for HostDeviceArg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vfio={}", self.address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_by_its_address() {
        let device: HostDeviceArg = "vfio=03:00.0".parse().unwrap();
        assert_eq!(device.to_string(), "vfio=0000:03:00.0");
        for text in ["", "03:00.0", "vfio=", "vfio=eth0", "vfio=0000:03:00.0,x"] {
            let refused = text.parse::<HostDeviceArg>().unwrap_err();
            assert!(refused.contains("03:00.0"), "{refused}");
        }
    }
}
