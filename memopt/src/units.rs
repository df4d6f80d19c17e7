//! Sizes, shares and times, parsed as an operator writes them (`512MiB`, `20%`, `5m`), and
//! formatted for people.
//!
//! This module has no dependencies.

use std::fmt;
use std::time::Duration;

/// One MiB, in bytes.
pub const MIB: u64 = 1 << 20;
/// One GiB, in bytes.
pub const GIB: u64 = 1 << 30;

/// The longest time that can be given: a year.
const DURATION_MAX: Duration = Duration::from_secs(366 * 86_400);
/// The longest number with its unit that is parsed, in bytes.
const TEXT_BYTES_MAX: usize = 32;

/// Parses a size: bytes, binary with K, M, G or T (each also as `KiB`), or decimal with `KB`, `MB`,
/// `GB` or `TB`.
///
/// # Errors
/// A message if the text is not a number, has an unknown unit, or is too large.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{}` is not a size: write it as 512M, 8GiB or 4096", shortened(text));
    let (number, unit) = split(text).ok_or_else(wrong)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(wrong()),
    };
    let bytes = number * factor as f64;
    // No host has 8 EiB of memory; it would also not fit the signed sums.
    if !bytes.is_finite() || bytes >= i64::MAX as f64 {
        return Err(format!("`{}` is too large", shortened(text)));
    }
    Ok(bytes.round() as u64)
}

/// Returns what to write instead of `bytes`, an amount that does not fit, if it was probably
/// written with a decimal unit and `fits` with the binary one: `512MB` instead of `512M`.
pub fn binary_instead(bytes: u64, fits: impl Fn(u64) -> bool) -> Option<String> {
    let units = [("G", 1_000_000_000, GIB), ("M", 1_000_000, MIB), ("K", 1000, 1 << 10)];
    let is_whole = |(_, decimal, _): &(&str, u64, u64)| bytes.is_multiple_of(*decimal);
    let (unit, decimal, binary) = units.into_iter().find(is_whole)?;
    let count = bytes / decimal;
    let is_it = count > 0 && fits(count.saturating_mul(binary));
    is_it.then(|| format!("{count}{unit}B is decimal ({bytes} bytes): write {count}{unit}"))
}

/// Parses a share: `20%`, `12.5%`, `0%` to `100%`. The result is from 0 to 1.
///
/// # Errors
/// A message if the text has no `%`, or is out of range.
pub fn parse_share(text: &str) -> Result<f64, String> {
    let wrong =
        || format!("`{}` is not a share: write it as 20%, from 0% to 100%", shortened(text));
    match split(text).ok_or_else(wrong)? {
        (number, "%") if number <= 100.0 => Ok(number / 100.0),
        _ => Err(wrong()),
    }
}

/// Parses a time: `500ms`, `30s`, `5m`, `1h`, `1h30m`, `1d`.
///
/// # Errors
/// A message if the text has no unit or an unknown one, or is longer than a year.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!("`{}` is not a time with a unit: use e.g. 300ms, 30s, 5m or 1h30m", shortened(text))
    };
    let mut rest = text.trim();
    if rest.is_empty() || rest.len() > TEXT_BYTES_MAX {
        return Err(wrong());
    }
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let (number, tail) = split(rest).ok_or_else(wrong)?;
        let end = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, next) = tail.split_at(end);
        let seconds = match unit.trim() {
            "us" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(wrong()),
        };
        let part = Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        total = total.saturating_add(part);
        rest = next;
    }
    if total > DURATION_MAX {
        return Err(format!("`{}` is more than a year", shortened(text)));
    }
    Ok(total)
}

/// Splits `12.5MiB` into its number and its unit.
fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    if text.len() > TEXT_BYTES_MAX {
        return None;
    }
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse::<f64>().ok()?, unit.trim()))
}

/// Returns the one of `all` whose name is `text`.
///
/// # Errors
/// A message that lists the names if `text` is none of them.
pub(crate) fn one_of<T: Copy>(
    text: &str,
    all: &[T],
    name: fn(T) -> &'static str,
) -> Result<T, String> {
    all.iter().copied().find(|it| name(*it) == text).ok_or_else(|| {
        let names: Vec<&str> = all.iter().map(|it| name(*it)).collect();
        format!("`{}` is none of {}", shortened(text), names.join(", "))
    })
}

/// Returns the beginning of an untrusted text, safe to repeat in a message.
pub(crate) fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(40).collect();
    if shown.len() < text.len() {
        shown.push_str("...");
    }
    shown.replace(|c: char| c.is_control(), " ")
}

/// A size for people: three significant digits and a binary unit, with a sign if it is negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub i64);

