//! `--net bridge=NAME[,tap=NAME][,mac=ADDRESS][,queues=N][,standby]`, `--net tap=NAME[,...]` and
//! `[[net]]` in a guest's file.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer};
use vmm_core::VmShape;
use vmm_core::virtio::net::{MacAddress, NetLink, check_queue_pairs};

use super::fault::Fault;
use super::options::each_once;

/// A network device as typed: a bridge that it is to be on, or a tap that exists, or both for a tap
/// to be made.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NetArg {
    /// The bridge that a tap is made for.
    #[serde(default)]
    pub(crate) bridge: Option<String>,
    /// With a bridge, the name of the tap to be made; otherwise a tap that exists.
    #[serde(default)]
    pub(crate) tap: Option<String>,
    /// The guest's address; one is chosen when none was given.
    #[serde(default, deserialize_with = "mac")]
    pub(crate) mac: Option<MacAddress>,
    /// Pairs of queues; one when absent.
    #[serde(default)]
    pub(crate) queues: Option<u16>,
    /// Whether the guest sends by a device of its host with the same address while it has one.
    #[serde(default)]
    pub(crate) standby: bool,
}

fn mac<'de, D: Deserializer<'de>>(from: D) -> Result<Option<MacAddress>, D::Error> {
    String::deserialize(from)?.parse().map(Some).map_err(serde::de::Error::custom)
}

/// What a network device must say.
const NEEDS_LINK: &str = "a network device needs a bridge or a tap: bridge=NAME, tap=NAME";

impl NetArg {
    /// Where frames come out on the host.
    ///
    /// # Errors
    /// It does not say.
    pub(crate) fn link(&self) -> Result<NetLink, &'static str> {
        NetLink::new(self.bridge.clone(), self.tap.clone()).ok_or(NEEDS_LINK)
    }

    /// Whether any host could have such a network, the guest's number `index`.
    ///
    /// # Errors
    /// What no host can have.
    pub(crate) fn check(&self, index: usize) -> Result<(), Fault> {
        let fault = |key, what| Fault::of_item(("net", index), key, what);
        let link = self.link().map_err(|what| fault("bridge", what.to_owned()))?;
        self.check_standby().map_err(|what| fault("standby", what.to_owned()))?;
        self.check_queues().map_err(|what| fault("queues", what))?;
        let key = if self.bridge.is_some() { "bridge" } else { "tap" };
        link.check().map_err(|error| fault(key, error.to_string()))
    }

    fn check_queues(&self) -> Result<(), String> {
        self.queues.map_or(Ok(()), check_queue_pairs).map_err(|error| error.to_string())
    }

    /// One half of a failover pair has the address of the other.
    fn check_standby(&self) -> Result<(), &'static str> {
        if self.standby && self.mac.is_none() {
            return Err("standby needs mac=ADDRESS, that of the card which it stands in for");
        }
        Ok(())
    }
}

impl FromStr for NetArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut net = Self::default();
        for option in each_once(text.split(','))? {
            match option.split_once('=') {
                Some(("bridge", name)) => net.bridge = Some(name.to_owned()),
                Some(("tap", name)) => net.tap = Some(name.to_owned()),
                Some(("mac", mac)) => {
                    net.mac = Some(mac.parse().map_err(|error| format!("{error}"))?);
                }
                Some(("queues", pairs)) => {
                    let pairs = pairs.parse();
                    net.queues =
                        Some(pairs.map_err(|_| format!("`{option}`: queues=N takes a number"))?);
                }
                None if option == "standby" => net.standby = true,
                _ => {
                    return Err(format!(
                        "`{option}` is not an option of a network device: bridge=NAME, tap=NAME, mac=ADDRESS, queues=N, standby"
                    ));
                }
            }
        }
        net.check_standby()?;
        net.check_queues()?;
        let link = net.link().map_err(str::to_owned)?;
        link.check().map_err(|error| error.to_string())?;
        Ok(net)
    }
}

/// `--net-map FROM=TO`: another name for a bridge or a tap.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct NetRename {
    /// What guests call it.
    pub(crate) from: String,
    /// What it is called on this host.
    pub(crate) to: String,
}

impl NetRename {
    /// Gives the network devices of `shape` what they are called on this host.
    pub(crate) fn apply(renames: &[Self], shape: &mut VmShape) {
        for net in shape.nets_mut() {
            let named = |rename: &&Self| rename.from == net.link().interface();
            if let Some(rename) = renames.iter().find(named) {
                *net = net.renamed(&rename.to);
            }
        }
    }
}

/// Which bridges and taps of this host guests from other hosts may use.
#[derive(Debug, Clone, Default)]
pub(crate) struct NetAllowed(Vec<String>);

impl NetAllowed {
    /// These alone; all of them when there is none.
    pub(crate) fn new(names: Vec<String>) -> Self {
        Self(names)
    }

    /// The names; none when all may be used.
    pub(crate) fn names(&self) -> &[String] {
        &self.0
    }

