//! Addresses of PCI functions.

use std::fmt;
use std::str::FromStr;

/// Most devices on a bus, and functions of a device.
const DEVICES: u8 = 32;
const FUNCTIONS: u8 = 8;

/// The address of a PCI function, of the host or of a guest, as `lspci -D` has it: `0000:03:00.0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl PciAddress {
    /// Returns the address of the device with this number, below 32, on a guest's only bus.
    pub(crate) fn in_guest(device: usize) -> Self {
        Self { domain: 0, bus: 0, device: device as u8, function: 0 }
    }

    /// Returns the number of the device on its bus.
    pub(crate) fn device(self) -> usize {
        self.device.into()
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// A text that is no address of a PCI function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address of a PCI device: give one as `lspci -D` prints it, like 0000:03:00.0")]
pub struct NoPciAddress(String);

impl FromStr for PciAddress {
    type Err = NoPciAddress;

    /// Reads `0000:03:00.0`, or `03:00.0` in domain 0.
    fn from_str(text: &str) -> Result<Self, NoPciAddress> {
        let read = || {
            let digits = |text: &str, most: usize| {
                let is_number = (1..=most).contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_hexdigit());
                is_number.then(|| u32::from_str_radix(text, 16).ok()).flatten()
            };
            let (place, function) = text.rsplit_once('.')?;
            let (place, device) = place.rsplit_once(':')?;
            let (domain, bus) = place.rsplit_once(':').unwrap_or(("0", place));
            let address = Self {
                domain: digits(domain, 8)?,
                bus: digits(bus, 2)? as u8,
                device: digits(device, 2)? as u8,
                function: digits(function, 1)? as u8,
            };
            (address.device < DEVICES && address.function < FUNCTIONS).then_some(address)
        };
        read().ok_or_else(|| NoPciAddress(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written_as_lspci_has_them() {
        for (text, full) in [
            ("0000:03:00.0", "0000:03:00.0"),
            ("03:1f.7", "0000:03:1f.7"),
            ("10000:E1:00.0", "10000:e1:00.0"),
            ("0:0:1.0", "0000:00:01.0"),
        ] {
            let address: PciAddress = text.parse().unwrap();
            assert_eq!(address.to_string(), full);
            assert_eq!(full.parse(), Ok(address));
        }
        assert_eq!(PciAddress::in_guest(31).to_string(), "0000:00:1f.0");
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "03",
            "03:00",
            "03:00.8",
            "03:20.0",
            "100:00.0",
            "0000:03:00.0.0",
            "+3:00.0",
            "/../03:00.0",
            "0000:03:00.0 ",
            "123456789:03:00.0",
            "a:b:c:d.0",
            ":03:00.0",
        ] {
            assert!(text.parse::<PciAddress>().is_err(), "{text}");
        }
    }
}