impl Size {
    /// Creates a size from an unsigned number of bytes; anything beyond `i64::MAX` becomes that.
    #[must_use]
    pub fn of(bytes: u64) -> Self {
        Self(signed(bytes))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0 { "-" } else { "" };
        let mut value = self.0.unsigned_abs() as f64;
        let mut unit = "B";
        for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
            if value < 1024.0 {
                break;
            }
            value /= 1024.0;
            unit = next;
        }
        let decimals = match value {
            value if value >= 100.0 || value.fract() == 0.0 => 0,
            value if value >= 10.0 => 1,
            _ => 2,
        };
        write!(f, "{sign}{value:.decimals$} {unit}")
    }
}

/// A share for people: `20%`, `1.5%`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(pub f64);

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = self.0 * 100.0;
        let decimals = usize::from((percent - percent.round()).abs() > 0.05);
        write!(f, "{percent:.decimals$}%")
    }
}

/// A time for people, in its two largest units: `45s`, `5m`, `1h 30m`, `2d 4h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        if seconds == 0 && !self.0.is_zero() {
            return write!(f, "{}ms", self.0.as_millis());
        }
        let parts = [(seconds / 86_400, "d"), (seconds / 3600 % 24, "h"), (seconds / 60 % 60, "m")];
        let parts: Vec<(u64, &str)> = parts.into_iter().chain([(seconds % 60, "s")]).collect();
        let first = parts.iter().position(|(count, _)| *count > 0).unwrap_or(3);
        write!(f, "{}{}", parts[first].0, parts[first].1)?;
        match parts.get(first + 1) {
            Some((count, unit)) if *count > 0 => write!(f, " {count}{unit}"),
            _ => Ok(()),
        }
    }
}

/// Returns `bytes` as a signed number, at most `i64::MAX`.
pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Returns `share` of `bytes`, for a share from 0 to a few hundred.
pub(crate) fn part(bytes: u64, share: f64) -> u64 {
    (bytes as f64 * share) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_binary_unless_they_are_written_as_decimal() {
        for text in ["512M", "512m", "512MiB", "0.5G", " 536870912 ", "512 MiB"] {
            assert_eq!(parse_size(text), Ok(512 * MIB), "{text}");
        }
        for (text, bytes) in [("512MB", 512_000_000), ("1.5gb", 1_500_000_000), ("4KB", 4000)] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn a_decimal_size_that_does_not_fit_is_recognised() {
        let fits = |bytes: u64| bytes.is_multiple_of(256 << 10);
        for (text, said) in [
            ("512MB", Some("512MB is decimal (512000000 bytes): write 512M")),
            ("2GB", Some("2GB is decimal (2000000000 bytes): write 2G")),
            ("1.5GB", Some("1500MB is decimal (1500000000 bytes): write 1500M")),
            ("512KB", Some("512KB is decimal (512000 bytes): write 512K")),
            ("100KB", None),
            ("4097", None),
            ("0", None),
        ] {
            let bytes = parse_size(text).unwrap();
            assert_eq!(binary_instead(bytes, fits).as_deref(), said, "{text}");
        }
    }

    #[test]
    fn shares_are_percent() {
        assert_eq!(parse_share("12.5%"), Ok(0.125));
        assert_eq!(parse_share("100%"), Ok(1.0));
        for text in ["20", "101%", "-1%", "%", "0.2", "NaN%", "inf%"] {
            assert!(parse_share(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_add_up() {
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_duration("20us"), Ok(Duration::from_micros(20)));
        for text in ["", "5", "5 weeks", "-1s", "99999d", "1e9s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn invalid_sizes_give_a_short_error() {
        assert_eq!(
            parse_size("8XB").unwrap_err(),
            "`8XB` is not a size: write it as 512M, 8GiB or 4096"
        );
        assert_eq!(parse_size("9999999T").unwrap_err(), "`9999999T` is too large");
        let huge = parse_size(&"9".repeat(1_000_000)).unwrap_err();
        assert!(huge.len() < 150, "{huge}");
    }

    #[test]
    fn people_read_three_figures() {
        assert_eq!(Size::of(512 * MIB).to_string(), "512 MiB");
        assert_eq!(Size(-1_360_000_000).to_string(), "-1.27 GiB");
        assert_eq!(Size(17).to_string(), "17 B");
        assert_eq!(Size::of(u64::MAX).to_string(), "8 EiB");
        assert_eq!(Share(0.125).to_string(), "12.5%");
        assert_eq!(Share(0.2).to_string(), "20%");
        assert_eq!(Span(Duration::from_secs(5400)).to_string(), "1h 30m");
        assert_eq!(Span(Duration::from_secs(300)).to_string(), "5m");
        assert_eq!(Span(Duration::ZERO).to_string(), "0s");
        assert_eq!(Span(Duration::from_millis(20)).to_string(), "20ms");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = (parse_size(&text), parse_share(&text), parse_duration(&text));
        }
    }
}
