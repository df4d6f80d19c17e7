//! The destination of a migration, and ports of a node, as a user writes them.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use migrate::quic::endpoint::Peer;
use serde::Deserialize;

/// The UDP port on which nodes listen.
pub(crate) const NODE_PORT: u16 = 4950;
/// Longest wait for the name service to return an address.
const LOOKUP_TIME: Duration = Duration::from_secs(10);

/// A parsed `HOST[:PORT]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Destination {
    /// Name or address of the host. The host's certificate must name it, unless the user names
    /// another.
    pub(crate) host: String,
    /// UDP port of the node on that host.
    pub(crate) port: u16,
}

impl Destination {
    /// Parses `HOST`, `HOST:PORT`, `[IPv6]:PORT` or a bare IPv6 address.
    ///
    /// # Errors
    /// If it is a URI, the host is missing, or the port is not a number from 1 to 65535.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if let Ok(address) = text.parse::<std::net::IpAddr>() {
            return Ok(Self { host: address.to_string(), port: NODE_PORT });
        }
        if text.contains("://") {
            bail!("`{text}` is a URI: write HOST or HOST:PORT");
        }
        let (host, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, rest)) => (host, Some(rest.strip_prefix(':').unwrap_or(rest))),
            None => text.split_once(':').map_or((text, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            None => NODE_PORT,
            Some(port) => match port.parse() {
                Ok(port @ 1..) => port,
                _ => bail!("`{text}` names no port: write HOST or HOST:PORT"),
            },
        };
        if host.is_empty() {
            bail!("`{text}` names no host: write HOST or HOST:PORT");
        }
        Ok(Self { host: host.to_owned(), port })
    }

    /// Resolves the host. Returns the node once for each address of the host: at least one and at
    /// most four.
    ///
    /// # Errors
    /// If the host has no address, or none was found within 10 s.
    pub(crate) async fn find(&self) -> Result<Vec<Peer>> {
        let found = tokio::time::timeout(LOOKUP_TIME, Peer::find(&self.host, self.port)).await;
        let within = LOOKUP_TIME.as_secs();
        Ok(found.with_context(|| format!("{}: no address within {within} s", self.host))??)
    }
}

/// The UDP ports from which the process of an arriving guest chooses one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// The ports that libvirt uses for migrations by default. They are within Linux's range of
    /// local ports (`net.ipv4.ip_local_port_range`), from which earlier versions took any.
    pub(crate) const DEFAULT: Self = Self { first: 49152, last: 49215 };

    /// Returns the ports; 0 alone stands for any free port.
    pub(crate) fn ports(self) -> RangeInclusive<u16> {
        self.first..=self.last
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first);
        }
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl TryFrom<String> for PortRange {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (first.parse(), last.parse()) {
            (Ok(first), Ok(last)) if first == last || (0 < first && first < last) => {
                Ok(Self { first, last })
            }
            _ => Err("write FIRST-LAST, one port, or 0 for any free port".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_of_ports_is_written_as_in_a_firewall() {
        for (text, ports) in
            [("49152-49215", 49152..=49215), ("4951", 4951..=4951), ("0", 0..=0), ("7-7", 7..=7)]
        {
            assert_eq!(text.parse::<PortRange>().unwrap().ports(), ports);
        }
        assert_eq!(PortRange::DEFAULT.to_string().parse(), Ok(PortRange::DEFAULT));
        for text in ["", "-", "9-8", "0-9", "1-70000", "a-b", "1-2-3", "-5"] {
            assert!(text.parse::<PortRange>().is_err(), "{text}");
        }
    }

    fn parsed(text: &str) -> (String, u16) {
        let destination = Destination::parse(text).unwrap();
        (destination.host, destination.port)
    }

    #[test]
    fn a_host_needs_no_port() {
        assert_eq!(parsed("host-b"), ("host-b".to_owned(), NODE_PORT));
        assert_eq!(parsed("host-b:77"), ("host-b".to_owned(), 77));
        assert_eq!(parsed("192.0.2.7:77"), ("192.0.2.7".to_owned(), 77));
        assert_eq!(parsed("2001:db8::7"), ("2001:db8::7".to_owned(), NODE_PORT));
        assert_eq!(parsed("[2001:db8::7]:77"), ("2001:db8::7".to_owned(), 77));
        assert_eq!(parsed("[2001:db8::7]"), ("2001:db8::7".to_owned(), NODE_PORT));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", ":77", "host:", "host:port", "host:0", "host:70000", "[::1]x"] {
            assert!(Destination::parse(text).is_err(), "{text}");
        }
    }
}
