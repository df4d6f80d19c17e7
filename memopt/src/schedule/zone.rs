//! Time zones, from the host's zone files.

use std::fmt;

use jiff::tz::TimeZone;

/// The longest name of a zone, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// The time zone of a cron expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone(TimeZone);

/// The host has no time zone with this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this host knows no time zone `{name}`: write \"local\", \"UTC\" or a name from /usr/share/zoneinfo such as \"Europe/Paris\""
)]
pub struct ZoneError {
    /// The name as written.
    pub name: String,
}

impl Zone {
    /// UTC, which has no daylight saving time.
    #[must_use]
    pub const fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// Returns the host's local time zone: `TZ`, else `/etc/localtime`, else UTC.
    #[must_use]
    pub fn local() -> Self {
        Self(TimeZone::try_system().unwrap_or(TimeZone::UTC))
    }

    /// Returns the zone of this name: `local`, `UTC`, or a name of the tz database.
    ///
    /// # Errors
    /// If the host has no zone with this name.
    pub fn find(name: &str) -> Result<Self, ZoneError> {
        let unknown = || ZoneError { name: name.chars().take(NAME_BYTES_MAX).collect() };
        match name {
            "local" => Ok(Self::local()),
            _ if name.is_empty() || name.len() > NAME_BYTES_MAX => Err(unknown()),
            _ => TimeZone::get(name).map(Self).map_err(|_| unknown()),
        }
    }

    /// Returns the zone as the library's type.
    pub(crate) fn inner(&self) -> &TimeZone {
        &self.0
    }

    /// Creates a zone from POSIX rules, which needs no zone files.
    #[cfg(test)]
    pub(crate) fn posix(rules: &str) -> Self {
        Self(TimeZone::posix(rules).expect("rules as POSIX has them"))
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.iana_name().unwrap_or("local"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utc_and_the_hosts_zone_are_always_there() {
        assert_eq!(Zone::find("UTC"), Ok(Zone::utc()));
        assert_eq!(Zone::find("local"), Ok(Zone::local()));
        assert_eq!(Zone::utc().to_string(), "UTC");
    }

    #[test]
    fn a_zone_that_the_host_does_not_have_is_named() {
        for name in ["Europe/Nowhere", "", "../../etc/passwd", "/etc/localtime"] {
            let error = Zone::find(name).unwrap_err().to_string();
            assert!(error.contains(&format!("`{name}`")), "{error}");
        }
        assert!(Zone::find(&"x".repeat(1000)).unwrap_err().to_string().len() < 300);
    }
}
