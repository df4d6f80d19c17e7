//! Configuration of a network device.

use std::fmt;
use std::fs::File;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::QUEUE_PAIRS_MAX;
use super::mac::MacAddress;
use super::tap::{self, Tap};
use crate::sys::net::NAME_BYTES_MAX;
use crate::virtio::DeviceError;
use crate::virtio::handed::HandedFiles;

/// Range of valid MTUs in bytes (virtio 1.2, 5.1.4.1).
const MTUS: std::ops::RangeInclusive<u16> = 68..=65535;

/// The guest's network connection on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetLink {
    /// An existing tap, which the operator has configured.
    Tap(String),
    /// A bridge: a tap is created for the guest, added to the bridge, and removed with the guest.
    Bridge {
        /// Name of the bridge.
        bridge: String,
        /// Name of the tap; `None` for any free name.
        tap: Option<String>,
    },
}

impl NetLink {
    /// Returns the connection by a tap that is made for `bridge`, which `tap` may name, or else by
    /// the existing `tap`; `None` if there is neither.
    pub fn new(bridge: Option<String>, tap: Option<String>) -> Option<Self> {
        match (bridge, tap) {
            (Some(bridge), tap) => Some(Self::Bridge { bridge, tap }),
            (None, tap) => tap.map(Self::Tap),
        }
    }

    /// Returns the interface that must exist: the bridge, or the existing tap.
    pub fn interface(&self) -> &str {
        match self {
            Self::Tap(name) | Self::Bridge { bridge: name, .. } => name,
        }
    }

    /// Checks that the names are valid interface names, on any host.
    ///
    /// # Errors
    /// [`DeviceError::Config`].
    pub fn check(&self) -> Result<(), DeviceError> {
        let names = match self {
            Self::Tap(tap) => [Some(tap), None],
            Self::Bridge { bridge, tap } => [Some(bridge), tap.as_ref()],
        };
        match names.into_iter().flatten().find(|name| !is_interface_name(name)) {
            None => Ok(()),
            Some(name) => {
                let shown: String = name.chars().take(32).collect();
                Err(DeviceError::Config(format!(
                    "the name of a network interface has 1 to {NAME_BYTES_MAX} letters, digits, `-`, `_` or `.`, not {shown:?}"
                )))
            }
        }
    }
}

impl fmt::Display for NetLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tap(tap) => write!(f, "tap {tap}"),
            Self::Bridge { bridge, tap: None } => write!(f, "bridge {bridge}"),
            Self::Bridge { bridge, tap: Some(tap) } => write!(f, "bridge {bridge} by tap {tap}"),
        }
    }
}

/// A network device of a guest. At the destination, a migration expects a bridge or tap of the same
/// name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetConfig {
    link: NetLink,
    mac: MacAddress,
    /// MTU in bytes, as measured when the guest was defined.
    mtu: u16,
    /// Whether it stands in for a card of the host, see [`NetConfig::with_standby`]. The shape's
    /// encoding has it apart.
    #[serde(skip)]
    standby: bool,
    /// Pairs of queues. The shape's encoding has them apart.
    #[serde(skip, default = "one_pair")]
    queue_pairs: u16,
    /// The tap, if another process has opened it.
    #[serde(skip)]
    handed: Option<HandedFiles>,
}

impl NetConfig {
    /// Creates the configuration of a device on `link`, which must exist on this host.
    ///
    /// # Errors
    /// [`DeviceError::Config`], [`DeviceError::Network`].
    pub fn new(link: NetLink, mac: MacAddress) -> Result<Self, DeviceError> {
        let lowest = *MTUS.start();
        let config = Self { link, mac, mtu: lowest, standby: false, queue_pairs: 1, handed: None };
        config.check()?;
        let mtu = tap::mtu_of(&config.link)?;
        Ok(Self { mtu: u16::try_from(mtu).unwrap_or(u16::MAX), ..config })
    }

    /// Creates the configuration of a device whose tap another process has opened, once for each
    /// pair of queues, see [`NetConfig::open_tap`]. `mtu` is that of `link`, in bytes.
    ///
    /// # Errors
    /// [`DeviceError::Config`].
    pub fn handed(
        link: NetLink,
        mac: MacAddress,
        mtu: u16,
        taps: Vec<File>,
    ) -> Result<Self, DeviceError> {
        let queue_pairs = u16::try_from(taps.len()).unwrap_or(u16::MAX);
        let handed = Some(HandedFiles::new(taps));
        let config = Self { link, mac, mtu, standby: false, queue_pairs, handed };
        config.check()?;
        Ok(config)
    }

    /// Returns the same device, as one half of a failover pair if `standby`: the guest's driver
    /// sends by a device of the host with the same address while it has one, and by this one
    /// otherwise (`VIRTIO_NET_F_STANDBY`, virtio 1.2, 5.1.3).
    #[must_use]
    pub fn with_standby(self, standby: bool) -> Self {
        Self { standby, ..self }
    }

    /// Returns whether it is one half of a failover pair.
    pub fn is_standby(&self) -> bool {
        self.standby
    }

    /// Returns the same device with this number of pairs of queues (see [`check_queue_pairs`]),
    /// which a guest's vCPUs use side by side.
    #[must_use]
    pub fn with_queue_pairs(self, queue_pairs: u16) -> Self {
        Self { queue_pairs, ..self }
    }

    /// Returns the number of pairs of queues.
    pub fn queue_pairs(&self) -> u16 {
        self.queue_pairs
    }

