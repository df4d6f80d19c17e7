//! Memory pressure: pressure stall information (Documentation/accounting/psi.rst of the kernel).

use super::ObserveError;
use super::sources::Sources;
use crate::situation::Pressure;

const FILE: &str = "proc/pressure/memory";

/// Reads `/proc/pressure/memory`.
///
/// # Errors
/// [`ObserveError::Absent`] on a kernel without it (`CONFIG_PSI`, or booted with `psi=0`),
/// [`ObserveError::Unexpected`] if the file is not what the kernel writes.
pub fn pressure(sources: &Sources) -> Result<Pressure, ObserveError> {
    let text = sources.read(FILE)?;
    parse_pressure(&text).ok_or_else(|| sources.unexpected(FILE, &text))
}

/// Parses the text of `pressure/memory`; `None` if it is not what the kernel writes.
#[must_use]
pub fn parse_pressure(text: &str) -> Option<Pressure> {
    let share = |line: &str, average: &str| {
        let words = text.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' '))?;
        let percent = words.split(' ').find_map(|word| word.strip_prefix(average))?;
        percentage(percent)
    };
    Some(Pressure {
        some_10s: share("some", "avg10=")?,
        full_10s: share("full", "avg10=")?,
        some_60s: share("some", "avg60=")?,
        full_60s: share("full", "avg60=")?,
    })
}

/// Parses `12.34` percent into a share of 1.
fn percentage(text: &str) -> Option<f64> {
    // The parser of floats accepts signs, exponents and `nan`; the kernel writes none of them.
    if !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    text.parse::<f64>().ok().map(|percent| percent / 100.0).filter(|share| *share <= 1.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_shares_of_one() {
        let text = "some avg10=12.50 avg60=3.00 avg300=0.10 total=100272\n\
                    full avg10=1.25 avg60=100.00 avg300=0.00 total=46212\n";
        let pressure = parse_pressure(text).unwrap();
        assert_eq!((pressure.some_10s, pressure.full_10s), (0.125, 0.0125));
        assert_eq!((pressure.some_60s, pressure.full_60s), (0.03, 1.0));
    }

    #[test]
    fn refuses_invalid_text() {
        let good = "some avg10=0.00 avg60=0.00\nfull avg10=0.00 avg60=0.00\n";
        assert!(parse_pressure(good).is_some());
        for bad in ["nan", "inf", "-1.00", "1e1", "100.01", "", "1.0.0"] {
            let text = good.replacen("avg10=0.00", &format!("avg10={bad}"), 1);
            assert_eq!(parse_pressure(&text), None, "{bad}");
        }
        assert_eq!(parse_pressure("some avg10=0.00 avg60=0.00\n"), None, "no line of `full`");
    }

    proptest! {
        #[test]
        fn shares_are_in_range_for_any_text(text in "(some avg10=[0-9.]{0,8} avg60=[0-9.e-]{0,6}\n)?full.{0,50}") {
            if let Some(pressure) = parse_pressure(&text) {
                prop_assert!((0.0..=1.0).contains(&pressure.some_10s));
            }
        }
    }
}
