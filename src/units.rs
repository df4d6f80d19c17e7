//! Sizes, rates and times: parses what users write, and formats values for users.
//!
//! One rule for all, as in virsh: `MiB` is binary, `MB` is decimal. A size may also have one
//! letter, which is binary, as in QEMU (`512M`); a rate needs its unit (`100MB/s`, `1Gbit/s`).
//! Nothing here knows what is being measured.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
pub(crate) use memopt::units::{GIB, MIB};
use serde::Deserialize;

/// One KiB, in bytes.
pub(crate) const KIB: u64 = 1 << 10;
/// A page of guest memory, in bytes.
pub(crate) const PAGE_BYTES: u64 = 4 * KIB;

/// A size in bytes from a command line or a file, parsed by [`parse_size`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        parse_size(text).map(Self)
    }
}

impl TryFrom<String> for Size {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl fmt::Display for Size {
    /// Formats the size so that [`parse_size`] can read it, in the largest unit that leaves no
    /// remainder.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(GIB, "G"), (MIB, "M"), (KIB, "K")];
        let fits = |(bytes, _): &&(u64, &str)| self.0 != 0 && self.0.is_multiple_of(*bytes);
        match units.iter().find(fits) {
            Some((bytes, unit)) => write!(f, "{}{unit}", self.0 / bytes),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Splits `12.5MB/s` into its number and its unit.
fn split_number(text: &str) -> Result<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let number =
        number.parse::<f64>().with_context(|| format!("`{text}` does not start with a number"))?;
    Ok((number, unit.trim()))
}

/// Multiplies; refuses a result beyond the range of `u64`.
fn scaled(number: f64, factor: u64, text: &str) -> Result<u64> {
    let value = number * factor as f64;
    if !value.is_finite() || value >= u64::MAX as f64 {
        bail!("`{text}` is too large");
    }
    Ok(value.round() as u64)
}

/// Parses a size as in policies: bytes, binary with K, M, G or T (each also as `KiB`), or decimal
/// with `KB`, `MB`, `GB` or `TB`.
///
/// # Errors
/// If the text is not a number, has another unit, or is too large.
pub(crate) fn parse_size(text: &str) -> Result<u64> {
    memopt::units::parse_size(text).map_err(Error::msg)
}

/// Parses a rate into bytes each second: `100MB/s` (decimal), `100MiB/s` (binary), `1Gbit/s`
/// (bits).
///
/// # Errors
/// If the number has no unit (it could mean bytes or megabytes), the unit is unknown, or the rate
/// is zero.
pub(crate) fn parse_rate(text: &str) -> Result<u64> {
    let (number, unit) = split_number(text)?;
    let unit = unit.strip_suffix("/s").or_else(|| unit.strip_suffix("ps")).unwrap_or(unit);
    let lower = unit.to_ascii_lowercase();
    let (prefix, divisor) = match lower.strip_suffix("bit") {
        Some(prefix) => (prefix, 8.0),
        None => match lower.strip_suffix('b') {
            Some(prefix) => (prefix, 1.0),
            None => bail!("`{text}` is not a rate: write it as 100MB/s, 100MiB/s or 1Gbit/s"),
        },
    };
    let factor = match prefix {
        "" => 1,
        "k" => 1_000,
        "m" => 1_000_000,
        "g" => 1_000_000_000,
        "ki" => KIB,
        "mi" => MIB,
        "gi" => GIB,
        _ => bail!("`{text}` is not a rate: write it as 100MB/s, 100MiB/s or 1Gbit/s"),
    };
    match scaled(number / divisor, factor, text)? {
        0 => bail!("`{text}` is not a rate: omit the limit for none"),
        rate => Ok(rate),
    }
}

/// Parses a time as in policies: `300ms`, `30s`, `5m`, `1h`, `1h30m`.
///
/// # Errors
/// If the number has no unit, the unit is unknown, or the time is more than a year.
pub(crate) fn parse_duration(text: &str) -> Result<Duration> {
    memopt::units::parse_duration(text).map_err(Error::msg)
}

/// Formats a size for users: three figures, binary units.
pub(crate) fn format_size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = if unit == 0 || value >= 100.0 || value.fract() == 0.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Formats a rate for users, in the units of the sizes that are shown beside it.
pub(crate) fn format_rate(bytes_per_s: u64) -> String {
    format!("{}/s", format_size(bytes_per_s))
}

/// Formats a count for users: `20,043`.
pub(crate) fn format_count(count: u64) -> String {
    let digits = count.to_string();
    let mut shown = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            shown.push(',');
        }
        shown.push(digit);
    }
    shown
}