    /// Opens or creates the tap for a process that may not, once for each pair of queues, and sets
    /// it up. It has no carrier until that process takes it over; if it was created, it vanishes
    /// when it is closed everywhere.
    ///
    /// # Errors
    /// [`DeviceError::Network`].
    pub fn open_tap(&self) -> Result<Vec<File>, DeviceError> {
        Tap::open_for_another(self)
    }

    /// Returns the same device for this process's records: without a tap that it holds open.
    #[must_use]
    pub(crate) fn without_files(&self) -> Self {
        Self { handed: None, ..self.clone() }
    }

    /// Returns the tap's files, if another process has opened it.
    pub(super) fn handed_tap(&self) -> Option<&[Arc<File>]> {
        self.handed.as_ref().map(HandedFiles::files)
    }

    /// Returns the configuration of a device on a non-existent tap, for tests that do not open it.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn nowhere() -> Self {
        let mac = MacAddress::for_tests();
        let link = NetLink::Tap("nowhere".to_owned());
        Self { link, mac, mtu: 1500, standby: false, queue_pairs: 1, handed: None }
    }

    /// Returns the device's connection on the host.
    pub fn link(&self) -> &NetLink {
        &self.link
    }

    /// Returns the guest's MAC address.
    pub fn mac(&self) -> MacAddress {
        self.mac
    }

    /// Returns the MTU that the guest is told, in bytes.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Returns the same device on a bridge or tap of another name.
    #[must_use]
    pub fn renamed(&self, interface: &str) -> Self {
        let link = match &self.link {
            NetLink::Tap(_) => NetLink::Tap(interface.to_owned()),
            NetLink::Bridge { tap, .. } => {
                NetLink::Bridge { bridge: interface.to_owned(), tap: tap.clone() }
            }
        };
        Self { link, ..self.clone() }
    }

    pub(crate) fn check(&self) -> Result<(), DeviceError> {
        self.link.check()?;
        if !self.mac.is_possible() {
            let mac = self.mac;
            return Err(DeviceError::Config(format!(
                "no network device can have the address {mac}"
            )));
        }
        if !MTUS.contains(&self.mtu) {
            let (mtu, least) = (self.mtu, MTUS.start());
            return Err(DeviceError::Config(format!(
                "a network has an MTU of at least {least} bytes, not {mtu}"
            )));
        }
        check_queue_pairs(self.queue_pairs)
    }

    /// Checks that this host can connect the guest to its network, by trying it.
    pub(crate) fn check_host(&self) -> Result<(), DeviceError> {
        Tap::open(self).map(drop)
    }
}

/// Checks that a network device can have this number of pairs of queues.
///
/// # Errors
/// [`DeviceError::Config`].
pub fn check_queue_pairs(pairs: u16) -> Result<(), DeviceError> {
    match pairs {
        1..=QUEUE_PAIRS_MAX => Ok(()),
        _ => Err(DeviceError::Config(format!(
            "a network device has 1 to {QUEUE_PAIRS_MAX} pairs of queues, not {pairs}"
        ))),
    }
}

fn one_pair() -> u16 {
    1
}

/// Returns whether `name` is valid. Rejects names that the kernel would take for a pattern or that
/// are hard to type.
fn is_interface_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && name.bytes().all(is_plain)
        && ![".", ".."].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(link: NetLink) -> NetConfig {
        NetConfig { link, ..NetConfig::nowhere() }
    }

    #[test]
    fn a_name_is_one_that_the_kernel_takes_as_it_is() {
        for name in ["br0", "a", "tap-web_1.2", "abcdefghijklmno"] {
            config(NetLink::Tap(name.to_owned())).check().unwrap();
        }
        for name in ["", ".", "..", "a b", "a/b", "tap%d", "a:0", "abcdefghijklmnop", "ä", "a\0"] {
            let refused = config(NetLink::Tap(name.to_owned())).check().unwrap_err().to_string();
            assert!(refused.contains("the name of a network interface"), "{name:?}: {refused}");
            let bridge = NetLink::Bridge { bridge: "br0".to_owned(), tap: Some(name.to_owned()) };
            assert!(config(bridge).check().is_err(), "{name:?}");
        }
    }

    #[test]
    fn hostile_descriptions_are_refused() {
        let good = config(NetLink::Tap("tap0".to_owned()));
        assert!(NetConfig { mtu: 67, ..good.clone() }.check().is_err());
        for (pairs, is_possible) in [(0, false), (1, true), (8, true), (9, false)] {
            let checked = good.clone().with_queue_pairs(pairs).check();
            assert_eq!(checked.is_ok(), is_possible, "{pairs}");
        }
        // A peer could send this.
        let group: MacAddress = crate::codec::decode(&[1, 0, 0x5e, 0, 0, 1]).unwrap();
        let error = NetConfig { mac: group, ..good }.check().unwrap_err().to_string();
        assert!(error.contains("01:00:5e:00:00:01"), "{error}");
    }

    #[test]
    fn a_missing_link_is_named_with_a_remedy() {
        let mac = "52:54:00:12:34:56".parse().unwrap();
        let tap = NetConfig::new(NetLink::Tap("no-such-tap".to_owned()), mac).unwrap_err();
        assert!(tap.to_string().contains("no-such-tap: there is none; make it with"), "{tap}");
        let link = NetLink::Bridge { bridge: "no-such-br".to_owned(), tap: None };
        let bridge = NetConfig::new(link, mac).unwrap_err().to_string();
        assert!(bridge.contains("`ip link add no-such-br type bridge`"), "{bridge}");
        let link = NetLink::Bridge { bridge: "lo".to_owned(), tap: None };
        let bridge = NetConfig::new(link, mac).unwrap_err().to_string();
        assert!(bridge.contains("lo: it is not a bridge"), "{bridge}");
    }
}