    /// Whether a guest with these networks, by the names of this host, may be here.
    ///
    /// # Errors
    /// It may not, with the way out.
    pub(crate) fn permit<'a>(
        &self,
        mut links: impl Iterator<Item = &'a NetLink>,
    ) -> Result<(), String> {
        let is_other = |link: &&NetLink| !self.0.iter().any(|name| name == link.interface());
        match links.find(is_other).filter(|_| !self.0.is_empty()) {
            None => Ok(()),
            Some(link) => Err(format!(
                "the destination takes guests with network devices only at {}, and this guest has one at {}: start its node with \
                 another --net-allow, or with --net-map {}=NAME",
                self.0.join(", "),
                link.interface(),
                link.interface()
            )),
        }
    }
}

/// The name of a bridge or tap.
///
/// # Errors
/// No interface can have it.
pub(crate) fn interface_name(text: &str) -> Result<String, String> {
    let link = NetLink::Tap(text.to_owned());
    link.check().map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

impl fmt::Display for NetRename {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.from, self.to)
    }
}

impl FromStr for NetRename {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (from, to) = text.split_once('=').ok_or("write it as FROM=TO")?;
        Ok(Self { from: interface_name(from)?, to: interface_name(to)? })
    }
}

impl TryFrom<String> for NetRename {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Reads the names of bridges and taps, as [`interface_name`] does.
///
/// # Errors
/// If no interface can have one of the names.
pub(crate) fn interface_names<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let names = Vec::<String>::deserialize(from)?;
    let checked = names.iter().map(|name| interface_name(name));
    checked.collect::<Result<_, _>>().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> NetArg {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_device_is_on_a_bridge_or_at_a_tap() {
        let bridge = read("bridge=br0,mac=52:54:00:00:00:01");
        assert_eq!(bridge.link(), Ok(NetLink::Bridge { bridge: "br0".to_owned(), tap: None }));
        assert_eq!(bridge.mac.unwrap().to_string(), "52:54:00:00:00:01");
        let half = read("tap=t0,standby,mac=52:54:00:00:00:01");
        assert!(half.standby && !bridge.standby);
        assert_eq!((read("tap=t0,queues=8").queues, bridge.queues), (Some(8), None));
        assert_eq!(read("tap=t0").link(), Ok(NetLink::Tap("t0".to_owned())));
        let named = NetLink::Bridge { bridge: "br0".to_owned(), tap: Some("t0".to_owned()) };
        assert_eq!(read("tap=t0,bridge=br0").link(), Ok(named));
    }

    #[test]
    fn another_name_is_written_as_it_is_read() {
        let rename: NetRename = "br0=lan".parse().unwrap();
        assert_eq!((rename.from.as_str(), rename.to_string().as_str()), ("br0", "br0=lan"));
        for text in ["br0", "=lan", "br0=", "br0=a/b"] {
            assert!(text.parse::<NetRename>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_guest_has_only_permitted_networks() {
        let links = |nets: &[&str]| nets.iter().map(|net| read(net).link().unwrap()).collect();
        let permits = |names: &[&str], links: &Vec<NetLink>| {
            NetAllowed::new(names.iter().map(|&it| it.into()).collect()).permit(links.iter())
        };
        let two = links(&["bridge=lan,tap=t1", "tap=t0"]);
        for names in [&[][..], &["t0", "lan"]] {
            permits(names, &two).unwrap();
        }
        permits(&["dmz"], &links(&[])).unwrap();
        // The tap of a bridge is made, so its name says nothing of where it leads.
        for names in [&["lan"][..], &["t0"], &["t0", "t1"], &["LAN", "t0"]] {
            let refused = permits(names, &two).unwrap_err();
            assert!(refused.contains("--net-allow") && refused.contains(names[0]), "{refused}");
        }
        assert!(interface_name("a/b").is_err());
    }

    #[test]
    fn invalid_network_devices_are_refused() {
        let refused = |text: &str| text.parse::<NetArg>().unwrap_err();
        assert!(refused("").contains("bridge=NAME"));
        assert!(refused("br0").contains("`br0`"));
        assert!(refused("mac=52:54:00:00:00:01").contains("a bridge or a tap"));
        assert!(refused("tap=t0,mac=01:00:5e:00:00:01").contains("01:00:5e"));
        assert!(refused("tap=tap%d").contains("tap%d"));
        assert!(refused("tap=t0,tap=t1").contains("`tap` is given twice"));
        assert!(refused("tap=t0,standby").contains("standby needs mac=ADDRESS"));
        for (queues, what) in [("0", "1 to 8"), ("9", "not 9"), ("two", "`queues=two`"), ("", "N")]
        {
            let text = format!("tap=t0,queues={queues}");
            assert!(refused(&text).contains(what), "{text}: {}", refused(&text));
        }
        assert!(refused("bridge=").contains("name of a network interface"));
    }
}