/// Formats a number of vCPUs: `1 vCPU`, `4 vCPUs`.
pub(crate) fn format_vcpus(count: u16) -> String {
    if count == 1 { "1 vCPU".to_owned() } else { format!("{count} vCPUs") }
}

/// Formats a short time for users: `32.4 ms`, `1.36 s`, `4m 05s`.
pub(crate) fn format_duration(time: Duration) -> String {
    let seconds = time.as_secs_f64();
    if seconds < 1e-3 {
        format!("{:.0} us", seconds * 1e6)
    } else if seconds < 1.0 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 60.0 {
        format!("{seconds:.2} s")
    } else {
        format_uptime(time)
    }
}

/// Formats a long time for users, in its two largest units: `45s`, `4m 05s`, `3h 12m`, `12d 4h`.
pub(crate) fn format_uptime(time: Duration) -> String {
    let seconds = time.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    if days > 0 {
        format!("{days}d {hours}h")
    } else if hours > 0 {
        format!("{hours}h {minutes:02}m")
    } else if minutes > 0 {
        format!("{minutes}m {:02}s", seconds % 60)
    } else {
        format!("{seconds}s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_shown_as_it_is_read() {
        for text in ["512M", "3G", "17K", "4097", "0"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn rates_are_decimal_unless_they_say_binary_or_bits() {
        assert_eq!(parse_rate("100MB/s").unwrap(), 100_000_000);
        assert_eq!(parse_rate("100MiB/s").unwrap(), 100 * MIB);
        assert_eq!(parse_rate("1Gbit/s").unwrap(), 125_000_000);
        assert_eq!(parse_rate("8Mbps").unwrap(), 8_000_000);
        assert_eq!(parse_rate("1.5GB").unwrap(), 1_500_000_000);
    }

    #[test]
    fn a_number_without_a_unit_is_neither_rate_nor_time() {
        assert!(parse_rate("100").is_err());
        assert!(parse_duration("100").is_err());
        assert!(parse_duration("").is_err());
    }

    #[test]
    fn nonsense_and_overflow_are_refused() {
        for text in ["", "M", "1X", "-1M", "1e30T", "99999999999999999999T", "1.2.3G"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
        assert!(parse_rate("0MB/s").is_err());
        assert!(parse_duration("99999999d").is_err());
    }

    fn format_pair(value: u64) -> (String, String) {
        (format_size(value), format_rate(value))
    }

    #[test]
    fn shown_values_keep_three_figures() {
        assert_eq!(format_pair(512 * MIB), ("512 MiB".to_owned(), "512 MiB/s".to_owned()));
        assert_eq!(format_pair(1_360_000_000), ("1.27 GiB".to_owned(), "1.27 GiB/s".to_owned()));
        assert_eq!(format_size(17), "17 B");
        assert_eq!(format_count(1_234_567), "1,234,567");
        assert_eq!(format_count(12), "12");
    }

    #[test]
    fn shown_times_fit_their_length() {
        assert_eq!(format_duration(Duration::from_micros(420)), "420 us");
        assert_eq!(format_duration(Duration::from_micros(32_400)), "32.4 ms");
        assert_eq!(format_duration(Duration::from_millis(1360)), "1.36 s");
        assert_eq!(format_duration(Duration::from_secs(245)), "4m 05s");
        assert_eq!(format_uptime(Duration::from_secs(11_520)), "3h 12m");
        assert_eq!(format_uptime(Duration::from_secs(12 * 86_400 + 4 * 3600)), "12d 4h");
    }
}
