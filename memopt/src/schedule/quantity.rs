//! Times and shares as people write them: `2h`, `1h30m`, `50%`.

use std::time::Duration;

/// Reads a time of whole seconds: `90s`, `15m`, `2h`, `1h30m`, `1d`.
///
/// # Errors
/// In words: it has no unit, or one that is none of these, or is longer than `max`.
pub(crate) fn duration(text: &str, max: Duration) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time: write it as 90s, 15m, 2h or 1h30m");
    let mut seconds = 0_u64;
    let mut rest = text.trim();
    if rest.is_empty() || rest.len() > 32 {
        return Err("a time is written as 90s, 15m, 2h or 1h30m".to_owned());
    }
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let (number, tail) = rest.split_at(digits);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let unit = tail.chars().next().ok_or_else(wrong)?;
        let factor = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return Err(wrong()),
        };
        seconds = seconds.saturating_add(number.saturating_mul(factor));
        rest = &tail[unit.len_utf8()..];
    }
    match Duration::from_secs(seconds) {
        time if time > max => Err(format!("`{text}` is longer than {}", shown(max))),
        time => Ok(time),
    }
}

/// Reads a share in whole percent: `1%` to `100%`.
///
/// # Errors
/// In words: it is no share, or out of that range.
pub(crate) fn percent(text: &str) -> Result<u8, String> {
    let number = text.trim().strip_suffix('%').and_then(|number| number.trim().parse::<u8>().ok());
    match number {
        Some(share @ 1..=100) => Ok(share),
        _ => Err(format!(
            "`{}` is no share: write it as 50%, from 1% to 100%",
            text.chars().take(32).collect::<String>()
        )),
    }
}

/// A time as [`duration`] reads it.
pub(crate) fn shown(time: Duration) -> String {
    let mut rest = time.as_secs();
    let mut text = String::new();
    for (unit, seconds) in [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)] {
        if rest >= seconds {
            text += &format!("{}{unit}", rest / seconds);
            rest %= seconds;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn times_are_read_as_they_are_shown() {
        for (text, seconds) in
            [("90s", 90), ("15m", 900), ("1h30m", 5400), ("1d", 86_400), ("0s", 0)]
        {
            assert_eq!(duration(text, DAY), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for seconds in [0, 59, 60, 3661, 86_400] {
            let time = Duration::from_secs(seconds);
            assert_eq!(duration(&shown(time), DAY), Ok(time));
        }
    }

    #[test]
    fn what_is_no_time_or_too_long_is_refused() {
        for text in ["", "5", "h", "5x", "-5m", "1.5h", "5\u{e9}", "99999999999999999999s"] {
            assert!(duration(text, DAY).is_err(), "{text}");
        }
        assert_eq!(duration("25h", DAY), Err("`25h` is longer than 1d".to_owned()));
        assert!(duration("18446744073709551615d", DAY).is_err());
    }

    #[test]
    fn shares_are_whole_percent() {
        assert_eq!((percent("50%"), percent(" 100 %"), percent("1%")), (Ok(50), Ok(100), Ok(1)));
        for text in ["50", "0%", "101%", "-1%", "0.5", "%", &"9".repeat(100_000)] {
            assert!(percent(text).unwrap_err().len() < 100);
        }
    }
}
