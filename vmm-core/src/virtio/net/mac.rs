//! MAC addresses of network devices.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::sys::file;

/// The MAC address of one network device: neither zero nor a group address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MacAddress([u8; 6]);

/// A text that is not a valid MAC address of a network device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a network device's address: write six bytes as 52:54:00:12:34:56, the first of them even"
)]
pub struct MacError(String);

impl MacAddress {
    /// Returns a random, locally administered address (IEEE 802, 8.2). The chance that it equals a
    /// given one is one in seventy trillion.
    ///
    /// # Errors
    /// If the host has no entropy yet.
    pub fn random() -> std::io::Result<Self> {
        let mut bytes = [0; 6];
        file::fill_random(&mut bytes)?;
        bytes[0] = bytes[0] & !1 | 2;
        Ok(Self(bytes))
    }

    /// Returns a fixed address for tests.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn for_tests() -> Self {
        Self([0x52, 0x54, 0, 0x12, 0x34, 0x56])
    }

    /// Returns the bytes in wire order.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// Returns whether a device can have this address: a peer may have sent any bytes.
    pub(super) fn is_possible(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for MacAddress {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let wrong = || MacError(text.chars().take(32).collect());
        let byte = |part: &str| match part.len() {
            1 | 2 if !part.starts_with('+') => u8::from_str_radix(part, 16).map_err(|_| wrong()),
            _ => Err(wrong()),
        };
        let bytes: Vec<u8> = text.split(':').map(byte).collect::<Result<_, _>>()?;
        let address = Self(bytes.try_into().map_err(|_| wrong())?);
        if address.is_possible() { Ok(address) } else { Err(wrong()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_as_it_is_written() {
        let address: MacAddress = "52:54:0:aB:cd:ef".parse().unwrap();
        assert_eq!(address.to_string(), "52:54:00:ab:cd:ef");
    }

    #[test]
    fn malformed_and_group_addresses_are_refused() {
        for text in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "52-54-00-12-34-56"] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
        for text in ["01:00:5e:00:00:01", "00:00:00:00:00:00", "52:54:00:12:34:+6", "x:1:1:1:1:1"] {
            assert!(text.parse::<MacAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn chosen_addresses_differ_and_are_administered_locally() {
        let [one, two] = [(); 2].map(|()| MacAddress::random().unwrap());
        assert_ne!(one, two);
        assert!(one.is_possible() && one.bytes()[0] & 2 == 2, "{one}");
    }
}
